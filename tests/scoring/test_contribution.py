from __future__ import annotations

import pytest
import torch

from gal_d2.scoring.contribution import Contribution


def three_instances() -> Contribution:
    return Contribution(
        pool_id=torch.tensor([7, 8, -1]),
        image_index=torch.tensor([0, 1, 1]),
        gt_class=torch.tensor([2, 2, 5]),
        phi=torch.tensor([0.5, float("nan"), -0.1]),
        score=torch.tensor([0.9, float("nan"), -0.3]),
        head_score={"box": torch.tensor([0.9, float("nan"), -0.3])},
        head_loss={"box": torch.tensor([0.1, float("nan"), 2.0])},
        num_rois=torch.tensor([1, 0, 1]),
        area=torch.tensor([900.0, 900.0, 900.0]),
    )


def test_rows_are_selected_in_every_field():
    rows = three_instances()[torch.tensor([True, False, True])]
    assert len(rows) == 2
    assert rows.pool_id.tolist() == [7, -1]
    assert rows.head_loss["box"].tolist() == pytest.approx([0.1, 2.0])
    assert three_instances()[1].num_rois.tolist() == [0]


def test_missing_is_nan():
    assert three_instances().missing.tolist() == [False, True, False]


def test_cat_and_empty():
    both = Contribution.cat([three_instances(), Contribution.empty(["box"]), three_instances()])
    assert len(both) == 6 and both.heads == ("box",)
    assert both.gt_class.tolist() == [2, 2, 5, 2, 2, 5]
    assert both.gt_class.dtype == torch.int64
    with pytest.raises(ValueError, match="different heads"):
        Contribution.cat([three_instances(), Contribution.empty(["mask"])])
    with pytest.raises(ValueError, match="at least one"):
        Contribution.cat([])


def test_columns_of_unequal_length_are_refused():
    values = vars(three_instances()) | {"phi": torch.zeros(2)}
    with pytest.raises(ValueError, match="phi has shape"):
        Contribution(**values)
