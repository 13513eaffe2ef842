"""Shows from the start on how far a training or an evaluation is, and when it will be done."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch.utils.data import DataLoader
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Without a terminal: lines after so many steps of this process, and then every EVERY.
FIRST = (1, 2, 5, 10)
EVERY = 20


class Progress:
    """A progress bar on a terminal; elsewhere (a file, a pipe) a line of the log now and then.

    Args:
        unit: what is counted: "step".
        total: how many there are.
        done: how many of them were done before.
        what: stands before the count; "": nothing.
    """

    def __init__(self, unit: str, total: int, *, done: int = 0, what: str = "") -> None:
        self.unit, self.total, self.what = unit, total, what
        self._first, self._done = done, done
        self._start = time.perf_counter()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=what or None,
                unit=f" {unit}",
                file=sys.stderr,
                dynamic_ncols=True,
                leave=not what,
            )

    def update(self, **figures: str) -> None:
        """One more is done; ``figures`` are shown beside it."""
        self._done += 1
        here = self._done - self._first
        if self._bar is not None:
            self._bar.set_postfix(**figures, refresh=False)
            self._bar.update()
        elif here in FIRST or here % EVERY == 0:
            seconds = (time.perf_counter() - self._start) / here
            count = f"{self.unit} {self._done} of {self.total}"
            count = f"{self.what}, {count}" if self.what else count.capitalize()
            shown = [f"{name}: {value}" for name, value in figures.items()]
            shown += [f"{seconds:.2f} s a {self.unit}"]
            left = duration(seconds * (self.total - self._done))
            logger.info("%s: %s, ETA %s", count, ", ".join(shown), left)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class ProgressHook(HookBase):
    """Shows the :class:`Progress` of a training.

    Register it in the main process alone.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def before_train(self) -> None:
        """Begin to count."""
        self._progress = Progress("step", self.trainer.max_iter, done=self.trainer.start_iter)

    def after_step(self) -> None:
        """Show loss and learning rate of the step that was done."""
        self._progress.update(loss=_latest("total_loss", ".3f"), lr=_latest("lr", ".3g"))

    def after_train(self) -> None:
        """Close the bar, after an interruption too."""
        if self._progress is not None:
            self._progress.close()


class EvaluationLoader:
    """Gives the batches of an evaluation and shows, in the main process, how far it is.

    Args:
        loader: of a data set's images.
        name: of the data set.
    """

    def __init__(self, loader: DataLoader, name: str) -> None:
        self.loader, self.name = loader, name

    @property
    def dataset(self):
        """The images by their index."""
        return self.loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        if not comm.is_main_process():
            yield from self.loader
            return
        progress = Progress("batch", len(self), what=f"Evaluation on {self.name}")
        try:
            for batch in self.loader:
                yield batch
                progress.update()  # the model has seen it
        finally:
            progress.close()


def _latest(name: str, style: str) -> str:
    try:
        return format(get_event_storage().history(name).latest(), style)
    except KeyError:  # not written yet
        return "?"


def duration(seconds: float) -> str:
    """A time to wait, to two units.

    Example:
        >>> [duration(s) for s in (8, 190, 4000, 200_000)]
        ['8 s', '3 min 10 s', '1 h 6 min', '2 d 7 h']
    """
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    left = round(seconds)
    parts = []
    for name, size in units:
        count, left = divmod(left, size)
        if count or parts or name == "s":
            parts.append(f"{count} {name}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ")) or "0 s"
