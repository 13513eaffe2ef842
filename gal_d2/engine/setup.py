"""Where scripts that were written for 0.1 look for :mod:`gal_d2.setup`; it goes with 0.3."""

from gal_d2.setup.configuration import load_config
from gal_d2.setup.setup import resolve_datasets

__all__ = ["load_config", "resolve_datasets"]
