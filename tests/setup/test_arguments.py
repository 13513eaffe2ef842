"""The command line: detectron2's arguments, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from gal_d2.commands.offline_options import OfflineOptions
from gal_d2.errors import UserError
from gal_d2.setup.arguments import add_scoring_arguments, argument_parser, check_arguments

TOOLS = [
    *("train_net", "score_pool", "rank_instances", "generate_instances", "filter_pool"),
    *("import_cutouts", "check_pool", "demo"),
]


def test_the_arguments_are_detectron2_s() -> None:
    line = ["--config-file", "a.yaml", "--num-gpus", "2", "--resume", "SOLVER.BASE_LR", "0.1"]
    theirs = vars(default_argument_parser().parse_args(line))
    ours = vars(argument_parser().parse_args(line))
    assert ours.pop("num_cpu_processes") == 1
    assert ours == theirs
    theirs, ours = default_argument_parser().parse_args([]), argument_parser().parse_args([])
    del ours.num_cpu_processes
    assert {**vars(ours), "opts": None} == {**vars(theirs), "opts": None} and not ours.opts


def test_the_scoring_arguments_have_the_defaults_of_the_options() -> None:
    parser = argparse.ArgumentParser()
    add_scoring_arguments(parser)
    parsed, default = vars(parser.parse_args([])), OfflineOptions()
    assert parsed.pop("category") is None
    assert parsed == {name: getattr(default, name) for name in parsed}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--num-gpus", "-1"], "--num-gpus is -1"),
        (["--num-cpu-processes", "0"], "--num-cpu-processes is 0"),
        (["--machine-rank", "1"], "--num-machines is 1"),
        (["SOLVER.MAX_ITER", "3", "--resume"], "--resume comes after"),
        (["SOLVER.MAX_ITR", "3"], r"did you mean SOLVER.MAX_ITER\?"),
        (["SOLVER.MAX_ITER"], "pairs KEY VALUE"),
        (["SOLVER.MAX_ITER", "many"], "pairs KEY VALUE"),
        (["SOLVER", "3"], "pairs KEY VALUE"),
        (["SOLVER.MAX_ITER.MORE", "3"], "pairs KEY VALUE"),
        (["--config-file", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
    ],
)
def test_mistakes_are_one_sentence(line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_arguments(argument_parser().parse_args(line))


@pytest.mark.parametrize(
    "content",
    [
        b"SOLVER: [1, 2",
        b"\xff\xfe\x00",
        b"- a\n- b\n",
        b"just text",
        b"_BASE_: nowhere.yaml\n",
        b"_BASE_: [1]\n",
        b"SOLVER: 3\n",
        b"SOLVER:\n  MAX_ITER: {a: 1}\n",
        b"SOLVER:\n  MAX_ITER: soon\n",
        b"1: 2\n",
    ],
)
def test_broken_config_files_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    arguments = argument_parser().parse_args(["--config-file", str(tmp_path / "c.yaml")])
    with pytest.raises(UserError, match=r"c\.yaml: .*\(a config file is YAML"):
        check_arguments(arguments)


@pytest.mark.parametrize("tool", TOOLS)
def test_help_needs_no_torch(repository: Path, tool: str) -> None:
    """It is what takes seconds to import."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{tool}.py', '--help']\n"
        f"try: runpy.run_path({str(repository / 'tools' / f'{tool}.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'detectron2' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout
