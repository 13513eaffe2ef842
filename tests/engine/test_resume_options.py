"""Options that change when a run is resumed: each row of the table in docs/resume.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from small_model import FROM_SCRATCH, SMALL_MODEL
from torch import nn

from gal_d2.engine.resume import (
    adopt_learning_rate,
    changed_options,
    check_options,
    check_steps_left,
    load_optimizer_state,
    refusal,
)
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.setup.configuration import load_config

# As the table's rows change them.
PLAIN = [
    *("SEED", "11", "SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
    *("SOLVER.BASE_LR", "0.02", "SOLVER.AMP.ENABLED", "False", "SOLVER.EMA.ENABLED", "False"),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.MOMENTUM", "0.9"),
]
CHECKPOINT = "the checkpoint c.pth"
# By row of the table: options, and another value of each.
TAKES_EFFECT = {
    "learning rate": [("SOLVER.BASE_LR", 1e-4)],
    "schedule": [
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("SOLVER.STEPS", (7,)),
        ("SOLVER.GAMMA", 0.5),
        ("SOLVER.WARMUP_ITERS", 5),
        ("SOLVER.WARMUP_FACTOR", 0.5),
    ],
    "length": [("SOLVER.MAX_ITER", 99)],
    "momentum, weight decay, clipping": [
        ("SOLVER.MOMENTUM", 0.5),
        ("SOLVER.WEIGHT_DECAY", 0.5),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
    ],
    "batch size": [("SOLVER.IMS_PER_BATCH", 4)],
    "precision": [("SOLVER.AMP.ENABLED", True), ("SOLVER.AMP.DTYPE", "bfloat16")],
    "average of weights": [("SOLVER.EMA.ENABLED", True), ("SOLVER.EMA.DECAY", 0.5)],
    "data": [
        ("DATASETS.TRAIN", ("other",)),
        ("GAL.DATA.TRAIN", ("other.json", "images")),
        ("DATASETS.TEST", ("other",)),
        ("GAL.DATA.VAL", ("other.json", "images")),
    ],
    "loading and augmentation": [
        ("DATALOADER.NUM_WORKERS", 9),
        ("DATALOADER.REPEAT_THRESHOLD", 0.5),
        ("INPUT.MIN_SIZE_TRAIN", (99,)),
        ("GAL.DATA.LSJ.IMAGE_SIZE", 99),
    ],
    "pasting": [("GAL.COPY_PASTE.MAX_PASTES", 2), ("GAL.COPY_PASTE.ENABLED", False)],
    "allowed cut-outs": [("GAL.POOL.ALLOW_LIST", "list.parquet")],
    "draw from the posterior, auditions, likeness": [
        ("GAL.POOL.CANDIDATES", 5),
        ("GAL.POOL.BEST", 1),
        ("GAL.POOL.TEMPERATURE", 0.1),
        ("GAL.AUDITION.IMAGES", 0.9),
        ("GAL.AUDITION.PERIOD", 9),
        ("GAL.LIKENESS.TIMM", "resnet10t"),
        ("GAL.LIKENESS.WEIGHT", 0.5),
    ],
    "generator": [("GAL.GENERATOR.ENABLED", True), ("GAL.GENERATOR.PERIOD", 9)],
    "scoring on or off": [("GAL.SCORER.ENABLED", False), ("GAL.SCORER.PICTURE_PERIOD", 9)],
    "acceptance": [("GAL.ACCEPT.POLICY", "quantile"), ("GAL.ACCEPT.RATE", 0.25)],
    "sampling of proposals, thresholds, device": [
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", 9),
        ("MODEL.DEVICE", "cuda"),
    ],
    "evaluation, checkpoints": [("TEST.EVAL_PERIOD", 9), ("SOLVER.CHECKPOINT_PERIOD", 9)],
}
REFUSED = {
    "seed": [("SEED", 12)],
    "optimizer": [
        ("SOLVER.OPTIMIZER", "ADAMW"),
        ("SOLVER.BIAS_LR_FACTOR", 2.0),
        ("SOLVER.WEIGHT_DECAY_NORM", 0.5),
        ("SOLVER.WEIGHT_DECAY_BIAS", 0.5),
    ],
    "model": [
        ("MODEL.WEIGHTS", "other.pth"),
        ("MODEL.BACKBONE.FREEZE_AT", 2),
        ("MODEL.RESNETS.DEPTH", 50),
        ("MODEL.MASK_ON", False),
    ],
    "pool": [("GAL.POOL.ROOT", "another/pool")],
    "sampler of the pool, snapshots": [
        ("GAL.POOL.SAMPLER", "another"),
        ("GAL.SNAPSHOTS.PERIOD", 9),
        ("GAL.SNAPSHOTS.LAG", 9),
    ],
    "posterior": [("GAL.POSTERIOR.SIGNALS", ["score"]), ("GAL.POSTERIOR.WEIGHTS", [2.0, 0.5])],
    "score": [
        ("GAL.SCORER.HEADS", ["box"]),
        ("GAL.SCORER.SCORE_WEIGHTS", [0.5, 0.5]),
        ("GAL.SCORER.PROJECTION", 8),
        ("GAL.SCORER.SEED", 7),
    ],
    "unit of decisions": [("GAL.ACCEPT.UNIT", "batch")],
}


def rows(table: dict[str, list]) -> list:
    return [
        pytest.param(key, value, id=f"{row}: {key}") for row, pairs in table.items()
        for key, value in pairs
    ]  # fmt: skip


@pytest.fixture
def cfg(repository: Path) -> CfgNode:
    """Of a run with scoring."""
    return load_config(
        str(repository / "configs/lvis_gal.yaml"), [*SMALL_MODEL, *FROM_SCRATCH, *PLAIN]
    )


def with_option(cfg: CfgNode, key: str, value: object) -> CfgNode:
    changed = cfg.clone()
    changed.defrost()
    node = changed
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    assert node[last] != value
    node[last] = value
    return changed


@pytest.mark.parametrize(("key", "value"), rows(TAKES_EFFECT))
def test_this_takes_effect_and_is_said(cfg: CfgNode, key: str, value: object, caplog):
    changed = with_option(cfg, key, value)
    check_options(cfg.dump(), changed, CHECKPOINT)
    (line,) = [record.message for record in caplog.records]
    assert f"{key} " in line and "take effect" in line and "(was " in line


@pytest.mark.parametrize(("key", "value"), rows(REFUSED))
def test_this_is_refused(cfg: CfgNode, key: str, value: object):
    with pytest.raises(UserError, match=rf"{key} is .*c.pth was made with .*another OUTPUT_DIR"):
        check_options(cfg.dump(), with_option(cfg, key, value), CHECKPOINT)


def test_the_table_in_the_docs_is_this_one(repository: Path):
    text = (repository / "docs/resume.md").read_text()
    found: dict[str, dict[str, set[str]]] = {"takes effect": {}, "refused": {}}
    for row, options, what in re.findall(r"^\| ([^|]+) \| (`[^|]+`) \| ([^|]+) \|", text, re.M):
        found[re.split(" *[:;,]", what.strip())[0]][row] = set(
            re.findall(r"`([A-Z][^`]*)`", options)
        )
    for what, table in (("takes effect", TAKES_EFFECT), ("refused", REFUSED)):
        assert found[what].keys() == table.keys()
        for row, pairs in table.items():
            for key, _ in pairs:
                covered = [k for k in found[what][row] if key == k or key.startswith(f"{k}.")]
                assert covered, f"{row}: {key} is not among {found[what][row]}"


def test_nothing_changed_says_nothing(cfg: CfgNode, caplog):
    check_options(cfg.dump(), cfg.clone(), CHECKPOINT)
    moved = with_option(cfg, "OUTPUT_DIR", "elsewhere")
    check_options(cfg.dump(), moved, CHECKPOINT)
    check_options(cfg.dump(), with_option(cfg, "SEED", -1), CHECKPOINT)  # whichever it was
    assert not [r for r in caplog.records if "SEED" not in r.message]


def test_a_checkpoint_without_options_warns(cfg: CfgNode, caplog):
    check_options(None, cfg, CHECKPOINT)
    assert "c.pth does not say which options" in caplog.text


def test_keys_of_another_release_are_not_compared(cfg: CfgNode):
    assert changed_options("GAL: {OLD_KEY: 3}\nSEED: 11", cfg) == {}
    assert changed_options("GAL: {OLD_KEY: 3}\nSEED: 4", cfg) == {"SEED": (4, 11)}


def test_how_a_pool_is_written_does_not_matter(cfg: CfgNode, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.GAL.POOL.ROOT = "pools/p"
    same = with_option(cfg, "GAL.POOL.ROOT", str(tmp_path / "pools" / "p"))
    assert changed_options(cfg.dump(), same) == {}


def test_scoring_that_starts_now_may_be_of_any_kind(cfg: CfgNode):
    cfg.GAL.SCORER.ENABLED = False
    scored = with_option(cfg, "GAL.SCORER.ENABLED", True)
    scored.GAL.SCORER.PROJECTION = 8
    check_options(cfg.dump(), scored, CHECKPOINT)


def test_the_nearest_rule_counts():
    assert refusal("MODEL.ROI_HEADS.NMS_THRESH_TEST") is None
    assert refusal("MODEL.ROI_BOX_HEAD.FC_DIM") == refusal("MODEL")
    assert refusal("GAL.SCORER.NEW_KEY") and refusal("GAL.NEW_KEY") is None


def test_the_end_lies_ahead():
    check_steps_left(40, 40)  # finished: it evaluates again
    with pytest.raises(UserError, match="MAX_ITER is 21, but the checkpoint has done 40 steps"):
        check_steps_left(40, 21)


# -- The optimizer


def make(cfg: CfgNode, **options):
    for key, value in options.items():
        cfg.SOLVER[key] = value
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = GALTrainer.build_optimizer(cfg, model)
    return model, optimizer, build_lr_scheduler(cfg, optimizer)


def step(model, optimizer, scheduler, count: int) -> None:
    for number in range(count):
        optimizer.zero_grad()
        model(torch.linspace(-1, number, 12).reshape(4, 3)).sum().backward()
        optimizer.step()
        scheduler.step()


SCHEDULE = {
    "MAX_ITER": 40, "STEPS": (), "WARMUP_ITERS": 4, "BASE_LR": 0.02, "MOMENTUM": 0.9
}  # fmt: skip


def resumed(cfg: CfgNode, done: int = 10, **options):
    """As after ``done`` steps, with other options from there on."""
    model, optimizer, scheduler = make(cfg, **SCHEDULE)
    step(model, optimizer, scheduler, done)
    states = model.state_dict(), optimizer.state_dict(), scheduler.state_dict()
    states = torch.utils._pytree.tree_map(
        lambda x: x.clone() if isinstance(x, torch.Tensor) else x, states
    )
    again = make(cfg, **options)
    for part, state in zip(again, states, strict=True):
        if isinstance(part, torch.optim.Optimizer):
            load_optimizer_state(part, state)
        else:
            part.load_state_dict(state)
    adopt_learning_rate(*again[1:])
    return (model, optimizer, scheduler), again


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
@pytest.mark.parametrize("done", [2, 10, 40])
def test_unchanged_it_goes_on_bit_for_bit(cfg: CfgNode, optimizer: str, done: int):
    cfg.SOLVER.OPTIMIZER = optimizer
    before, after = resumed(cfg, done)
    assert [g["lr"] for g in before[1].param_groups] == [g["lr"] for g in after[1].param_groups]
    if done < 40:
        step(*before, 3)
        step(*after, 3)
    for first, second in zip(before[0].parameters(), after[0].parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({"BASE_LR": 0.001}, 0.001),
        ({"STEPS": (6, 20), "GAMMA": 0.1}, 0.002),  # one of the two lies behind
        ({"WARMUP_ITERS": 20, "WARMUP_METHOD": "linear", "WARMUP_FACTOR": 0.0}, 0.01),
        ({"MAX_ITER": 80, "BASE_LR": 0.5}, 0.5),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "MAX_ITER": 20}, 0.01),
    ],
)
def test_the_learning_rate_is_that_of_now(cfg: CfgNode, options: dict, rate: float):
    _, (model, optimizer, scheduler) = resumed(cfg, **options)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    assert scheduler.get_last_lr()[0] == pytest.approx(rate)
    assert scheduler.last_epoch == 10
    step(model, optimizer, scheduler, 1)
    assert scheduler.last_epoch == 11 and len(optimizer.state) > 0


def test_momentum_and_decay_are_those_of_now(cfg: CfgNode):
    (_, before, _), (_, after, _) = resumed(cfg, MOMENTUM=0.5, WEIGHT_DECAY=0.25)
    assert {g["momentum"] for g in after.param_groups} == {0.5}
    assert max(g["weight_decay"] for g in after.param_groups) == 0.25
    buffers = [
        [state["momentum_buffer"] for state in optimizer.state.values()]
        for optimizer in (before, after)
    ]
    assert all(torch.equal(*pair) for pair in zip(*buffers, strict=True))  # what it remembers stays


def test_other_groups_of_parameters_are_a_sentence():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    other = torch.optim.SGD([{"params": [p]} for p in nn.Linear(2, 2).parameters()], lr=0.1)
    with pytest.raises(UserError, match="other groups of parameters .*another OUTPUT_DIR"):
        load_optimizer_state(optimizer, other.state_dict())


# -- In the trainer


def test_a_run_goes_on_with_changed_options_or_stops(train, lvis_root: Path, tmp_path: Path):
    """One training, as tools/train_net.py starts it, and what may come after it."""
    options = [
        *("OUTPUT_DIR", str(tmp_path), "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
        *("SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.WARMUP_ITERS", "0"),
    ]
    train(lvis_root, "lvis_gal", *options, "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.002")
    ledger = {path: path.read_bytes() for path in (tmp_path / "ledger").glob("*.parquet")}
    assert ledger
    with pytest.raises(UserError, match="has the results of an earlier training"):
        train(lvis_root, "lvis_gal", *options, "SOLVER.MAX_ITER", "2")
    for change, sentence in (
        (("SOLVER.MAX_ITER", "1"), "the checkpoint has done 2 steps"),
        (("SEED", "12"), "SEED is 12, but the checkpoint .* was made with 11"),
        (("GAL.SCORER.PROJECTION", "8"), "GAL.SCORER.PROJECTION is 8"),
        (("MODEL.ROI_BOX_HEAD.FC_DIM", "16"), "MODEL.ROI_BOX_HEAD.FC_DIM is 16"),
    ):
        with pytest.raises(UserError, match=sentence):
            train(lvis_root, "lvis_gal", *options, "SOLVER.MAX_ITER", "2", *change, resume=True)
    assert ledger == {path: path.read_bytes() for path in (tmp_path / "ledger").glob("*.parquet")}
    trainer = train(
        *(lvis_root, "lvis_gal", *options, "SOLVER.MAX_ITER", "3", "SOLVER.BASE_LR", "0.0005"),
        resume=True,
    )
    assert trainer.start_iter == 2 and ledger.keys() < set((tmp_path / "ledger").glob("*.parquet"))
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0005}
    checkpoint = torch.load(tmp_path / "model_final.pth", map_location="cpu")
    assert {g["lr"] for g in checkpoint["trainer"]["_trainer"]["optimizer"]["param_groups"]} == {
        0.0005
    }
