"""Does the trainings of benchmarks/comparison.py, several at a time, in an order that works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from comparison_results import PoolShares, Results, read_run
from comparison_runs import Run, Trainer
from tqdm import tqdm

from gal_d2.errors import UserError


def train_missing(
    runs: Sequence[Run],
    results: Results,
    trainer: Trainer,
    *,
    jobs: int,
    extra: Mapping[str, object],
    pool: PoolShares | None,
) -> None:
    """Train what is not in the results, ``jobs`` at a time, what others need first.

    A run that fails does not stop the others.

    Args:
        runs: wanted; with each that needs a model, the one of ``all`` with its seed.
        results: what is finished; finished runs are added.
        trainer: does it.
        jobs: at a time.
        extra: more fields of a result: what it was measured on.
        pool: of the runs, to say what is pasted where no ledger does.

    Raises:
        UserError: one or more runs failed.
    """
    missing = [run for run in runs if run.key not in results.records]
    model_of = {run.seed: run for run in runs if run.condition.name == "all"}
    # Lines can come from another machine, models do not.
    for seed in sorted({run.seed for run in missing if run.condition.needs_model}):
        if not model_of[seed].model.is_file() and model_of[seed] not in missing:
            missing.append(model_of[seed])
    unfinished = {run.seed for run in missing if run.condition.name == "all"}
    waiting = sorted(missing, key=lambda run: (run.condition.name != "all", run.seed))
    failures: list[str] = []
    active: dict[Future, Run] = {}

    def work(run: Run) -> None:
        needed = model_of[run.seed].model if run.condition.needs_model else None
        trainer.train(run, needed)
        results.add(run, {**read_run(run, trainer.truth, pool), **extra})

    with (
        ThreadPoolExecutor(jobs) as executor,
        tqdm(total=len(missing), desc="trainings", disable=not missing) as progress,
    ):
        while waiting or active:
            ready = [r for r in waiting if not (r.condition.needs_model and r.seed in unfinished)]
            for run in ready[: jobs - len(active)]:
                waiting.remove(run)
                active[executor.submit(work, run)] = run
            if not active:  # what is left waits for a model whose training failed
                failures += [f"{r.condition.name} {r.seed}: no model of all." for r in waiting]
                break
            for future in wait(active, return_when=FIRST_COMPLETED).done:
                run = active.pop(future)
                error = future.exception()
                if isinstance(error, UserError):
                    failures.append(f"{run.condition.name} {run.seed}: {error}")
                elif error is not None:
                    raise error
                elif run.condition.name == "all":
                    unfinished.discard(run.seed)
                progress.update()
    if failures:
        raise UserError(
            "not all trainings are finished; the same command goes on with them.\n  "
            + "\n  ".join(failures)
        )
