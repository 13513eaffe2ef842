from __future__ import annotations

import numpy as np
import pytest
import torch

from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.ranking import (
    Exposure,
    KeepRule,
    criteria,
    histories,
    instance_values,
    keep,
    keep_by_category,
    names_of,
    rank,
    values_by_id,
)

NAN = float("nan")


def write(root, rows: list[tuple]) -> Ledger:
    """Rows (step, pool id, class, score, mask loss, accepted) as a ledger of classes 30 and 70."""
    with LedgerWriter(root, category_ids=[30, 70], category_frequency=["r", "f"]) as writer:
        for step, pool_id, gt_class, score, loss, accept in rows:
            one = torch.ones(1)
            contribution = Contribution(
                pool_id=torch.tensor([pool_id]),
                image_index=torch.tensor([0]),
                gt_class=torch.tensor([gt_class]),
                phi=10 * score * one,
                score=score * one,
                head_score={"box": 2 * score * one, "mask": -score * one},
                head_loss={"box": one, "mask": loss * one},
                num_rois=torch.tensor([1]),
                area=torch.tensor([900.0]),
            )
            writer.append(step, contribution, Decision.uniform(torch.tensor([accept]), "p"), [5])
    return Ledger(root)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return write(
        tmp_path,
        [
            (0, 1, 0, 0.2, 3.0, True),
            (0, 2, 0, 0.5, 1.0, True),
            (1, 3, 0, NAN, 0.5, False),
            (1, 4, 1, 0.9, 2.0, True),
            (7, 1, 0, 0.6, 2.0, False),
        ],
    )


def test_mean_of_the_exposures_ranks(ledger):
    table = rank(ledger, 30)
    assert table["rank"].to_pylist() == [1, 2, None]
    assert table["pool_id"].to_pylist() == [2, 1, 3]
    assert table["value"].to_pylist() == [0.5, pytest.approx(0.4), None]
    assert table["count"].to_pylist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("by", "order", "best"),
    [("box", [2, 1, 3], 1.0), ("mask", [1, 2, 3], -0.4), ("phi", [2, 1, 3], 5.0)],
)
def test_other_scores(ledger, by, order, best):
    table = rank(ledger, 30, by)
    assert table["pool_id"].to_pylist() == order
    assert table["value"][0].as_py() == pytest.approx(best)


def test_the_lowest_loss_is_best(ledger):
    table = rank(ledger, 30, "loss")
    assert table["pool_id"].to_pylist() == [3, 2, 1]
    assert table["value"].to_pylist() == [1.5, 2.0, 3.5]  # the heads' means together
    assert values_by_id(instance_values(ledger, "loss"), "loss") == {
        1: -3.5,
        2: -2.0,
        3: -1.5,
        4: -3.0,
    }


def test_what_is_not_there(ledger):
    assert list(criteria(ledger)) == ["combined", "box", "mask", "phi", "loss"]
    with pytest.raises(UserError, match="--by is 'clip', but the ledger .* has combined, box"):
        rank(ledger, 30, "clip")
    with pytest.raises(UserError, match="no cut-out of category 12"):
        rank(ledger, 12)


def test_history_in_order_of_time(ledger):
    found = histories(ledger, 30)
    assert found.keys() == {1, 2, 3}
    assert found[1] == [
        Exposure(0, pytest.approx(0.2), True),
        Exposure(7, pytest.approx(0.6), False),
    ]
    assert found[3] == [Exposure(1, None, False)]


VALUES = np.array([0.1, 0.9, NAN, 0.5, 0.5])


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"threshold": 0.5}, [0, 1, 0, 1, 1]),
        ({"quantile": 0.5}, [0, 1, 0, 1, 1]),
        ({"quantile": 1.0}, [0, 1, 0, 0, 0]),
        ({"quantile": 0.0}, [1, 1, 0, 1, 1]),
        ({"top": 2}, [0, 1, 0, 1, 0]),
        ({"top": 9}, [1, 1, 0, 1, 1]),
        ({"top": 0}, [0, 0, 0, 0, 0]),
        ({"threshold": 2.0}, [0, 0, 0, 0, 0]),
        ({"threshold": 2.0, "at_least": 2}, [0, 1, 0, 1, 0]),
        ({"threshold": 0.0, "at_least": 5}, [1, 1, 1, 1, 1]),
        ({"threshold": 0.8, "at_least": 1}, [0, 1, 0, 0, 0]),
        ({"top": 1, "keep_unscored": True}, [0, 1, 1, 0, 0]),
    ],
)
def test_rules(rule, kept):
    assert keep(VALUES, KeepRule(**rule)).astype(int).tolist() == kept


def test_a_category_without_scores():
    nothing = np.array([NAN, NAN])
    assert keep(nothing, KeepRule(quantile=0.5)).tolist() == [False, False]
    assert keep(nothing, KeepRule(quantile=0.5, at_least=1)).tolist() == [True, False]


def test_each_category_has_its_own_quantile():
    kept = keep_by_category(
        np.array([1, 2, 3, 4, 5]),
        np.array([30, 30, 70, 70, 70]),
        {1: 0.1, 2: 0.2, 3: 5.0, 4: 9.0},
        KeepRule(quantile=0.9),
    )
    assert kept.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "exactly one of"),
        ({"top": 1, "quantile": 0.5}, "exactly one of"),
        ({"quantile": 1.5}, "--quantile is 1.5"),
        ({"top": -1}, "--top is -1"),
        ({"top": 1, "at_least": -2}, "--at-least is -2"),
    ],
)
def test_rules_that_make_no_sense(rule, message):
    with pytest.raises(UserError, match=message):
        KeepRule(**rule)


def test_names_for_people():
    columns = ["score_mean", "head_score_box_mean", "head_loss_mask_mean", "count", "phi_mean"]
    assert names_of(columns) == {
        "score_mean": "combined",
        "phi_mean": "phi",
        "head_score_box_mean": "box score",
        "head_loss_mask_mean": "mask loss",
    }
