"""GALTrainer: detectron2's DefaultTrainer for long-tailed data with copy-paste."""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import gal_d2.modeling  # noqa: F401  (registers the ROI heads and backbones)
from gal_d2.copy_paste.augmentation import build_probe_augmentations
from gal_d2.copy_paste.mapper import CopyPasteMapper
from gal_d2.copy_paste.stream import TrainingLoader, sample_seed
from gal_d2.datasets.category_identity import dataset_names
from gal_d2.datasets.evaluation_mapper import EvaluationMapper
from gal_d2.datasets.probe import split_probe
from gal_d2.datasets.registration import require_dataset
from gal_d2.engine.checkpoint import CheckpointStore
from gal_d2.engine.ema import EMAHook, ModelEMA
from gal_d2.engine.paste_watch import PasteWatch
from gal_d2.engine.precision import autocast_dtype
from gal_d2.engine.progress import ProgressHook
from gal_d2.engine.resume import adopt_learning_rate, check_steps_left
from gal_d2.engine.snapshot_hook import CATEGORIES, SnapshotHook, Source, categories_source
from gal_d2.engine.train_step import MixedPrecisionTrainer
from gal_d2.errors import UserError
from gal_d2.evaluation.lvis_evaluation import LVISEvaluator
from gal_d2.interleaving.interleave import InterleaveHook, Interleaver, build_interleaver
from gal_d2.judging.attach import attach
from gal_d2.judging.auditions import Auditioner, AuditionHook
from gal_d2.judging.batch_judge import BatchJudge
from gal_d2.judging.judge import Judge, JudgeHook
from gal_d2.pool.configured import open_configured_pool
from gal_d2.pool.growth import pool_state
from gal_d2.pool.verdicts import PoolVerdicts
from gal_d2.review.verdict_hook import VerdictHook
from gal_d2.selection import posterior_view
from gal_d2.selection.snapshots import Snapshots
from gal_d2.setup.output_folder import refuse_earlier_results
from gal_d2.setup.start_checks import check_evaluation_sets, check_pool, load_training_dicts
from gal_d2.setup.summary import end_summary, start_summary

logger = logging.getLogger(__name__)


class GALTrainer(DefaultTrainer):
    """Trains any detectron2 detector on LVIS-format data, with or without pasted instances.

    A run is a function of its seed and its step alone: killed and resumed, it continues bit for
    bit (on CPU), with any number of loader workers.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        # A random seed is drawn once per run, and kept in its checkpoints.
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()

        # The data first: what is wrong with them is said before anything is computed.
        loader = self.build_train_loader(cfg, self.seed)
        check_evaluation_sets(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self.judge = self.build_judge(cfg, model, self.seed)
        model = wrap_in_ddp(model)
        self._trainer = MixedPrecisionTrainer(
            model,
            loader,
            optimizer,
            autocast_dtype(cfg),
            on_batch=self.judge.start_step if self.judge else None,
            on_backward=self.judge.finish_step if self.judge else None,
        )
        check_pool(cfg, self._trainer.data_loader.mapper.pool)
        if isinstance(self.judge, BatchJudge):
            self.judge.loss_scale = self._trainer.grad_scaler.get_scale
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.ema = ModelEMA(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        self.checkpointer = CheckpointStore(
            model,
            cfg,
            cfg.DATASETS.TRAIN[0],
            trainer=weakref.proxy(self),
            **({"ema": self.ema} if self.ema else {}),
            **({"judge": self.judge} if self.judge else {}),
        )
        self.interleaver = self.build_interleaver(cfg)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.eval_results: OrderedDict = OrderedDict()
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``cfg.MODEL.WEIGHTS``, or all state of the last checkpoint of the output folder.

        Raises:
            UserError: the weights are not there or do not fit; a training would start anew where an
                earlier one left its results; or an option changed that cannot on resuming.
        """
        if not resume:
            refuse_earlier_results(self.cfg.OUTPUT_DIR)
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.load_last()
            self.start_iter = self.iter + 1
        else:
            self.checkpointer.load_start(self.cfg.MODEL.WEIGHTS)
        loader = self._trainer.data_loader
        loader.start_batch = self.start_iter
        loader.seed = self.seed
        if self.judge:
            self.judge.seed = self.seed

    def state_dict(self) -> dict:
        # detectron2 0.6 leaves out the inner trainer, and with it the optimizer.
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        check_steps_left(self.iter + 1, self.max_iter)
        adopt_learning_rate(self.optimizer, self.scheduler)
        self.seed = state_dict["seed"]

    def build_hooks(self) -> list[HookBase]:
        """The hooks in their order: snapshots and checkpoints see what those before them did."""
        cfg = self.cfg
        built = [StepSeed(), hooks.IterationTimer(), hooks.LRScheduler()]
        if self.ema:
            built.append(EMAHook(self.ema))
        if self.judge:
            built.append(
                JudgeHook(
                    self.judge,
                    checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
                    picture_period=cfg.GAL.SCORER.PICTURE_PERIOD,
                    output_dir=cfg.OUTPUT_DIR,
                    image_format=cfg.INPUT.FORMAT,
                    dataset_name=cfg.DATASETS.TRAIN[0],
                )
            )
        pool = self._trainer.data_loader.mapper.pool
        if pool is not None:
            built.append(PasteWatch(str(pool.root)))
        interleave = None
        if cfg.GAL.GENERATOR.ENABLED:
            interleave = InterleaveHook(
                self.interleaver,
                self.judge,
                period=cfg.GAL.GENERATOR.PERIOD,
                checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            )
            built.append(interleave)
        draws_by_posterior = pool is not None and cfg.GAL.POOL.SAMPLER == "posterior"
        if draws_by_posterior:
            built.append(self.build_verdict_hook())
        if draws_by_posterior and cfg.GAL.AUDITION.IMAGES != 0:
            auditions = self.build_audition_hook()
            if interleave is not None:
                auditions.on_audition = interleave.note_auditions
            built.append(auditions)
        sources = self.build_snapshot_sources()
        if sources:
            built.append(
                SnapshotHook(
                    Snapshots.from_config(cfg),
                    sources,
                    checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
                )
            )
        if comm.is_main_process():
            built.append(
                hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            )
        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate))
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter(self.build_writers(), period=20))
            built.append(ProgressHook())
        return built

    def build_verdict_hook(self) -> VerdictHook:
        """What takes in the verdicts that people store in the pool."""
        return VerdictHook(
            self.judge.posterior,
            PoolVerdicts(self._trainer.data_loader.mapper.pool),
            period=self.cfg.GAL.SNAPSHOTS.PERIOD,
            output_dir=self.cfg.OUTPUT_DIR,
        )

    def build_audition_hook(self) -> AuditionHook:
        """What has cut-outs audition between steps.

        Raises:
            UserError: an option is out of range.
        """
        cfg = self.cfg
        is_growing = cfg.GAL.GENERATOR.ENABLED
        loader = self._trainer.data_loader
        model = self.model.module if comm.get_world_size() > 1 else self.model
        auditioner = Auditioner(
            cfg,
            model,
            self.judge.scorer,
            scenes=loader.dataset,
            # Of its own: the mapper's shows what samples may see.
            pool=open_configured_pool(cfg, allow_empty=is_growing),
            class_of_category=loader.mapper.class_of_category,
            augmentations=build_probe_augmentations(cfg),
        )
        interleaver = self.interleaver
        return AuditionHook(
            auditioner,
            self.judge,
            lambda: interleaver.pool if interleaver else auditioner.pool,
            period=cfg.GAL.AUDITION.PERIOD,
            images=cfg.GAL.AUDITION.IMAGES,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            is_growing=is_growing,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        )

    def build_snapshot_sources(self) -> dict[str, Source]:
        """State that changes while training and that samples depend on, by name."""
        sources: dict[str, Source] = {}
        mapper = self._trainer.data_loader.mapper
        pool = mapper.pool
        if self.cfg.GAL.GENERATOR.ENABLED:
            # Ahead of the mapper's, which samples of the last steps were drawn from.
            pool = self.interleaver.pool if self.interleaver else pool
            sources["pool"] = functools.partial(pool_state, pool)
        if self.cfg.GAL.POOL.SAMPLER == "posterior" and pool is not None:
            sources[posterior_view.SOURCE] = posterior_view.posterior_source(
                self.judge.posterior.take_changes
            )
        if sources:
            sources[CATEGORIES] = categories_source(dataset_names(self.cfg.DATASETS.TRAIN[0]))
        return sources

    def train(self) -> OrderedDict | None:
        """Train from ``start_iter`` on; the metrics of the last evaluation, if there was one.

        Raises:
            UserError: instances are to be generated while training, and something lacks for it.
        """
        if self.interleaver:
            self.interleaver.start()
        loader = self._trainer.data_loader
        if comm.is_main_process():
            logger.info(
                "Training:\n%s",
                start_summary(
                    self.cfg,
                    num_images=len(loader.dataset),
                    pool=loader.mapper.pool,
                    start_iter=self.start_iter,
                ),
            )
        results = super().train()
        if comm.is_main_process():
            logger.info("%s", end_summary(self.cfg.OUTPUT_DIR))
        return results

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the model has its average weights, where ``SOLVER.EMA`` keeps them."""
        return self.ema.applied() if self.ema else contextlib.nullcontext()

    def evaluate(self) -> OrderedDict:
        """Metrics of the current model (its average, if there is one) on ``cfg.DATASETS.TEST``."""
        with self.averaged_weights():
            self.eval_results = self.test(self.cfg, self.model)
        return self.eval_results

    @property
    def last_batch(self) -> list[dict]:
        """The samples of the last step, as the mapper made them."""
        return self._trainer.last_batch

    @classmethod
    def build_judge(cls, cfg: CfgNode, model: nn.Module, seed: int) -> Judge | None:
        """What accepts and rejects pasted instances; None with ``GAL.SCORER.ENABLED`` off.

        Raises:
            UserError: the model cannot be scored, or an option is out of range.
        """
        return attach(model, cfg, seed=seed)

    @classmethod
    def build_interleaver(cls, cfg: CfgNode) -> Interleaver | None:
        """What draws new instances; None with ``GAL.GENERATOR.ENABLED`` off, and beside rank 0.

        Raises:
            UserError: an option makes no sense, or the pool cannot be read.
        """
        if not cfg.GAL.GENERATOR.ENABLED or not comm.is_main_process():
            return None
        return build_interleaver(cfg)

    @classmethod
    def load_model(cls, cfg: CfgNode, resume: bool = False, split: str = "TRAIN") -> nn.Module:
        """The model with ``cfg.MODEL.WEIGHTS`` (with ``resume``: those of the last checkpoint).

        With ``SOLVER.EMA.ENABLED``, with the average of weights where the checkpoint has one.

        Args:
            cfg: the whole config.
            resume: prefer the last checkpoint of the output folder, if there is one.
            split: of ``cfg.DATASETS``, "TRAIN" or "TEST": whose classes the model is to have.

        Raises:
            UserError: no weights are named, they are not there, do not fit, or have other classes.
        """
        model = cls.build_model(cfg)
        ema = ModelEMA(model, cfg.SOLVER.EMA.DECAY)
        kept = {"ema": ema} if cfg.SOLVER.EMA.ENABLED else {}
        checkpointer = CheckpointStore(model, cfg, cfg.DATASETS[split][0], **kept)
        if resume and checkpointer.has_checkpoint():
            checkpointer.load_last(list(kept))
        else:
            checkpointer.load_trained(cfg.MODEL.WEIGHTS, list(kept))
        ema.copy_to_model()
        return model

    @classmethod
    def evaluate_checkpoint(cls, cfg: CfgNode, resume: bool = False) -> OrderedDict:
        """Metrics of the model that :meth:`load_model` gives."""
        check_evaluation_sets(cfg)
        return cls.test(cfg, wrap_in_ddp(cls.load_model(cfg, resume, split="TEST")))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, seed: int) -> TrainingLoader:
        """The training stream of this process.

        Raises:
            UserError: a data set of ``cfg.DATASETS.TRAIN`` is not there, or the batch size does
                not divide among the processes.
        """
        world_size = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes "
                f"cannot share: make it a multiple of {world_size}."
            )
        dicts = load_training_dicts(cfg)
        dicts, probe = split_probe(cfg, dicts)
        return TrainingLoader(
            DatasetFromList(dicts, copy=False),
            CopyPasteMapper(cfg, dataset_dicts=dicts, probe_dicts=probe),
            training_order(cfg, dicts),
            seed=seed,
            batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
            is_wide=np.array([d["width"] > d["height"] for d in dicts])
            if cfg.DATALOADER.ASPECT_RATIO_GROUPING
            else None,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """``cfg.SOLVER.OPTIMIZER`` with detectron2's parameter groups and gradient clipping."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise UserError(f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}': choose SGD or ADAMW.")
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> LVISEvaluator:
        return LVISEvaluator(
            dataset_name,
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            output_dir=f"{cfg.OUTPUT_DIR}/inference",
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """The images of a data set in their order, each once."""
        return build_detection_test_loader(cfg, dataset_name, mapper=EvaluationMapper(cfg))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        for name in cfg.DATASETS.TEST:
            require_dataset(name)
        dtype = autocast_dtype(cfg)
        device_type = next(model.parameters()).device.type
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            return super().test(cfg, model, evaluators)


class StepSeed(HookBase):
    """Seeds the global generators before each step with (run's seed, step, rank).

    The proposal sampling inside detectron2's models draws from torch's global generator; seeded
    so, a resumed run draws what the uninterrupted one would have, and no state is needed.
    """

    def before_step(self) -> None:
        position = self.trainer.iter * comm.get_world_size() + comm.get_rank()
        seed_all_rng(sample_seed(self.trainer.seed + 1, position) % 2**31)


def training_order(cfg: CfgNode, dicts: list[dict]) -> Callable[[int], Iterable[int]]:
    """What gives, from a seed, the endless order of dataset indices for this process.

    Uniform or by repeat factor. It does not keep ``dicts``: as Python objects, LVIS's annotations
    take several times the memory that they take serialised.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        size = len(dicts)
        return lambda seed: TrainingSampler(size, seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is '{name}': choose TrainingSampler or "
        "RepeatFactorTrainingSampler."
    )


def wrap_in_ddp(model: nn.Module) -> nn.Module:
    """DistributedDataParallel where there are several processes, on GPUs or on the CPU."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
        broadcast_buffers=False,
    )
