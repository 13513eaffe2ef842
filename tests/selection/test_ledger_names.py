"""A ledger keeps what its category ids meant."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_ledger import FREQUENCY, rows

from gal_d2.errors import UserError
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.ranking import histories, rank

NAMES = ["cup", "bun", "cat"]
NOW = {1: "cup", 2: "bun", 3: "cat"}


def write(root: Path, names: list[str] | None, ids: tuple[int, ...] = (0, 1, 2)) -> None:
    with LedgerWriter(
        root, category_ids=ids, category_frequency=FREQUENCY, category_names=names
    ) as writer:
        step = writer._stored_until + 1
        writer.append(step, *rows([10, 11, 12], classes=[0, 1, 2]), image_ids=[5, 6])


def test_rows_have_the_ids_of_now(tmp_path: Path, caplog):
    write(tmp_path, NAMES)
    raw, ledger = Ledger(tmp_path), Ledger(tmp_path, NOW)
    (table,) = raw.tables(["category_id"])
    assert table["category_id"].to_pylist() == [0, 1, 2]
    (table,) = ledger.tables(["pool_id", "category_id"])
    assert table["category_id"].to_pylist() == [1, 2, 3]
    assert rank(ledger, 2)["pool_id"].to_pylist() == [11]  # 'bun', whichever number it had
    assert list(histories(ledger, 3)) == [12]
    assert ledger.by_category()["category_id"].to_pylist() == [1, 2, 3]
    assert "0 was 'cup', which is 1" in caplog.text


def test_rows_of_a_category_that_is_gone_are_left_out(tmp_path: Path):
    write(tmp_path, NAMES)
    ledger = Ledger(tmp_path, {0: "bun", 1: "cat"})
    assert ledger.by_category()["category_id"].to_pylist() == [0, 1]
    (table,) = ledger.tables(["pool_id", "category_id"])
    assert table["pool_id"].to_pylist() == [11, 12]


def test_a_ledger_of_another_data_set_stops(tmp_path: Path):
    write(tmp_path, NAMES)
    ledger = Ledger(tmp_path, {0: "dog", 1: "cow", 2: "pig"})
    with pytest.raises(UserError, match=r"the ledger .*: category id 0 was 'cup'.*'dog'"):
        ledger.by_category()


def test_an_old_one_is_read_with_a_warning(tmp_path: Path, caplog):
    write(tmp_path, None)
    ledger = Ledger(tmp_path, NOW)
    assert ledger.by_category()["category_id"].to_pylist() == [0, 1, 2]
    assert "no category names" in caplog.text


def test_rows_of_other_categories_are_not_added(tmp_path: Path):
    write(tmp_path, NAMES)
    write(tmp_path, NAMES)
    with pytest.raises(UserError, match=r"the ledger .* id 0 is 'cup'.*choose another folder"):
        write(tmp_path, NAMES, ids=(1, 2, 3))
    assert Ledger(tmp_path).num_rows == 6


def test_names_survive_taking_back(tmp_path: Path):
    with LedgerWriter(
        tmp_path, category_ids=(0, 1, 2), category_frequency=FREQUENCY, category_names=NAMES
    ) as writer:
        for step in range(3):
            writer.append(step, *rows([10 + step]), image_ids=[5, 6])
        writer.flush()
        writer.resume(1)
    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_table(path).num_rows == 1
    assert Ledger(tmp_path, NOW).by_category()["category_id"].to_pylist() == [1]
