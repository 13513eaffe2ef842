"""Shows from the first step on how far a training is, its loss and when it will be done."""

from __future__ import annotations

import logging
import sys
import time

from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Without a terminal: lines after so many steps of this process, and then every EVERY.
FIRST = (1, 2, 5, 10)
EVERY = 20


class ProgressHook(HookBase):
    """A progress bar on a terminal; elsewhere (a file, a pipe) a line of the log now and then.

    Register it in the main process alone.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._start = 0.0
        self._done = 0

    def before_train(self) -> None:
        """Begin to count."""
        self._start, self._done = time.perf_counter(), 0
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                unit=" steps",
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def after_step(self) -> None:
        """Show loss and learning rate of the step that was done."""
        self._done += 1
        loss, rate = _latest("total_loss", ".3f"), _latest("lr", ".3g")
        if self._bar is not None:
            self._bar.set_postfix(loss=loss, lr=rate, refresh=False)
            self._bar.update()
        elif self._done in FIRST or self._done % EVERY == 0:
            seconds = (time.perf_counter() - self._start) / self._done
            left = self.trainer.max_iter - self.trainer.iter - 1
            logger.info(
                "Step %d of %d: loss: %s, lr: %s, %.2f s a step, ETA %s",
                self.trainer.iter + 1,
                self.trainer.max_iter,
                loss,
                rate,
                seconds,
                duration(seconds * left),
            )

    def after_train(self) -> None:
        """Close the bar, after an interruption too."""
        if self._bar is not None:
            self._bar.close()


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
