"""Moved to :mod:`gal_d2.files.image_file`."""

from gal_d2.files.image_file import read_training_image

__all__ = ["read_training_image"]
