"""tools/review_pool.py as a user calls it."""

from __future__ import annotations

import argparse
import csv
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from scored import scored
from scripts import load_script

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import Verdict, VerdictFile
from gal_d2.pool.writer import PoolWriter
from gal_d2.review.beliefs import beliefs_of
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.posterior import Posterior
from gal_d2.selection.posterior_view import posterior_source
from gal_d2.selection.snapshots import Snapshots


@pytest.fixture
def pool(tmp_path: Path) -> InstancePool:
    with PoolWriter(tmp_path / "pool", names={3: "boot", 12: "ice_cream"}) as writer:
        for number in range(8):
            rgba = np.full((5, 5, 4), 30 + number, np.uint8)
            writer.add((3, 12)[number % 2], rgba, source=CutOutSource("x"))
    return InstancePool(tmp_path / "pool")


def arguments(repository: Path, *given: object) -> tuple:
    module = load_script(repository / "tools/review_pool.py")
    return module, module.parse_arguments([str(value) for value in given])


def call(repository: Path, *given: object) -> None:
    module, parsed = arguments(repository, *given)
    module.main(parsed)


def say(pool: InstancePool, *words: str, reviewer: str = "ann") -> None:
    ids = pool.all_ids()[: len(words)]
    categories = pool.category_of(ids).tolist()
    VerdictFile(pool.root).add(
        Verdict.now(i, c, pool.category_names[c], word, reviewer)
        for i, c, word in zip(ids.tolist(), categories, words, strict=True)
    )


def standing(root: Path) -> list[tuple]:
    return [(v.pool_id, v.category, v.verdict, v.reviewer) for v in VerdictFile(root).read()]


def test_verdicts_go_from_pool_to_pool(repository, pool, tmp_path, capsys):
    say(pool, "good", "bad", "skip", "bad")
    say(pool, "undo")
    call(repository, pool.root, "--export", tmp_path / "a/verdicts.csv")
    rows = list(csv.DictReader((tmp_path / "a/verdicts.csv").open(newline="")))
    assert [row["verdict"] for row in rows] == ["bad", "skip", "bad"]
    assert [int(row["pool_id"]) for row in rows] == pool.all_ids()[1:4].tolist()

    copy = tmp_path / "copy"
    copy.mkdir()
    for shard in pool.root.glob("*.arrow"):
        (copy / shard.name).write_bytes(shard.read_bytes())
    for _ in range(2):
        call(repository, copy, "--import", tmp_path / "a/verdicts.csv")
    assert standing(copy) == standing(pool.root)[1:4]
    printed = capsys.readouterr().out
    assert "3 verdicts, 3 of them new" in printed and "3 verdicts, 0 of them new" in printed


def test_two_columns_are_enough(repository, pool, tmp_path):
    pool_id = int(pool.all_ids()[0])
    (tmp_path / "a.csv").write_text(f"\ufeffverdict,pool_id\r\ngood,{pool_id}\r\n", "utf-8")
    call(repository, pool.root, "--import", tmp_path / "a.csv", "--reviewer", "bob")
    category = pool.category_names[int(pool.category_of(pool.all_ids()[:1])[0])]
    assert standing(pool.root) == [(pool_id, category, "good", "bob")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool_id\n7\n", r"has no column verdict; give a CSV file"),
        ("pool_id,verdict\nFIRST,fine\n", r"line 2: verdict is 'fine'; use good, bad or skip"),
        ("pool_id,verdict\nFIRST,good\n7e18,bad\n", r"line 3: .* no cut-out '7e18'.*as text"),
        ("pool_id,verdict\n5,bad\n", r"line 2: .* no cut-out '5'"),
        ("pool_id,verdict,category\nFIRST,bad,tower\n", r"line 2: category is 'tower', but"),
        ("pool_id,verdict\nFIRST\n", r"line 2: verdict is ''"),
        ("", "has no column pool_id and no verdict"),
    ],
)
def test_a_wrong_row_imports_nothing(repository, pool, tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text.replace("FIRST", str(pool.all_ids()[0])))
    with pytest.raises(UserError, match=message):
        call(repository, pool.root, "--import", path)
    assert standing(pool.root) == []


def test_files_that_are_none(repository, pool, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"pool_id,verdict\n\xff\n")
    for path, message in (("a.csv", "no CSV file in UTF-8"), ("b.csv", "cannot be read")):
        with pytest.raises(UserError, match=message):
            call(repository, pool.root, "--import", tmp_path / path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--image-root", "x"], "--image-root needs --annotations"),
        (["--category", "boat"], r"--category: .*did you mean boot"),
        (["--ledger", "nowhere"], r"The ledger nowhere.* is empty"),
    ],
)
def test_mistakes(repository, pool, given, message):
    with pytest.raises(UserError, match=message):
        call(repository, pool.root, *given)


def test_what_a_training_knows(pool, tmp_path):
    """The snapshots of a run, in another order of ids than the pool's, and some never scored."""
    ids, posterior = pool.all_ids(), Posterior(2, prior_count=0.1)
    rows = scored(ids[[5, 0, 2]], [0.9, -0.4, 0.1], area=1e6)
    for step in range(9):
        posterior.update(rows, step)
    arrays = posterior_source(posterior.take_changes)(4)
    posterior.judged = ids[:1], np.array([1], np.int8)  # verdicts are not scores
    kept = {f"posterior.{name}": array for name, array in arrays.items()}
    Snapshots(tmp_path / "run/snapshots", period=1).write(4, kept)
    beliefs = beliefs_of(pool, tmp_path / "run")
    posterior.judged = posterior.judged[0][:0], posterior.judged[1][:0]
    assert np.allclose(beliefs.mean, posterior.get(ids).mean)
    assert np.allclose(beliefs.value, posterior.value(ids))
    with PoolWriter(tmp_path / "other") as writer:
        writer.add(1, np.full((3, 3, 4), 255, np.uint8), source=CutOutSource("x"))
    with pytest.raises(UserError, match="no cut-out that the snapshots .* know is in this pool"):
        beliefs_of(InstancePool(tmp_path / "other"), tmp_path / "run")


def test_what_a_ledger_knows(pool, tmp_path):
    ids = pool.ids(3)
    with LedgerWriter(tmp_path / "a", category_ids=[3], category_frequency=["r"]) as ledger:
        rows = scored(ids[:3], [0.1, 0.4, 0.1])
        for step in range(2):
            decision = Decision.uniform(torch.ones(3, dtype=torch.bool), "always")
            ledger.append(step, rows, decision, [1])
    beliefs = beliefs_of(pool, tmp_path / "a")
    known = np.isin(beliefs.pool_ids, ids[:3])
    values = dict(zip(beliefs.pool_ids.tolist(), beliefs.value.tolist(), strict=True))
    assert [values[i] for i in ids[:3].tolist()] == pytest.approx(
        [-(0.5**0.5), 2**0.5, -(0.5**0.5)]
    )
    assert (beliefs.value[~known] == 0).all() and (beliefs.std[~known] == 1).all()
    assert np.allclose(beliefs.std[known], 3**-0.5)


def test_a_review_as_a_program(repository, pool):
    command = [sys.executable, "-u", repository / "tools/review_pool.py", pool.root]
    command += ["--category", "ice cream", "--reviewer", "ann"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background, these tests perhaps, deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        with urllib.request.urlopen(address.replace("/?", "/next?"), timeout=300) as answer:
            state = json.load(answer)
        assert {item["category"] for item in state["items"]} == {"ice_cream"}
        content = {"pool_id": state["items"][0]["pool_id"], "verdict": "bad"}
        request = urllib.request.Request(
            address.replace("/?", "/verdict?"),
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=300).close()
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "0 good, 1 bad, 0 skipped" in out, err[-2000:]
    assert standing(pool.root) == [(int(content["pool_id"]), "ice_cream", "bad", "ann")]


def test_real_objects_and_frequencies_come_from_annotations(repository, pool, tmp_path):
    from gal_d2.commands.review_pool import build_server

    module, parsed = arguments(repository, pool.root, "--annotations", tmp_path / "a.json")
    content = {"images": [], "annotations": [], "categories": []}
    for number, (i, name, frequency) in enumerate([(3, "boot", "r"), (12, "ice_cream", "f")]):
        content["categories"].append(
            {"id": i, "name": name, "frequency": frequency, "image_count": number}
        )
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert isinstance(parsed, argparse.Namespace) and module.main
    server = build_server(parsed, pool)
    try:
        assert server.session.beliefs.frequency == {3: "r", 12: "f"}
        assert server.examples is None
        assert {item.category for item in server.session.next_items(4)} == {"boot"}
    finally:
        server.server_close()
