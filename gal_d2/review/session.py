"""One person's review of a pool: what is shown next, and what was said; knows nothing of HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np

from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import (
    BAD,
    GOOD,
    SKIP,
    UNDO,
    PoolVerdicts,
    Verdict,
    VerdictFile,
    standing,
)
from gal_d2.review.beliefs import Beliefs
from gal_d2.review.order import Outlook, outlook

# So many verdicts go by before all gains are looked at again.
_LEARN_EVERY = 10
# So many cut-outs of a category are shown in a row: to change one's mind each time is tiring.
_IN_A_ROW = 5


@dataclass(frozen=True)
class Item:
    """A cut-out to look at.

    Attributes:
        pool_id, category_id: of the cut-out.
        category: its category's name, or its id as text.
        prompt: that it was drawn by, "" if it was not.
        source: generator and model.
    """

    pool_id: int
    category_id: int
    category: str
    prompt: str
    source: str


class ReviewSession:
    """Shows cut-outs by what a verdict is worth, and stores verdicts; for several threads.

    Args:
        pool: that is reviewed.
        beliefs: of its cut-outs.
        reviewer: stored with each verdict.
        only: category ids to show; None: all.
    """

    def __init__(
        self,
        pool: InstancePool,
        beliefs: Beliefs,
        *,
        reviewer: str = "",
        only: set[int] | None = None,
    ) -> None:
        self.pool, self.beliefs, self.reviewer = pool, beliefs, reviewer
        self.names = pool.category_names or {}
        self._file = VerdictFile(pool.root)
        self._verdicts = PoolVerdicts(pool)
        of_interest = beliefs.category_ids
        self._shown = np.isin(of_interest, list(only)) if only else np.ones(len(of_interest), bool)
        self._history: list[int] = []
        self._said: Counter[str] = Counter()
        self._words: dict[int, str] = {}
        self._lock = threading.RLock()
        self._queue: list[int] = []
        self._known_shares: dict = {}
        self._learn()

    # -- What is shown

    def next_items(self, number: int = 4) -> list[Item]:
        """The cut-outs to look at now, the most worth first; none when all are judged.

        The same until a verdict is given: a page that is loaded again shows the same.
        """
        with self._lock:
            found: list[Item] = []
            while len(found) < number:
                if len(found) == len(self._queue):
                    if found:
                        break
                    self._learn()
                    if not self._queue:
                        break
                try:
                    found.append(self.item(self._queue[len(found)]))
                except CorruptCutOutError:  # the pool remembers it, and names it in the log
                    del self._queue[len(found)]
            return found

    def item(self, pool_id: int) -> Item:
        """What is shown of a cut-out.

        Raises:
            KeyError: it is not in the pool.
            CorruptCutOutError: it cannot be read.
        """
        cut_out = self.pool.get(pool_id)
        name = self.names.get(cut_out.category_id, str(cut_out.category_id))
        source = " ".join(filter(None, (cut_out.source.generator, cut_out.source.model)))
        return Item(pool_id, cut_out.category_id, name, cut_out.source.prompt, source)

    def _learn(self) -> None:
        """Take in all verdicts, of other reviewers too, and put the cut-outs into order."""
        verdicts = self._file.read()
        self.outlook: Outlook = outlook(self.beliefs, self._verdicts(), self._known_shares)
        # Skipped ones, and those that reviewers disagree on, have had their look.
        seen = [v.pool_id for v in standing(verdicts) if v.reviewer == self.reviewer]
        seen += [v.pool_id for v in standing(verdicts) if v.verdict != SKIP]
        open_rows = self._shown & ~np.isin(self.beliefs.pool_ids, np.array(seen, np.int64))
        corrupt = np.array(list(self.pool.corrupt_ids), np.int64)
        open_rows &= ~np.isin(self.beliefs.pool_ids, corrupt)
        rows = np.flatnonzero(open_rows)
        # With equal gains (no scores yet) the ids decide, which are hashes: as good as random.
        rows = rows[np.argsort(-self.outlook.gain[rows], kind="stable")]
        self.left = len(rows)
        best = rows[: 4 * _LEARN_EVERY]
        categories = self.beliefs.category_ids[best]
        self._queue = self.beliefs.pool_ids[best[in_runs(categories, _IN_A_ROW)]].tolist()
        self._until_learning = _LEARN_EVERY

    # -- What is said

    def judge(self, pool_id: int, word: str) -> None:
        """Store a verdict.

        Args:
            pool_id: of a cut-out of the pool.
            word: "good", "bad" or "skip".

        Raises:
            KeyError: the cut-out is not in the pool.
            ValueError: it is no such word.
            UserError: the file cannot be written to.
        """
        if word not in (GOOD, BAD, SKIP):
            raise ValueError(f"a verdict is good, bad or skip, not {word!r:.20}")
        with self._lock:
            self._store(pool_id, word)
            if pool_id in self._words:  # two windows, or a key pressed twice
                self._said[self._words[pool_id]] -= 1
                self._history.remove(pool_id)
            self._words[pool_id] = word
            self._said[word] += 1
            self._history.append(pool_id)
            if pool_id in self._queue:
                self._queue.remove(pool_id)
            self._until_learning -= 1
            self.left = max(self.left - 1, 0)
            if self._until_learning <= 0:
                self._learn()

    def undo(self) -> int | None:
        """Take this session's last verdict back, and show the cut-out again.

        Returns:
            Its id; None where there is nothing to take back.
        """
        with self._lock:
            if not self._history:
                return None
            pool_id = self._history[-1]
            self._store(pool_id, UNDO)
            self._history.pop()
            self._said[self._words.pop(pool_id)] -= 1
            self._queue.insert(0, pool_id)
            self.left += 1
            return pool_id

    def _store(self, pool_id: int, word: str) -> None:
        (category_id,) = self.pool.category_of(np.array([pool_id], np.int64)).tolist()
        name = self.names.get(category_id, "")
        self._file.add([Verdict.now(pool_id, category_id, name, word, self.reviewer)])

    # -- How it goes

    def progress(self) -> dict[str, object]:
        """Of this session: how many were judged how; of the pool: how many are left, and by the
        calibration how many are good among what would be pasted."""
        with self._lock:
            share, good = self.outlook.share, self.outlook.good
            categories = len(np.unique(self.beliefs.category_ids))
            return {
                **{word: self._said[word] for word in (GOOD, BAD, SKIP)},
                "left": self.left,
                "good_share": float(share @ good / max(categories, 1)),
                "hopeless": int(hopeless(self.beliefs, self.outlook).sum()),
                "calibrated_by": self.outlook.calibration.verdicts,
            }


def hopeless(beliefs: Beliefs, seen: Outlook) -> np.ndarray:
    """(N,) bool: which of a pool's cut-outs are hopeless by what verdicts say of their values."""
    categories, which = np.unique(beliefs.category_ids, return_inverse=True)
    limits = [seen.calibration.hopeless_below(category) for category in categories.tolist()]
    return beliefs.value < np.array(limits)[which]


def in_runs(categories: np.ndarray, length: int) -> np.ndarray:
    """(N,) int64: an order of rows, the most worth first, with those of a category in runs.

    Args:
        categories: (N,) of rows in order of what they are worth.
        length: most of a run.

    Example:
        >>> in_runs(np.array([7, 8, 7, 7, 8]), 2).tolist()
        [0, 2, 1, 4, 3]
    """
    left = list(range(len(categories)))
    order: list[int] = []
    while left:
        category = categories[left[0]]
        run = [row for row in left if categories[row] == category][:length]
        order += run
        left = [row for row in left if row not in run]
    return np.array(order, np.int64)
