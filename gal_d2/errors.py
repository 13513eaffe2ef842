"""Errors that a user can mend: tools print them as one sentence, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message names the file, the field and the remedy in one sentence."""
