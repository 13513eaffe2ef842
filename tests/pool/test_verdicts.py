"""Verdicts: what is stored is read back, by anybody, whatever happens in between."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import PoolVerdicts, Verdict, VerdictFile, settled, standing
from gal_d2.pool.writer import PoolWriter


def say(pool_id: int, word: str, reviewer: str = "ann", category: str = "bun") -> Verdict:
    return Verdict.now(pool_id, 12, category, word, reviewer)


@pytest.fixture
def pool(tmp_path: Path) -> InstancePool:
    with PoolWriter(tmp_path / "pool", names={12: "bun", 3: "boot"}) as writer:
        for number in range(4):
            rgba = np.full((3, 3, 4), 40 + number, np.uint8)
            writer.add(12 if number < 3 else 3, rgba, source=CutOutSource("x"))
    return InstancePool(tmp_path / "pool")


def test_what_is_added_is_read(tmp_path):
    file = VerdictFile(tmp_path)
    assert file.read() == [] and file.read() is file.read()
    verdicts = [say(7, "good"), say(1 << 62, "bad", category="crème brûlée\n")]
    file.add(verdicts)
    assert VerdictFile(tmp_path).read() == file.read() == verdicts
    assert file.read() is file.read()  # nothing is read twice
    file.add([say(7, "undo")])
    assert len(file.read()) == 3
    file.add([])
    assert len(file.path.read_bytes().splitlines()) == 3


def test_an_unfinished_line_is_left_out_and_then_ended(tmp_path):
    file = VerdictFile(tmp_path)
    file.add([say(7, "good")])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + whole[:30])  # a writer was killed
    assert [v.pool_id for v in file.read()] == [7]
    file.add([say(8, "bad")])
    assert [v.pool_id for v in file.read()] == [7, 8]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"pool_id": 1}',
        "[" * 100_000,
        json.dumps({**say(1, "good").__dict__, "verdict": "fine"}),
        json.dumps({**say(1, "good").__dict__, "pool_id": "1"}),
        json.dumps({**say(1, "good").__dict__, "pool_id": -1}),
        json.dumps({**say(1, "good").__dict__, "more": 1}),
        "\x00\xff",
    ],
)
def test_a_broken_line_is_named_once(tmp_path, caplog, line):
    file = VerdictFile(tmp_path)
    file.path.write_bytes(line.encode("latin-1") + b"\n")
    file.add([say(7, "good")])
    assert [v.pool_id for v in file.read()] == [7]
    assert "1 lines of" in caplog.text and "broken" in caplog.text
    caplog.clear()
    file.add([say(8, "good")])
    assert len(file.read()) == 2 and not caplog.text


def test_two_reviewers_write_while_a_training_reads(tmp_path):
    number, seen = 60, []

    def write(reviewer: str) -> None:
        file = VerdictFile(tmp_path)
        for pool_id in range(number):
            file.add([say(pool_id, "good", reviewer, "a long name " * 40)])

    threads = [threading.Thread(target=write, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    reader = VerdictFile(tmp_path)
    while any(thread.is_alive() for thread in threads):
        seen.append(len(reader.read()))
    for thread in threads:
        thread.join()
    for reviewer in ("ann", "bob"):
        mine = [v.pool_id for v in reader.read() if v.reviewer == reviewer]
        assert mine == list(range(number))
    assert seen == sorted(seen)


def test_a_file_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(UserError, match=r"verdicts\.jsonl cannot be written to .*make room"):
        VerdictFile(tmp_path / "missing").add([say(1, "good")])
    (tmp_path / "verdicts.jsonl").mkdir()
    with pytest.raises(UserError, match=r"verdicts\.jsonl cannot be read"):
        VerdictFile(tmp_path).read()


def test_the_last_word_of_each_reviewer_stands():
    lines = [say(7, "good"), say(7, "bad", "bob"), say(7, "bad"), say(8, "good"), say(8, "undo")]
    assert [(v.pool_id, v.verdict, v.reviewer) for v in standing(lines)] == [
        (7, "bad", "ann"),
        (7, "bad", "bob"),
    ]


def test_most_reviewers_settle_it():
    lines = [
        *(say(9, "good", who) for who in ("ann", "bob")),
        say(9, "bad", "eve"),
        *(say(5, word, word) for word in ("good", "bad")),  # nobody knows
        say(4, "skip"),
        say(3, "bad"),
    ]
    pool_ids, signs = settled(lines)
    assert pool_ids.tolist() == [3, 9] and signs.tolist() == [-1, 1]
    assert [len(part) for part in settled([])] == [0, 0]


def test_a_verdict_about_another_category_does_not_count(pool, caplog):
    bun, boot = int(pool.ids(12)[0]), int(pool.ids(3)[0])
    lines = [say(bun, "good"), say(boot, "good", category="bun"), say(1, "bad", category="tower")]
    pool_ids, signs = settled(lines, pool)
    assert dict(zip(pool_ids.tolist(), signs.tolist(), strict=True)) == {bun: 1, 1: -1}
    assert "1 verdicts in" in caplog.text and "another category" in caplog.text


def test_numbers_of_categories_may_change(pool):
    bun = int(pool.ids(12)[0])
    now = InstancePool(pool.root, names={1: "boot", 2: "bun"})
    assert settled([say(bun, "good")], now)[0].tolist() == [bun]


def test_a_pool_s_verdicts_are_looked_at_again_when_they_change(pool):
    judged = PoolVerdicts(pool)
    assert len(judged()[0]) == 0
    VerdictFile(pool.root).add([say(int(pool.ids(12)[1]), "bad")])
    first = judged()
    assert first[0].tolist() == [pool.ids(12)[1]] and judged() is first
