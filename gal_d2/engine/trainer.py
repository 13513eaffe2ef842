"""GALTrainer: detectron2's DefaultTrainer for long-tailed data with copy-paste."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

import gal_d2.modeling  # noqa: F401  (registers the ROI heads and backbones)
from gal_d2.datasets.registration import require_dataset
from gal_d2.engine.build_hooks import build_hooks
from gal_d2.engine.checkpoint import CheckpointStore
from gal_d2.engine.ema import ModelEMA
from gal_d2.engine.loaders import build_test_loader, build_train_loader
from gal_d2.engine.model import load_trained, wrap_in_ddp
from gal_d2.engine.optimizer import build_optimizer
from gal_d2.engine.precision import autocast_dtype
from gal_d2.engine.resume import adopt_learning_rate, check_steps_left
from gal_d2.engine.train_step import MixedPrecisionTrainer
from gal_d2.engine.wandb_writer import WandbWriter
from gal_d2.evaluation.lvis_evaluation import LVISEvaluator
from gal_d2.interleaving.build import build_interleaver
from gal_d2.judging.attach import attach
from gal_d2.judging.batch_judge import BatchJudge
from gal_d2.judging.judge import Judge
from gal_d2.setup.output_folder import refuse_earlier_results
from gal_d2.setup.start_checks import check_evaluation_sets, check_pool
from gal_d2.setup.summary import end_summary, start_summary

logger = logging.getLogger(__name__)


class GALTrainer(DefaultTrainer):
    """Trains any detectron2 detector on LVIS-format data, with or without pasted instances.

    A run is a function of its seed and its step alone: killed and resumed, it continues bit for
    bit (on CPU), with any number of loader workers.
    """

    # A subclass may override these, as detectron2's.
    build_hooks = build_hooks
    build_train_loader = staticmethod(build_train_loader)
    build_test_loader = staticmethod(build_test_loader)
    build_optimizer = staticmethod(build_optimizer)
    build_interleaver = staticmethod(build_interleaver)

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
        state = {"trainer": weakref.proxy(self), "ema": self.ema, "judge": self.judge}
        state = {name: part for name, part in state.items() if part is not None}
        self.checkpointer = CheckpointStore(model, cfg, cfg.DATASETS.TRAIN[0], **state)
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

    def train(self) -> OrderedDict | None:
        """Train from ``start_iter`` on; the metrics of the last evaluation, if there was one.

        Raises:
            UserError: instances are to be generated while training, and something lacks for it.
        """
        if self.interleaver:
            self.interleaver.start()
        if comm.is_main_process():
            loader, first = self._trainer.data_loader, self.start_iter
            num_images, pool = len(loader.dataset), loader.mapper.pool
            summary = start_summary(self.cfg, num_images=num_images, pool=pool, start_iter=first)
            logger.info("Training:\n%s", summary)
        results = super().train()
        if comm.is_main_process():
            logger.info("%s", end_summary(self.cfg.OUTPUT_DIR))
        return results

    def build_writers(self) -> list[EventWriter]:
        """detectron2's, and that to Weights & Biases where ``GAL.WANDB`` asks for it."""
        writers = super().build_writers()
        return [WandbWriter(self.cfg), *writers] if self.cfg.GAL.WANDB else writers

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
        """What :func:`attach` gives; None with ``GAL.SCORER.ENABLED`` off."""
        return attach(model, cfg, seed=seed)

    @classmethod
    def load_model(cls, cfg: CfgNode, resume: bool = False, split: str = "TRAIN") -> nn.Module:
        """The model that the config builds, with weights: :func:`load_trained`."""
        return load_trained(cls.build_model(cfg), cfg, resume=resume, split=split)

    @classmethod
    def evaluate_checkpoint(cls, cfg: CfgNode, resume: bool = False) -> OrderedDict:
        """Metrics of the model that :meth:`load_model` gives."""
        check_evaluation_sets(cfg)
        return cls.test(cfg, wrap_in_ddp(cls.load_model(cfg, resume, split="TEST")))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> LVISEvaluator:
        return LVISEvaluator(
            dataset_name,
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            output_dir=f"{cfg.OUTPUT_DIR}/inference",
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        for name in cfg.DATASETS.TEST:
            require_dataset(name)
        dtype = autocast_dtype(cfg)
        device_type = next(model.parameters()).device.type
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            return super().test(cfg, model, evaluators)
