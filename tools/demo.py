#!/usr/bin/env python3
"""Train on the miniature LVIS, pasting what helps, evaluate, and draw what happened.

`make demo` calls this. Interrupted, it resumes; finished, it evaluates and draws again. With
--overwrite it starts anew.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gal_d2.setup.arguments import argument_parser, check_arguments
from gal_d2.setup.launch import run_tool

COLUMNS = ("AP", "APr", "APc", "APf")


def metrics_table(results: dict) -> str:
    """Box and mask AP, overall and by category frequency, in per cent."""
    rows = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for task, name in (("bbox", "box"), ("segm", "mask")):
        values = " | ".join(f"{results[task][column]:.1f}" for column in COLUMNS)
        rows.append(f"| {name} | {values} |")
    return "\n".join(rows)


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    args.resume = not args.overwrite
    from gal_d2.commands.pictures import draw_predictions, draw_training_images
    from gal_d2.engine.trainer import GALTrainer
    from gal_d2.setup.setup import setup
    from gal_d2.visualization.contact_sheet import save_png

    cfg = setup(args)
    pictures = Path(cfg.OUTPUT_DIR)
    sheet = draw_training_images(cfg)
    written = [save_png(sheet, pictures / "training_images.png", max_colors=256)]

    trainer = GALTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()

    with trainer.averaged_weights():
        sheet = draw_predictions(cfg, trainer.model)
    written.append(save_png(sheet, pictures / "predictions.png", max_colors=256))
    decisions = sorted((pictures / "decisions").glob("*.png"))
    written += decisions[-1:]  # pasted instances of the last step, with their scores
    logging.getLogger("gal_d2").info(
        "%s on %s after %d steps:\n%s",
        Path(args.config_file).stem,
        cfg.DATASETS.TEST[0],
        cfg.SOLVER.MAX_ITER,
        metrics_table(trainer.eval_results),
    )
    for path in written:
        logging.getLogger("gal_d2").info("picture: %s", path)


if __name__ == "__main__":
    parser = argument_parser(epilog=__doc__, trains=True)
    parser.set_defaults(config_file="configs/miniature_gal.yaml")
    run_tool(main, parser.parse_args())
