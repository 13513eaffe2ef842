"""Starts the processes of a run: GPUs (NCCL), CPU processes (gloo), or inside ``torchrun``.

Every tool imports this module, so torch and detectron2 are imported where they are needed: --help
and a mistyped option need neither.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gal_d2.errors import UserError, sentence_of
from gal_d2.setup.arguments import check_arguments

TIMEOUT = timedelta(minutes=30)


def launch(
    main: Callable[..., None],
    *,
    num_gpus: int = 1,
    num_cpu_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> None:
    """Run ``main(*args)`` in every process of the run, with process groups set up.

    Args:
        main: the function of each process, run by :func:`run_tool`; picklable.
        num_gpus: GPUs per machine; 0 to train on the CPU.
        num_cpu_processes: processes per machine where ``num_gpus`` is 0.
        num_machines: machines in the run.
        machine_rank: which of them this is.
        dist_url: where the processes meet, as in detectron2's ``launch``.
        args: arguments of ``main``.

    Under ``torchrun`` the counts come from its environment and no process is started here.
    """
    import torch

    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_group(
            "env://",
            int(os.environ["WORLD_SIZE"]),
            int(os.environ["RANK"]),
            int(os.environ["LOCAL_RANK"]),
            int(os.environ["LOCAL_WORLD_SIZE"]),
            use_gpu=num_gpus > 0 and torch.cuda.is_available(),
        )
        run_tool(main, *args)
    elif num_gpus * num_machines > 1:
        if num_gpus > torch.cuda.device_count():
            raise UserError(
                f"--num-gpus is {num_gpus}, but torch sees {torch.cuda.device_count()} here: lower "
                "it, or set it to 0 with MODEL.DEVICE cpu."
            )
        from detectron2.engine import launch as detectron2_launch

        detectron2_launch(
            run_tool,
            num_gpus,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=(main, *args),
        )
    elif num_gpus == 0 and num_cpu_processes * num_machines > 1:
        if dist_url == "auto":
            dist_url = f"tcp://127.0.0.1:{_free_port()}"
        world_size = num_cpu_processes * num_machines
        worker_args = (main, args, dist_url, world_size, num_cpu_processes, machine_rank)
        import torch.multiprocessing as mp

        try:
            mp.spawn(_cpu_worker, worker_args, nprocs=num_cpu_processes)
        except mp.ProcessExitedException as error:
            if error.signal_name is None:  # the process has already said why
                sys.exit(error.exit_code)
            raise UserError(
                f"process {error.error_index} of this run was ended from outside "
                f"({error.signal_name}), and the others with it; often the memory is too small: go "
                "on with --resume."
            ) from error
    else:
        run_tool(main, *args)


def run_tool(main: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``main``; a user's mistake becomes one sentence on stderr and exit status 1."""
    try:
        return main(*args, **kwargs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        # Where nobody imported it, there is one process.
        comm = sys.modules.get("detectron2.utils.comm")
        if comm is None or comm.is_main_process():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)


def run_distributed_tool(
    main: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> None:
    """:func:`run_tool` in as many processes as the arguments say.

    Args:
        main: called with ``args`` in each process.
        args: of :func:`gal_d2.setup.setup.argument_parser`.
    """
    run_tool(check_arguments, args)
    run_tool(
        launch,
        main,
        num_gpus=args.num_gpus,
        num_cpu_processes=args.num_cpu_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _cpu_worker(
    local_rank: int,
    main: Callable[..., None],
    args: tuple,
    dist_url: str,
    world_size: int,
    local_size: int,
    machine_rank: int,
) -> None:
    rank = machine_rank * local_size + local_rank
    _join_group(dist_url, world_size, rank, local_rank, local_size, use_gpu=False)
    run_tool(main, *args)
    import torch.distributed as dist

    dist.destroy_process_group()


def _join_group(
    url: str, world_size: int, rank: int, local_rank: int, local_size: int, *, use_gpu: bool
) -> None:
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    if use_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if use_gpu else "gloo",
        init_method=url,
        world_size=world_size,
        rank=rank,
        timeout=TIMEOUT,
    )
    if hasattr(comm, "create_local_process_group"):  # after 0.6
        comm.create_local_process_group(local_size)
    else:
        for first in range(0, world_size, local_size):
            group = dist.new_group(list(range(first, first + local_size)))
            if first <= rank < first + local_size:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
