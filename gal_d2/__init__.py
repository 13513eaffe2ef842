"""Generative active learning for long-tailed instance segmentation on detectron2."""

from gal_d2 import compat  # noqa: F401  (first: it prepares the process for detectron2)
from gal_d2.config import add_gal_config

__all__ = ["add_gal_config"]
