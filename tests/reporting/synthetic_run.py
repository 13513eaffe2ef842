"""A run's folder made by hand: metrics, categories, ledger, auditions, snapshots and a pool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from scored import scored

from gal_d2.generation.journal import FOLDER
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.posterior_view import posterior_source
from gal_d2.selection.snapshots import Snapshots

STEPS = 48


def make_pool(
    root: Path, names: Sequence[str], per_category: int = 6, seed: int = 0
) -> InstancePool:
    """Small squares of colours of their own; category ids are 1, 2, ..."""
    rng = np.random.default_rng(seed)
    with PoolWriter(root, names=dict(enumerate(names, 1))) as writer:
        for category_id in range(1, len(names) + 1):
            for number in range(per_category):
                rgba = np.zeros((12, 10, 4), np.uint8)
                rgba[2:-2, 2:-2] = (*rng.integers(0, 255, 3), 255)
                rgba[3, 3, :3] = 255  # one colour alone cannot be pasted
                writer.add(category_id, rgba, source=CutOutSource("test", prompt="a", seed=number))
    return InstancePool(root)


def write_metrics(folder: Path, ap: float) -> None:
    """Two evaluations, losses and times, and a line that a kill cut off."""
    lines = []
    for step in range(12, STEPS + 1, 12):
        values = {"iteration": step - 1, "time": 0.5, "data_time": 0.1, "gal/time_share": 0.25}
        if step % 24 == 0:
            for task, above in (("bbox", 0.0), ("segm", 2.0)):
                for number, metric in enumerate(("AP", "APr", "APc", "APf")):
                    values[f"{task}/{metric}"] = ap + above + number + step / 10
                values[f"{task}/APl"] = float("nan")
        lines.append(json.dumps(values))
    (folder / "metrics.json").write_text("\n".join(lines) + '\n{"iteration": 59, "time": 0.')


def write_categories(folder: Path, names: Sequence[str], ap: float) -> None:
    (folder / "inference").mkdir(parents=True)
    rows = ["category_id,name,frequency,train_images,instances,bbox_AP,segm_AP"]
    for i, name in enumerate(names, 1):
        quoted = '"' + name.replace('"', '""') + '"'
        rows.append(f"{i},{quoted},{'rcf'[i % 3]},{i * 5},3,{ap + i % 7:.4f},{ap + i % 5:.4f}")
    (folder / "inference/per_category_ap.csv").write_text("\n".join(rows) + "\n")


def write_ledgers(folder: Path, pool: InstancePool, names: Sequence[str]) -> None:
    """In each step, each category's cut-outs in turn; the odd ones (by row) score below 0."""
    categories = pool.category_ids
    arguments = {
        "category_ids": categories.tolist(),
        "category_frequency": ["rcf"[i % 3] for i in categories.tolist()],
        "category_names": names,
    }
    rng = np.random.default_rng(1)
    ids = np.stack([pool.ids(int(i)) for i in categories])
    for name, every in (("ledger", 1), ("auditions", 8)):
        with LedgerWriter(folder / name, **arguments) as writer:
            for step in range(0, STEPS, every):
                number = step // every % ids.shape[1]
                scores = rng.normal(0.5 if number % 2 == 0 else -0.5, 0.2, len(ids))
                accept = torch.ones(len(ids), dtype=torch.bool)
                accept[0] = step < STEPS // 2
                writer.append(
                    step,
                    scored(ids[:, number], scores, gt_class=np.arange(len(ids))),
                    Decision.uniform(accept, "always"),
                    [1],
                )


def write_snapshot(folder: Path, pool: InstancePool) -> None:
    """One: the second half of each category's cut-outs is good, and much is known of all."""
    ids = pool.all_ids()
    mean = np.zeros((len(ids), 2), np.float32)
    for category_id in pool.category_ids.tolist():
        own = pool.ids(category_id)
        mean[np.searchsorted(ids, own), 0] = np.where(np.arange(len(own)) < len(own) // 2, -1, 1)
    arrays = {
        "pool_ids": ids,
        "weight": np.full_like(mean, 10.0 * STEPS),
        "mean": mean,
        "step": np.array(STEPS - 1),
        "prior_count": np.array(0.5),
        "weights": np.array([1.0, 0.5]),
        "ceilings": np.array([100.0, 1.0]),
    }
    state = posterior_source(lambda everything: arrays)(0)
    Snapshots(folder / "snapshots", period=10).write(
        4, {f"posterior.{name}": array for name, array in state.items()}
    )


def write_truth(pool: InstancePool) -> Path:
    """The second half of each category's cut-outs is good."""
    ids = pool.all_ids()
    kind = np.full(len(ids), "wrong_object", dtype=object)
    for category_id in pool.category_ids.tolist():
        own = pool.ids(category_id)
        kind[np.searchsorted(ids, own[len(own) // 2 :])] = "good"
    path = pool.root.parent / "pool_truth.parquet"
    table = {"pool_id": ids, "kind": kind.tolist(), "ambiguous": np.zeros(len(ids), bool)}
    pq.write_table(pa.table(table), path)
    return path


def write_journal(pool: InstancePool) -> None:
    outcomes = [
        {
            "category_id": 1 + n % 2,
            "index": n,
            "template": "a <photo> of a {name}",
            "prompt": "a photo",
            "seed": n,
            "pool_id": int(pool.ids(1)[0]) if n == 0 else None,
            "reason": "" if n == 0 else "area",
            "scores": {},
        }
        for n in range(4)
    ]
    (pool.root / FOLDER).mkdir()
    line = json.dumps({"recipe": "r", "categories": {"1": "bun"}, "outcomes": outcomes})
    (pool.root / FOLDER / "1.jsonl").write_text(line + "\n" + line[:30])


def make_run(
    folder: Path, names: Sequence[str], pool: InstancePool | None, *, ap: float = 40.0, **config
) -> Path:
    """All that a training with a posterior leaves; without a pool, what one without pastes does."""
    folder.mkdir(parents=True)
    tree = {
        "SOLVER": {"MAX_ITER": STEPS, "IMS_PER_BATCH": 2},
        "DATASETS": {"TRAIN": ["some_train"]},
        "GAL": {"POOL": {"ROOT": str(pool.root) if pool else ""}, "SCORER": {"SEED": 0}, **config},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    write_metrics(folder, ap)
    write_categories(folder, names, ap)
    if pool is not None:
        write_ledgers(folder, pool, names)
        write_snapshot(folder, pool)
    return folder
