"""Writes what a judge decides: metrics, pictures and the ledger."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from gal_d2.judging.judge import GROUPS, Judge
from gal_d2.visualization.contact_sheet import save_png
from gal_d2.visualization.samples import decision_sheet

SCORE_QUANTILES = (0.1, 0.5, 0.9)


class JudgeHook(HookBase):
    """Writes metrics and pictures of a :class:`Judge`, and stores its ledger.

    Args:
        judge: of the trainer.
        checkpoint_period: steps between two checkpoints; the ledger is stored with each.
        picture_period: steps between two pictures; 0: none.
        output_dir: pictures go to its folder ``decisions``.
        image_format: ``cfg.INPUT.FORMAT``.
        dataset_name: of the class names.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        checkpoint_period: int,
        picture_period: int,
        output_dir: str,
        image_format: str,
        dataset_name: str,
    ) -> None:
        self.judge = judge
        self.checkpoint_period = checkpoint_period
        self.picture_period = picture_period
        self.output_dir = Path(output_dir)
        self.image_format = image_format
        self.class_names = MetadataCatalog.get(dataset_name).thing_classes

    def before_train(self) -> None:
        self.judge.resume(self.trainer.start_iter)

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        self.judge.finish_step()  # where a trainer of the user's own has not
        done = self.trainer.iter + 1
        is_last = done == self.trainer.max_iter
        if comm.is_main_process():
            seconds = time.perf_counter() - self._step_start
            storage = get_event_storage()
            storage.put_scalars(
                smoothing_hint=True,
                **decision_metrics(self.judge, self.judge.judged.seconds / max(seconds, 1e-9)),
            )
            if self.picture_period and (done % self.picture_period == 0 or is_last):
                self._draw(done)
        if done % self.checkpoint_period == 0 or is_last:
            # Before the checkpoint: rows that it knows nothing of are taken back on resume.
            self.judge.ledger.flush()

    def after_train(self) -> None:
        # An interrupted run keeps what it has; a resumed one takes back what it does again.
        self.judge.ledger.flush()

    def _draw(self, done: int) -> None:
        judged = self.judge.judged
        if len(judged.contribution) == 0:
            return
        sheet = decision_sheet(
            self.trainer.last_batch,
            judged.contribution,
            judged.decision,
            self.class_names,
            image_format=self.image_format,
            title=f"Step {done}",
        )
        save_png(sheet, self.output_dir / "decisions" / f"{done:07d}.png")


def decision_metrics(judge: Judge, time_share: float) -> dict[str, float]:
    """Scalars of the last step, of this process; a figure of nothing is left out.

    ``gal/accepted`` (share, also by frequency group), ``gal/undecided`` (share that the warm-up
    rule decided), ``gal/score_q..`` (quantiles), ``gal/time_share`` (of the step, spent on scoring)
    and the judge's own.
    """
    contribution, decision = judge.judged.contribution, judge.judged.decision
    metrics = {"gal/time_share": time_share, "gal/pasted": float(len(contribution))}
    if len(contribution) == 0:
        return metrics
    accept, classes = decision.accept.float(), contribution.gt_class
    metrics["gal/accepted"] = accept.mean().item()
    metrics["gal/undecided"] = decision.undecided.float().mean().item()
    for number, group in enumerate(GROUPS):
        in_group = judge.class_groups[classes] == number
        if in_group.any():
            metrics[f"gal/accepted_{group}"] = accept[in_group].mean().item()
    score = contribution.score[contribution.score.isfinite()]
    if len(score):
        values = score.quantile(torch.tensor(SCORE_QUANTILES)).tolist()
        for q, value in zip(SCORE_QUANTILES, values, strict=True):
            metrics[f"gal/score_q{round(100 * q)}"] = value
    return metrics | judge.metrics()
