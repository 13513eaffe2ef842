"""The model of a run: in its processes, and with trained weights."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gal_d2.engine.checkpoint import CheckpointStore
from gal_d2.engine.ema import ModelEMA


def load_trained(
    model: nn.Module, cfg: CfgNode, *, resume: bool = False, split: str = "TRAIN"
) -> nn.Module:
    """A model with ``cfg.MODEL.WEIGHTS`` (with ``resume``: those of the last checkpoint).

    With ``SOLVER.EMA.ENABLED``, with the average of weights where the checkpoint has one.

    Args:
        model: as the config builds it; changed in place.
        cfg: the whole config.
        resume: prefer the last checkpoint of the output folder, if there is one.
        split: of ``cfg.DATASETS``, "TRAIN" or "TEST": whose classes the model is to have.

    Raises:
        UserError: no weights are named, they are not there, do not fit, or have other classes.
    """
    ema = ModelEMA(model, cfg.SOLVER.EMA.DECAY)
    kept = {"ema": ema} if cfg.SOLVER.EMA.ENABLED else {}
    checkpointer = CheckpointStore(model, cfg, cfg.DATASETS[split][0], **kept)
    if resume and checkpointer.has_checkpoint():
        checkpointer.load_last(list(kept))
    else:
        checkpointer.load_trained(cfg.MODEL.WEIGHTS, list(kept))
    ema.copy_to_model()
    return model


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
