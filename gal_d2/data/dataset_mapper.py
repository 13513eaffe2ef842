"""Moved to :mod:`gal_d2.copy_paste.mapper`."""

from gal_d2.copy_paste.mapper import CopyPasteMapper

__all__ = ["CopyPasteMapper"]
