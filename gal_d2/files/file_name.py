"""Names that users give, as names of files."""

from __future__ import annotations

import re


def as_file_name(name: str) -> str:
    """``name`` with one underscore for whatever stands between letters and digits.

    Example:
        >>> as_file_name("bow_(decorative_ribbons)"), as_file_name("../etc/passwd")
        ('bow_decorative_ribbons', 'etc_passwd')
    """
    return re.sub(r"[\W_]+", "_", name).strip("_")
