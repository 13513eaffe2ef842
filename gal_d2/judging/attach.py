"""Makes any detectron2 detector with ROI heads one whose pastes are scored.

The trainer calls :func:`attach` for the model that the config builds; a training loop of your own
does so itself (docs/your_model.md).
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gal_d2.engine.precision import autocast_dtype
from gal_d2.errors import UserError
from gal_d2.judging.batch_judge import BatchJudge
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.judging.judge import Judge
from gal_d2.modeling.roi_heads import let_ask
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.rehearsal import SIDE, rehearse


def attach(model: nn.Module, cfg: CfgNode, *, seed: int = 0) -> Judge | None:
    """Have a model's ROI heads ask what ``GAL.SCORER`` and ``GAL.ACCEPT`` describe.

    The heads may be of any class that does what detectron2's ``ROIHeads`` do. Nothing of them is
    replaced: their class becomes a subclass of itself.

    Args:
        model: a detector with ``backbone`` and ``roi_heads``, on its device.
        cfg: the whole config; its data sets are registered.
        seed: the run's seed.

    Returns:
        The judge, which has to be told of each step (:meth:`Judge.start_step`) before the model is
        called; None with ``GAL.SCORER.ENABLED`` off.

    Raises:
        UserError: the model cannot be scored, or an option is out of range.
    """
    if not cfg.GAL.SCORER.ENABLED:
        return None
    if cfg.GAL.ACCEPT.UNIT not in ("instance", "batch"):
        raise UserError(f"GAL.ACCEPT.UNIT is '{cfg.GAL.ACCEPT.UNIT}': choose instance or batch.")
    if not cfg.GAL.COPY_PASTE.ENABLED:
        raise UserError(
            "GAL.SCORER.ENABLED is on, but GAL.COPY_PASTE.ENABLED is off: nothing is pasted "
            "that could be scored, so turn it on or scoring off."
        )
    if isinstance(model, DistributedDataParallel):
        model = model.module
    roi_heads = scored_roi_heads(model)
    _check_loss_is_known(roi_heads, cfg)
    if cfg.GAL.ACCEPT.UNIT == "batch":
        if cfg.GAL.SCORER.PERIOD != 1:
            raise UserError(
                f"GAL.SCORER.PERIOD is {cfg.GAL.SCORER.PERIOD}, but GAL.ACCEPT.UNIT is 'batch', "
                "which decides at every step: set GAL.SCORER.PERIOD to 1, or GAL.ACCEPT.UNIT to "
                "instance."
            )
        let_ask(roi_heads)
        return BatchJudge(cfg, model, seed, autocast_dtype(cfg))
    judge = InstanceJudge(cfg, roi_heads, seed, model)
    attach_judge(model, judge)
    return judge


def attach_judge(model: nn.Module, judge: InstanceJudge) -> None:
    """Have a model's ROI heads ask a judge that was made without a config.

    Raises:
        UserError: the model cannot be scored.
    """
    roi_heads = scored_roi_heads(model)
    let_ask(roi_heads)
    rehearse_on_noise(judge.scorer.gradients, model)
    roi_heads.judge = judge


def scored_roi_heads(model: nn.Module) -> nn.Module:
    """The ROI heads of a detector, whose gradients scores are made of.

    Raises:
        UserError: it has none.
    """
    roi_heads = getattr(model, "roi_heads", None)
    if not isinstance(roi_heads, nn.Module) or not hasattr(model, "backbone"):
        raise UserError(
            f"GAL.SCORER looks at the gradients of ROI heads, and a {type(model).__name__} "
            "(MODEL.META_ARCHITECTURE) has none behind its backbone: take a GeneralizedRCNN, or "
            "paste without scoring (GAL.SCORER.ENABLED False, GAL.POOL.SAMPLER uniform_class), "
            "which works with every detector."
        )
    return roi_heads


def rehearse_on_noise(gradients: ProjectedGradients, model: nn.Module) -> None:
    """:func:`~gal_d2.scoring.rehearsal.rehearse` on feature maps such as the backbone gives.

    Raises:
        UserError: a head cannot be taken apart.
    """
    shapes = getattr(model.backbone, "output_shape", dict)()
    needed = getattr(model.roi_heads, "box_in_features", ())
    if not shapes or not set(needed) <= set(shapes):
        return  # other maps than the backbone's reach the heads: the first step will tell
    rehearse(gradients, _noise(shapes, next(model.parameters()).device))


def _noise(shapes: dict, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = {}
    for name, shape in shapes.items():
        side = max(SIDE // (shape.stride or 1), 1)
        noise = torch.randn(1, shape.channels, side, side, generator=generator)
        features[name] = noise.to(device)
    return features


def _check_loss_is_known(roi_heads: nn.Module, cfg: CfgNode) -> None:
    """Refuse detectron2 0.6's own predictor where the config asks for what it does not have."""
    for key in ("USE_SIGMOID_CE", "USE_FED_LOSS"):
        if not cfg.MODEL.ROI_BOX_HEAD[key]:
            continue
        for module in roi_heads.modules():
            if type(module) is FastRCNNOutputLayers and not hasattr(module, key.lower()):
                raise UserError(
                    f"MODEL.ROI_BOX_HEAD.{key} is on, but the box predictor of "
                    f"{type(roi_heads).__name__} is detectron2's FastRCNNOutputLayers, which does "
                    "not know it in this version: set MODEL.ROI_HEADS.NAME to GALROIHeads or "
                    f"GALCascadeROIHeads, or {key} to False."
                )
