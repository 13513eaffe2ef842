"""Scored instances, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gal_d2.scoring.contribution import Contribution


def scored(
    pool_ids: Sequence[int] | Tensor,
    scores: Sequence[float] | Tensor,
    *,
    area: float | Tensor = 900.0,
    **columns: object,
) -> Contribution:
    """Instances of image 0 and class 0, on one ROI each, without heads.

    Args:
        pool_ids: N of them.
        scores: (N,), phi too.
        area: of each, one for all or (N,).
        columns: others, in place of these; a sequence becomes a tensor.
    """
    n = len(pool_ids)
    score = torch.as_tensor(scores, dtype=torch.float32)
    own = {
        "image_index": torch.zeros(n, dtype=torch.int64),
        "gt_class": torch.zeros(n, dtype=torch.int64),
        "phi": score,
        "head_score": {},
        "head_loss": {},
        "num_rois": torch.ones(n, dtype=torch.int64),
        "area": torch.as_tensor(area).expand(n).clone(),
    }
    given = {k: v if isinstance(v, dict) else torch.as_tensor(v) for k, v in columns.items()}
    return Contribution(
        pool_id=torch.as_tensor(pool_ids, dtype=torch.int64), score=score, **(own | given)
    )
