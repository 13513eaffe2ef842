"""What a training does beside its steps, as hooks in their order."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from gal_d2.copy_paste.augmentation import build_probe_augmentations
from gal_d2.copy_paste.stream import sample_seed
from gal_d2.datasets.category_identity import dataset_names
from gal_d2.engine.ema import EMAHook
from gal_d2.engine.key_figures import KeyFiguresHook
from gal_d2.engine.key_pictures import KeyPicturesHook
from gal_d2.engine.paste_watch import PasteWatch
from gal_d2.engine.progress import ProgressHook
from gal_d2.engine.report_hook import ReportHook
from gal_d2.engine.snapshot_hook import CATEGORIES, SnapshotHook, Source, categories_source
from gal_d2.interleaving.hook import InterleaveHook
from gal_d2.judging.auditions import Auditioner, AuditionHook
from gal_d2.judging.judge_hook import JudgeHook
from gal_d2.judging.likeness import (
    LIKENESS_FILE,
    LikenessFile,
    LikenessHook,
    build_likeness,
    made_with,
)
from gal_d2.pool.configured import open_configured_pool
from gal_d2.pool.growth import pool_state
from gal_d2.pool.verdicts import PoolVerdicts
from gal_d2.review.verdict_hook import VerdictHook
from gal_d2.selection import posterior_view
from gal_d2.selection.sampler import category_weights
from gal_d2.selection.snapshots import Snapshots

if TYPE_CHECKING:
    from gal_d2.engine.trainer import GALTrainer


def build_hooks(trainer: GALTrainer) -> list[HookBase]:
    """The hooks in their order: snapshots and checkpoints see what those before them did."""
    cfg = trainer.cfg
    built = [StepSeed(), hooks.IterationTimer(), hooks.LRScheduler()]
    if trainer.ema:
        built.append(EMAHook(trainer.ema))
    if trainer.judge:
        built.append(
            JudgeHook(
                trainer.judge,
                checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
                picture_period=cfg.GAL.SCORER.PICTURE_PERIOD,
                output_dir=cfg.OUTPUT_DIR,
                image_format=cfg.INPUT.FORMAT,
                dataset_name=cfg.DATASETS.TRAIN[0],
            )
        )
    pool = trainer._trainer.data_loader.mapper.pool
    if pool is not None:
        built.append(PasteWatch(str(pool.root)))
    interleave = None
    if cfg.GAL.GENERATOR.ENABLED:
        interleave = InterleaveHook(
            trainer.interleaver,
            trainer.judge,
            period=cfg.GAL.GENERATOR.PERIOD,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        )
        built.append(interleave)
    draws_by_posterior = pool is not None and cfg.GAL.POOL.SAMPLER == "posterior"
    if draws_by_posterior:
        built.append(
            VerdictHook(
                trainer.judge.posterior,
                PoolVerdicts(pool),
                period=cfg.GAL.SNAPSHOTS.PERIOD,
                output_dir=cfg.OUTPUT_DIR,
            )
        )
    if draws_by_posterior and trainer.judge.posterior.has_likeness:
        built.append(build_likeness_hook(trainer))
    auditions = None
    if draws_by_posterior and cfg.GAL.AUDITION.IMAGES != 0:
        auditions = build_audition_hook(trainer)
        if interleave is not None:
            auditions.on_audition = interleave.note_auditions
        built.append(auditions)
    sources = build_snapshot_sources(trainer)
    if sources:
        built.append(
            SnapshotHook(
                Snapshots.from_config(cfg),
                sources,
                checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            )
        )
    if comm.is_main_process():
        built.append(hooks.PeriodicCheckpointer(trainer.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
    built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, trainer.evaluate))
    if comm.is_main_process():
        if trainer.judge:
            built.append(KeyFiguresHook(trainer.judge))
        built.append(build_key_pictures(trainer, auditions))
        built.append(hooks.PeriodicWriter(trainer.build_writers(), period=20))
        built.append(ProgressHook())
        built.append(ReportHook(cfg.OUTPUT_DIR))
    return built


def build_key_pictures(trainer: GALTrainer, auditions: AuditionHook | None) -> KeyPicturesHook:
    """What draws pictures of the run."""
    cfg, mapper = trainer.cfg, trainer._trainer.data_loader.mapper
    return KeyPicturesHook(
        MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes,
        cfg.INPUT.FORMAT,
        posterior=trainer.judge.posterior if trainer.judge and mapper.pool is not None else None,
        pool=lambda: trainer.interleaver.pool if trainer.interleaver else mapper.pool,
        class_of_category=mapper.class_of_category,
        auditions=auditions,
    )


def build_likeness_hook(trainer: GALTrainer) -> LikenessHook:
    """What compares cut-outs with real objects.

    Raises:
        UserError: the weight file cannot be read.
    """
    cfg, loader, interleaver = trainer.cfg, trainer._trainer.data_loader, trainer.interleaver
    class_of = loader.mapper.class_of_category
    reader = open_configured_pool(cfg, allow_empty=cfg.GAL.GENERATOR.ENABLED)
    return LikenessHook(
        trainer.judge.posterior,
        lambda: interleaver.pool if interleaver else reader,
        reader,
        lambda: build_likeness(cfg, loader.dataset, class_of),
        LikenessFile(Path(cfg.OUTPUT_DIR) / LIKENESS_FILE, made_with(cfg, class_of)),
        period=cfg.GAL.SNAPSHOTS.PERIOD,
    )


def build_audition_hook(trainer: GALTrainer) -> AuditionHook:
    """What has cut-outs audition between steps.

    Raises:
        UserError: an option is out of range.
    """
    cfg = trainer.cfg
    is_growing = cfg.GAL.GENERATOR.ENABLED
    loader = trainer._trainer.data_loader
    model = trainer.model.module if comm.get_world_size() > 1 else trainer.model
    auditioner = Auditioner(
        cfg,
        model,
        trainer.judge.scorer,
        scenes=loader.dataset,
        # Of its own: the mapper's shows what samples may see.
        pool=open_configured_pool(cfg, allow_empty=is_growing),
        class_of_category=loader.mapper.class_of_category,
        augmentations=build_probe_augmentations(cfg),
    )
    interleaver = trainer.interleaver
    return AuditionHook(
        auditioner,
        trainer.judge,
        lambda: interleaver.pool if interleaver else auditioner.pool,
        period=cfg.GAL.AUDITION.PERIOD,
        images=cfg.GAL.AUDITION.IMAGES,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        weight=category_weights(cfg),
        is_growing=is_growing,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
    )


def build_snapshot_sources(trainer: GALTrainer) -> dict[str, Source]:
    """State that changes while training and that samples depend on, by name."""
    sources: dict[str, Source] = {}
    mapper = trainer._trainer.data_loader.mapper
    pool = mapper.pool
    if trainer.cfg.GAL.GENERATOR.ENABLED:
        # Ahead of the mapper's, which samples of the last steps were drawn from.
        pool = trainer.interleaver.pool if trainer.interleaver else pool
        sources["pool"] = functools.partial(pool_state, pool)
    if trainer.cfg.GAL.POOL.SAMPLER == "posterior" and pool is not None:
        sources[posterior_view.SOURCE] = posterior_view.posterior_source(
            trainer.judge.posterior.take_changes
        )
    if sources:
        sources[CATEGORIES] = categories_source(dataset_names(trainer.cfg.DATASETS.TRAIN[0]))
    return sources


class StepSeed(HookBase):
    """Seeds the global generators before each step with (run's seed, step, rank).

    The proposal sampling inside detectron2's models draws from torch's global generator; seeded
    so, a resumed run draws what the uninterrupted one would have, and no state is needed.
    """

    def before_step(self) -> None:
        position = self.trainer.iter * comm.get_world_size() + comm.get_rank()
        seed_all_rng(sample_seed(self.trainer.seed + 1, position) % 2**31)
