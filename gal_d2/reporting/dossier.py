"""All that a report is made from, read once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.reporting.belief import CategoryBelief, PoolBelief, by_category, read_belief
from gal_d2.reporting.pastes import Pastes, count_rows, read_pastes
from gal_d2.reporting.run import Run
from gal_d2.testbeds.truth import PoolTruth

logger = logging.getLogger(__name__)

TRUTH_FILE = "pool_truth.parquet"
T = TypeVar("T")


@dataclass
class Dossier:
    """A run and those that it is compared with.

    Attributes:
        runs: the run of the report first.
        pastes: by run, what its ledger says; None without one.
        pool: that the first run pasted from; None if it is not there.
        truth: about that pool, where its file lies beside it.
        belief: what the first run believed of the pool in the end; None where it kept nothing.
        by_category: figures of the belief, by category id.
        names: of the categories by id.
        groups: of the categories by id, "r", "c" or "f".
        problems: by what could not be read, a sentence.
    """

    runs: Sequence[Run]
    pastes: list[Pastes | None]
    pool: InstancePool | None
    truth: PoolTruth | None
    belief: PoolBelief | None = None
    by_category: dict[int, CategoryBelief] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The one that the report is about."""
        return self.runs[0]

    def name_of(self, category_id: int) -> str:
        """Of a category; one whose name nobody knows is called by its id."""
        return self.names.get(category_id, f"category {category_id}")


def gather(runs: Sequence[Run], pool_folder: Path | None = None) -> Dossier:
    """Read ledgers, snapshots and the pool; what cannot be read becomes a problem.

    Args:
        runs: the run of the report first.
        pool_folder: of the pool; None: where the run's config or log say.
    """
    problems: dict[str, str] = {}

    def attempt(what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (UserError, OSError, pa.ArrowException) as error:
            problems[what] = " ".join(str(error).split())
            logger.warning("Report: %s", problems[what])
            return None

    run = runs[0]
    folder = pool_folder or run.pool_folder()
    pool = attempt("pool", lambda: InstancePool(folder)) if folder else None
    truth_file = folder.parent / TRUTH_FILE if folder else None
    truth = None
    if truth_file is not None and truth_file.is_file():
        truth = attempt("truth", lambda: PoolTruth.read(truth_file))
    pastes = []
    for number, other in enumerate(runs):
        ledger = other.folder / "ledger"
        found = None
        if count_rows(ledger):
            # The truth is about the first run's pool; it says so if another's is a different one.
            found = attempt(f"ledger{number}", lambda p=ledger: _read_pastes(p, truth))
        pastes.append(found)
    dossier = Dossier(runs, pastes, pool, truth, problems=problems)
    _name_categories(dossier)
    known = _known_cut_outs(pool, pastes[0])
    dossier.belief = attempt("posterior", lambda: read_belief(run.folder, *known))
    if dossier.belief is not None:
        found = attempt("truth", lambda: by_category(dossier.belief, truth))
        dossier.by_category = by_category(dossier.belief, None) if found is None else found
    return dossier


def _read_pastes(ledger: Path, truth: PoolTruth | None) -> Pastes:
    try:
        return read_pastes(ledger, truth)
    except UserError:
        if truth is None:
            raise
        return read_pastes(ledger)


def _name_categories(dossier: Dossier) -> None:
    if dossier.pool is not None:
        dossier.names |= dossier.pool.category_names or {}
    for run, pastes in zip(reversed(dossier.runs), reversed(dossier.pastes), strict=True):
        if pastes is not None:
            dossier.names |= pastes.names
            dossier.groups |= pastes.groups
        dossier.names |= {i: result.name for i, result in run.categories.items()}
        dossier.groups |= {i: result.group for i, result in run.categories.items()}


def _known_cut_outs(
    pool: InstancePool | None, pastes: Pastes | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and categories of the cut-outs whose category is known.

    The ledger knows those that were pasted, also where the pool was filled anew since.
    """
    ids, categories = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    if pool is not None:
        ids.append(pool.all_ids())
        categories.append(pool.category_of(ids[-1]))
    if pastes is not None:
        ids.append(pastes.tally.pool_id)
        categories.append(pastes.tally.category_id)
    unique, first = np.unique(np.concatenate(ids), return_index=True)
    return unique, np.concatenate(categories)[first]
