"""Moved to :mod:`gal_d2.pool`."""

from gal_d2.pool.cut_out import CutOut, CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter

__all__ = ["CutOut", "CutOutSource", "InstancePool", "PoolWriter"]
