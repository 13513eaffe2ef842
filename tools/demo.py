#!/usr/bin/env python3
"""Train on the miniature LVIS, pasting what helps, evaluate, and draw what happened.

`make demo` calls this. Interrupted, it resumes; finished, it evaluates and draws again. With
--overwrite it starts anew. The last lines compare the run with pasting every cut-out alike.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gal_d2.setup.arguments import argument_parser, check_arguments
from gal_d2.setup.launch import run_tool

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results.md"
COLUMNS = ("AP", "APr", "APc", "APf")
STEPS = 700  # of the demo, and of the table of results that it quotes


def metrics_table(results: dict) -> str:
    """Box and mask AP, overall and by category frequency, in per cent."""
    rows = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for task, name in (("bbox", "box"), ("segm", "mask")):
        values = " | ".join(f"{results[task][column]:.1f}" for column in COLUMNS)
        rows.append(f"| {name} | {values} |")
    return "\n".join(rows)


def good_share_line(ledger: Path, truth_file: Path, steps: int) -> str:
    """How many of the pasted cut-outs were good, late in a run, against the pool's share of them.

    Pasting every cut-out alike pastes good ones at the pool's share.

    Args:
        ledger: folder of the run's ledger.
        truth_file: what the cut-outs of its pool really are.
        steps: of the run.
    """
    import numpy as np
    import pyarrow as pa

    from gal_d2.selection.ledger import Ledger
    from gal_d2.testbeds.truth import GOOD, PoolTruth

    truth = PoolTruth.read(truth_file)
    tables = Ledger(ledger).tables(["pool_id"], first_step=3 * steps // 4)
    late = pa.concat_tables(tables)["pool_id"].to_numpy()
    return (
        f"good cut-outs among the pasted, last quarter of this run: "
        f"{np.mean(truth.kind[truth.rows(late)] == GOOD):.0%}; in the pool, and so when pasting "
        f"everything: {np.mean(truth.kind == GOOD):.0%}"
    )


def published_gain_line(document: Path = RESULTS) -> str:
    """What the loop gained in AP over pasting everything, as measured for ``docs/results.md``.

    Args:
        document: has a table of runs as long as the demo, with a row for *ours*.
    """
    header: list[str] = []
    lines = document.read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if f", {STEPS} steps" in line), len(lines))
    for line in lines[start:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "pastes":
            header = cells
        elif cells[0] == "**ours**" and "mask AP to all" in header:
            row = dict(zip(header, cells, strict=True))
            return (
                f"mask AP {row['mask AP to all']}, mask APr {row['mask APr to all']} over pasting "
                f"everything, in {row['seeds']} runs like this one (docs/results.md)"
            )
    raise ValueError(f"{document} has no table of {STEPS} steps with a row **ours**.")


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    args.resume = not args.overwrite
    from gal_d2.commands.pictures import draw_predictions, draw_training_images
    from gal_d2.engine.trainer import GALTrainer
    from gal_d2.setup.setup import setup
    from gal_d2.visualization.contact_sheet import save_png

    logger = logging.getLogger("gal_d2")
    cfg = setup(args)
    output = Path(cfg.OUTPUT_DIR)
    path = save_png(draw_training_images(cfg), output / "training_images.png", max_colors=256)
    logger.info("picture of training images, pasted objects in orange: %s", path)

    trainer = GALTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()

    with trainer.averaged_weights():
        sheet = draw_predictions(cfg, trainer.model)
    path = save_png(sheet, output / "predictions.png", max_colors=256)
    logger.info("picture of predictions: %s", path)
    decisions = sorted((output / "decisions").glob("*.png"))
    for path in decisions[-1:]:
        logger.info("picture of the last pasted objects, with their scores: %s", path)
    logger.info(
        "%s on %s after %d steps:\n%s",
        Path(args.config_file).stem,
        cfg.DATASETS.TEST[0],
        cfg.SOLVER.MAX_ITER,
        metrics_table(trainer.eval_results),
    )
    truth_file = Path(cfg.GAL.POOL.ROOT).with_name("pool_truth.parquet")
    if cfg.GAL.POOL.SAMPLER == "posterior" and truth_file.exists():
        shares = good_share_line(output / "ledger", truth_file, cfg.SOLVER.MAX_ITER)
        lines = ["What choosing gained over pasting everything:", shares, published_gain_line()]
        logger.info("\n  ".join(lines))


if __name__ == "__main__":
    parser = argument_parser(epilog=__doc__, trains=True)
    parser.set_defaults(config_file="configs/miniature_gal.yaml")
    run_tool(main, parser.parse_args())
