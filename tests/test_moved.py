"""Scripts that were written for 0.1 find what they import."""

import pytest

import gal_d2


def test_old_places():
    with pytest.warns(DeprecationWarning, match=r"docs/layout\.md"):
        from gal_d2.data.dataset_mapper import CopyPasteMapper
    from gal_d2.data.image_file import read_training_image
    from gal_d2.data.pool import InstancePool, PoolWriter
    from gal_d2.engine.setup import load_config, resolve_datasets

    assert InstancePool is gal_d2.InstancePool and PoolWriter is gal_d2.PoolWriter
    assert CopyPasteMapper is gal_d2.CopyPasteMapper
    assert all(map(callable, (read_training_image, load_config, resolve_datasets)))
