"""How objects are pasted: the options of ``GAL.COPY_PASTE``."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from gal_d2.errors import UserError

BLENDS = ("basic", "feather", "poisson")  # gal_d2/copy_paste/blend.py has a function for each
# Those that use an opacity between 0 and 1.
SOFT_BLENDS = frozenset({"feather", "poisson"})


@dataclass(frozen=True)
class PasteOptions:
    """The keys of ``GAL.COPY_PASTE`` that say how to paste; ``gal_d2/config.py`` explains each.

    Raises:
        UserError: a value makes no sense.
    """

    min_pastes: int = 0
    max_pastes: int = 19
    blend: str = "basic"
    min_size: float = 10
    max_relative_size: float = 0.5
    aspect_jitter: float = 0.2
    flip_prob: float = 0.5
    min_visible_area: int = 300
    max_box_shift: int = 10

    def __post_init__(self) -> None:
        _require(self.min_pastes >= 0, "MIN_PASTES", self.min_pastes, "at least 0")
        _require(
            self.min_pastes <= self.max_pastes,
            "MAX_PASTES",
            self.max_pastes,
            f"at least MIN_PASTES, {self.min_pastes}",
        )
        _require(self.blend in BLENDS, "BLEND", self.blend, f"one of {', '.join(BLENDS)}")
        _require(self.min_size > 0, "MIN_SIZE", self.min_size, "above 0")
        _require(
            0 < self.max_relative_size <= 1,
            "MAX_RELATIVE_SIZE",
            self.max_relative_size,
            "in (0, 1]",
        )
        _require(0 <= self.aspect_jitter < 1, "ASPECT_JITTER", self.aspect_jitter, "in [0, 1)")
        _require(0 <= self.flip_prob <= 1, "FLIP_PROB", self.flip_prob, "in [0, 1]")
        _require(
            self.min_visible_area >= 0, "MIN_VISIBLE_AREA", self.min_visible_area, "at least 0"
        )
        _require(self.max_box_shift >= 0, "MAX_BOX_SHIFT", self.max_box_shift, "at least 0")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PasteOptions:
        """Read the options from a whole config."""
        node = cfg.GAL.COPY_PASTE
        return cls(
            min_pastes=node.MIN_PASTES,
            max_pastes=node.MAX_PASTES,
            blend=node.BLEND,
            min_size=node.MIN_SIZE,
            max_relative_size=node.MAX_RELATIVE_SIZE,
            aspect_jitter=node.ASPECT_JITTER,
            flip_prob=node.FLIP_PROB,
            min_visible_area=node.MIN_VISIBLE_AREA,
            max_box_shift=node.MAX_BOX_SHIFT,
        )


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise UserError(f"GAL.COPY_PASTE.{key} is {value!r}; it must be {expected}.")
