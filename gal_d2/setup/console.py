"""What of the log reaches the console: not the config and the model, which log.txt keeps."""

from __future__ import annotations

import logging
import sys

from gal_d2.errors import sentence_of

# Longer messages of detectron2 are listings: the environment, the config, the model.
_MOST_LINES = 3
_NAMES = ("detectron2", "fvcore", "gal_d2")


class ConsoleFilter(logging.Filter):
    """Drops detectron2's listings, metrics and progress, and tracebacks of users' mistakes.

    :mod:`gal_d2.engine.progress` shows the metrics and the progress, and the tool prints the
    mistake's sentence.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and sentence_of(error) is not None:
            return False
        if record.name.split(".")[0] == "gal_d2" or record.levelno >= logging.WARNING:
            return True
        if record.name in ("detectron2.utils.events", "detectron2.evaluation.evaluator"):
            return False
        return record.getMessage().count("\n") < _MOST_LINES


def quiet_console() -> None:
    """Put the filter on the console handlers of the loggers that are set up; files keep all."""
    for name in _NAMES:
        for handler in logging.getLogger(name).handlers:
            is_console = getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
            if is_console and not any(isinstance(f, ConsoleFilter) for f in handler.filters):
                handler.addFilter(ConsoleFilter())
