"""How a pool is scored: what the command line of tools/score_pool.py says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_metadata
from gal_d2.errors import UserError
from gal_d2.setup.arguments import SPLITS


@dataclass(frozen=True)
class OfflineOptions:
    """How a pool is scored.

    Attributes:
        categories: ids of the categories to score; None: all that the pool and the data set share.
        split: where the real objects of the directions come from, "train" or "val".
        per_category: real objects of each category that directions are learnt from, at least, as
            far as there are; 0: all.
        candidates: cut-outs of each category from which it is learnt what they resemble.
        placements: real images that each cut-out is pasted on.
        batch_size: images per process and step.
        seed: of placements and samples.
        flush_seconds: rows are on disk at the latest so long after they were scored.
    """

    categories: tuple[int, ...] | None = None
    split: str = "train"
    per_category: int = 64
    candidates: int = 32
    placements: int = 2
    batch_size: int = 8
    seed: int = 0
    flush_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"--split is '{self.split}': choose from {', '.join(SPLITS)}.")
        for name, least in (("placements", 1), ("batch_size", 1), ("candidates", 1)):
            value = getattr(self, name)
            if value < least:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is {value}: set it to {least} or more.")
        if self.per_category < 0:
            raise UserError(f"--per-category is {self.per_category}: set it to 0 (all) or more.")

    @classmethod
    def from_arguments(cls, cfg: CfgNode, args: argparse.Namespace) -> OfflineOptions:
        """What a command line says that :func:`add_scoring_arguments` described.

        Raises:
            UserError: an unknown category, or a value out of range.
        """
        return cls(
            categories=resolve_categories(cfg, args.category),
            split=args.split,
            per_category=args.per_category,
            candidates=args.candidates,
            placements=args.placements,
            batch_size=args.batch_size,
            seed=args.seed,
        )


def resolve_categories(cfg: CfgNode, texts: Sequence[str] | None) -> tuple[int, ...] | None:
    """Category ids of names, synonyms or ids of the training set; None where there are none.

    Raises:
        UserError: one is unknown; the nearest names are listed.
    """
    if not texts:
        return None
    names = CategoryNames.from_file(load_metadata(cfg.DATASETS.TRAIN[0]).json_file)
    return tuple(names.resolve_all(texts, "--category"))
