"""benchmarks/generation_cost.py: the arithmetic of docs/generation.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from documents import END, begin
from scripts import load_script

from gal_d2.errors import UserError


@pytest.fixture(scope="module")
def benchmark(repository: Path) -> ModuleType:
    return load_script(repository / "benchmarks/generation_cost.py")


def test_cost_is_proportional_to_time_and_to_what_is_dropped(benchmark: ModuleType) -> None:
    assert benchmark.cost(1.8, 4000, kept=0.5) == (pytest.approx(2000), pytest.approx(2), 1)


def test_documented_figures_are_those_of_the_command(
    benchmark: ModuleType, repository: Path, capsys
) -> None:
    benchmark.main([])
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[3:]]
    assert len(rows) == len(benchmark.PUBLIC)
    text = (repository / "docs" / "generation.md").read_text()
    for cells in rows:
        assert "|" + "|".join(cells) + "|" in text


@pytest.fixture
def small(benchmark: ModuleType) -> dict:
    """Both architectures with every kind of part that they have, shrunk to run on a CPU."""
    from diffusion_models import SD15, SDXL_TURBO

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "projection_dim": 16, "vocab_size": 50}
    text |= {"bos_token_id": 0, "eos_token_id": 1}

    def shrink(architecture, channels: tuple, **unet):
        return dataclasses.replace(
            architecture,
            size=16,
            steps=1,
            vae=architecture.vae | {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4},
            text_encoders=tuple(encoder | text for encoder in architecture.text_encoders),
            unet=architecture.unet
            | {"block_out_channels": channels, "norm_num_groups": 4, "layers_per_block": 1, **unet},
        )

    # SDXL's UNet sees the second text's projection (16) and six sizes of 8 numbers.
    more = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 6 * 8}
    more |= {"cross_attention_dim": 32, "attention_head_dim": (2, 2, 4)}
    more |= {"transformer_layers_per_block": (1, 1, 2)}
    return {
        "sd15": shrink(SD15, (8, 8, 16, 16), cross_attention_dim=16, attention_head_dim=4),
        "sdxl-turbo": shrink(SDXL_TURBO, (8, 8, 16), **more),
    }


@pytest.mark.parametrize("model, channels_last", [("sd15", True), ("sdxl-turbo", False)])
def test_a_small_model_draws(
    benchmark: ModuleType, small: dict, model: str, channels_last: bool
) -> None:
    drawer = benchmark.TextToImage(
        small[model], torch.device("cpu"), torch.float32, channels_last=channels_last
    )
    pictures = drawer.draw(2, 2)
    assert pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8
    assert (pictures[0] != pictures[1]).any()


def test_a_compiled_model_draws_the_same_kind_of_picture(
    benchmark: ModuleType, small: dict, monkeypatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    drawer = benchmark.TextToImage(small["sd15"], torch.device("cpu"), torch.float32, compiled=True)
    assert compiled == [drawer.unet]


@pytest.mark.parametrize(
    "model, unet, texts",
    [
        ("sd15", 859_520_964, [123_060_480]),
        ("sdxl-turbo", 2_567_463_684, [123_060_480, 694_659_840]),
    ],
)
def test_the_architectures_have_their_public_sizes(
    benchmark: ModuleType, model: str, unet: int, texts: list[int]
) -> None:
    from diffusion_models import build_parts

    with torch.device("meta"):
        parts = build_parts(benchmark.ARCHITECTURES[model])
    counts = [sum(p.numel() for p in part.parameters()) for part in (*parts[:2], *parts[2])]
    assert counts == [unet, 83_653_863, *texts]


def test_what_was_measured_becomes_a_table(
    benchmark: ModuleType, small: dict, monkeypatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(benchmark, "ARCHITECTURES", small)
    document = tmp_path / "page.md"
    document.write_text(f"above\n{begin(benchmark.COMMAND)}\nold\n\n{END}below\n")
    arguments = ["--measure", "--device", "cpu", "--document", str(document)]
    monkeypatch.setitem(benchmark.measure.__kwdefaults__, "seconds", 0)
    benchmark.main(arguments)
    text = document.read_text()
    assert "old" not in text and text.startswith("above") and text.endswith("below\n")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| S")]
    assert [row[:3] for row in rows] == [["| SD 1.5", "1", "1"], ["| SDXL-Turbo", "1", "1"]]
    speed, hours = float(rows[1][6]), float(rows[1][7].replace(",", ""))
    assert hours == pytest.approx(1_203_000 / speed / 3600, rel=0.1, abs=1)
    assert "CPU, torch" in text and "Not measured" not in text


def test_settings_beyond_the_budget_are_named(benchmark: ModuleType) -> None:
    settings = benchmark.SETTINGS[:2]
    results, left_out = benchmark.measure_all(torch.device("cpu"), settings, budget=-1)
    assert not results and [setting for setting, _ in left_out] == list(settings)
    text = benchmark.measured_tables(results, left_out, 1000, "a machine")
    assert "Not measured: SD 1.5, 8, 50, float16, yes, no (not begun within" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(benchmark: ModuleType) -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        benchmark.main(["--measure"])


def test_own_speed(benchmark: ModuleType, capsys) -> None:
    benchmark.main(["--seconds", "0.5", "--categories", "36", "--per-category", "200"])
    assert "| yours | 7,200 | 1 | 0.14 | --seconds |" in capsys.readouterr().out


@pytest.mark.parametrize("numbers", [(0, 10, 1), (1, 0, 1), (1, 10, 0), (1, 10, 1.1)])
def test_senseless_numbers(benchmark: ModuleType, numbers: tuple) -> None:
    with pytest.raises(UserError, match="give positive numbers"):
        benchmark.cost(*numbers)
