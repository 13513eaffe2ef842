"""Overrides that make any config here train in seconds on a CPU, and a trainer that gets killed."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

# Sizes and the device only: what is trained, and how, stays the config's own.
SMALL_MODEL = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("GAL.DATA.LSJ.IMAGE_SIZE", "64", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
]
FROM_SCRATCH = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNETS.NORM", "BN"]


def hasten() -> None:
    """Have a few steps do what a training does in many: choose partners, compare scores."""
    from gal_d2.judging import instance_judge
    from gal_d2.selection.policies import QuantileAccept

    instance_judge.build_scorer = functools.partial(instance_judge.build_scorer, partner_every=2)
    QuantileAccept.MIN_COUNT = 1


def train(args, kill_at: int | None = None) -> None:
    """Train as tools/train_net.py does; with ``kill_at`` the process dies within that step."""
    from detectron2.engine import HookBase

    from gal_d2.engine.trainer import GALTrainer
    from gal_d2.setup.setup import setup

    hasten()

    class Killer(HookBase):
        def after_step(self) -> None:
            if self.trainer.iter == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = GALTrainer(setup(args))
    trainer.register_hooks([Killer()])
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":  # small_model.py KILL_AT <arguments of train_net.py>
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import gal_d2  # noqa: F401
    from gal_d2.setup.arguments import argument_parser

    train(argument_parser().parse_args(sys.argv[2:]), kill_at=int(sys.argv[1]))
