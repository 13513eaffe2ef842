"""From ``GAL.SCORER`` to a scorer of contributions."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from gal_d2.errors import UserError
from gal_d2.scoring.scorer import ContributionScorer


def build_scorer(
    cfg: CfgNode, roi_heads: nn.Module, class_groups: Tensor, **options: Any
) -> ContributionScorer:
    """The scorer that ``GAL.SCORER`` describes.

    Args:
        cfg: the whole config.
        roi_heads: whose gradients are looked at.
        class_groups: (C,) int64, place of each class's frequency in ``GROUPS``.
        options: further arguments of :class:`~gal_d2.scoring.scorer.ContributionScorer`.

    Raises:
        UserError: an option is out of range.
    """
    node = cfg.GAL.SCORER
    for key in ("SCORE_WEIGHTS", "LOSS_WEIGHTS"):
        if len(node[key]) != len(node.HEADS):
            raise UserError(
                f"GAL.SCORER.{key} has {len(node[key])} entries, GAL.SCORER.HEADS has "
                f"{len(node.HEADS)}: give one weight for each head."
            )
    return ContributionScorer(
        roi_heads,
        heads=node.HEADS,
        gradient_heads=gradient_heads(cfg),
        score_weights=dict(zip(node.HEADS, node.SCORE_WEIGHTS, strict=True)),
        loss_weights=dict(zip(node.HEADS, node.LOSS_WEIGHTS, strict=True)),
        projection=node.PROJECTION,
        seed=node.SEED,
        class_groups=class_groups,
        momentum=node.MOMENTUM,
        num_partners=node.NUM_PARTNERS,
        **options,
    )


def gradient_heads(cfg: CfgNode) -> list[str]:
    """The heads of ``GAL.SCORER.HEADS`` whose gradients are taken.

    Raises:
        UserError: ``GAL.SCORER.GRADIENTS`` is neither "needed" nor "all".
    """
    node, signals = cfg.GAL.SCORER, cfg.GAL.POSTERIOR.SIGNALS
    if node.GRADIENTS not in ("needed", "all"):
        raise UserError(f"GAL.SCORER.GRADIENTS is '{node.GRADIENTS}': choose needed or all.")
    needed = [
        head
        for head, weight in zip(node.HEADS, node.SCORE_WEIGHTS, strict=True)
        if node.GRADIENTS == "all" or weight or "phi" in signals or f"{head}_score" in signals
    ]
    return needed or node.HEADS[:1]  # a class without a direction would stay young for ever
