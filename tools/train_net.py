#!/usr/bin/env python3
"""Train or evaluate a detector: detectron2's standard arguments.

tools/train_net.py --config-file configs/lvis_gal.yaml --num-gpus 8
tools/train_net.py --config-file configs/lvis_gal.yaml --num-gpus 8 --resume
tools/train_net.py --config-file configs/lvis_gal.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from __future__ import annotations

import argparse

from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.launch import run_distributed_tool


def main(args: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from detectron2.utils import comm

    from gal_d2.engine.trainer import GALTrainer
    from gal_d2.setup.setup import setup

    cfg = setup(args)
    if args.eval_only:
        GALTrainer.evaluate_checkpoint(cfg, resume=args.resume)
        if comm.is_main_process():
            print(f"predictions and AP of each category: {cfg.OUTPUT_DIR}/inference")
        return
    trainer = GALTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    run_distributed_tool(main, argument_parser(epilog=__doc__, trains=True).parse_args())
