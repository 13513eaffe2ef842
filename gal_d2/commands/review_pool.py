"""A run of tools/review_pool.py: a person looks at cut-outs and says which are good."""

from __future__ import annotations

import argparse
import getpass

from gal_d2.datasets.annotation_file import read_category_names
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import (
    load_instances,
    load_metadata,
    register_instances,
    require_dataset,
)
from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.review.beliefs import beliefs_of
from gal_d2.review.pictures import RealExamples
from gal_d2.review.server import ReviewServer
from gal_d2.review.session import ReviewSession
from gal_d2.review.verdict_table import export_verdicts, import_verdicts

_DATASET = "review"  # its name, for messages


def review_pool(args: argparse.Namespace) -> None:
    """Do what the arguments of tools/review_pool.py say.

    Raises:
        UserError: an option is wrong, or there is nothing to look at.
    """
    if args.image_root is not None and args.annotations is None:
        raise UserError("--image-root needs --annotations, which say what is in the images.")
    names = None if args.annotations is None else read_category_names(args.annotations)
    pool = InstancePool(args.pool, names=names)
    if args.import_from is not None:
        added, rows = import_verdicts(pool, args.import_from, reviewer_of(args))
        print(f"{args.import_from}: {rows:,} verdicts, {added:,} of them new")
    if args.export is not None:
        print(f"{args.export}: {export_verdicts(pool, args.export):,} verdicts")
    if args.import_from is None and args.export is None:
        serve(build_server(args, pool))


def reviewer_of(args: argparse.Namespace) -> str:
    """Who reviews: by the option, or by the name of the account."""
    if args.reviewer is not None:
        return args.reviewer
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as in containers
        return ""


def build_server(args: argparse.Namespace, pool: InstancePool) -> ReviewServer:
    """The server of a review, not yet serving.

    Raises:
        UserError: an option is wrong, or there is nothing to look at.
    """
    only = None
    if args.category:
        known = pool.category_names
        if known is None:
            raise UserError(
                f"the pool {pool.root} does not know what its categories are called, so --category "
                "cannot be found in it: give --annotations, too."
            )
        categories = [{"id": i, "name": name} for i, name in known.items()]
        only = set(
            CategoryNames(categories, str(pool.root)).resolve_all(args.category, "--category")
        )
    examples, frequency = None, {}
    if args.annotations is not None:
        root = args.image_root or args.annotations.parent
        register_instances(_DATASET, args.annotations, root, replace=True)
        metadata = load_metadata(_DATASET)
        class_of = metadata.thing_dataset_id_to_contiguous_id
        frequency = {i: metadata.category_frequency[c] for i, c in class_of.items()}
        if args.image_root is not None:
            require_dataset(_DATASET)
            examples = RealExamples(load_instances(_DATASET), class_of)
    beliefs = beliefs_of(pool, args.ledger, frequency)
    session = ReviewSession(pool, beliefs, reviewer=reviewer_of(args), only=only)
    return ReviewServer(session, examples, args.port)


def serve(server: ReviewServer) -> None:
    """Serve until it is interrupted (Ctrl-C)."""
    print(f"open in a browser of this machine: {server.address}", flush=True)
    print("Ctrl-C ends it; every verdict is stored at once", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    said = server.session.progress()
    print(f"{said['good']} good, {said['bad']} bad, {said['skip']} skipped")
