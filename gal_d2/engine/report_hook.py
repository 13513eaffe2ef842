"""Writes the report of a run when its training is done."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.engine import HookBase

logger = logging.getLogger(__name__)


class ReportHook(HookBase):
    """``report.html`` in the output folder; register it last, in the main process alone.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def after_train(self) -> None:
        """Write it, unless the training was interrupted. Nothing that goes wrong gets out."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        try:
            from gal_d2.reporting.report import write_report

            path = write_report(self.output_dir)
        except Exception as error:  # hours of training are not to end in an error of their report
            logger.warning(
                "The report of the run could not be made (%s: %s): tools/report.py %s makes it.",
                *(type(error).__name__, error, self.output_dir),
            )
            logger.debug("", exc_info=True)
        else:
            logger.info("The report of the run: %s", path)
