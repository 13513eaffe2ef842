#!/usr/bin/env python3
"""Train or evaluate a detector: detectron2's standard arguments.

tools/train_net.py --config-file configs/lvis_gal.yaml --num-gpus 8
tools/train_net.py --config-file configs/lvis_gal.yaml --num-gpus 8 --resume
tools/train_net.py --config-file configs/lvis_gal.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from __future__ import annotations

import argparse

from gal_d2.engine.launch import run_distributed_tool
from gal_d2.engine.setup import argument_parser, setup
from gal_d2.engine.trainer import GALTrainer


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    if args.eval_only:
        GALTrainer.evaluate_checkpoint(cfg, resume=args.resume)
        return
    trainer = GALTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    run_distributed_tool(main, argument_parser(epilog=__doc__, trains=True).parse_args())
