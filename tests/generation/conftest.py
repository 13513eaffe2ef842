"""Tiny models, saved once for all tests, and requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from gal_d2.generation.generator import GenerationRequest, request_seed


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """``models("clip")``: the folder of a tiny model; it is saved when first asked for."""
    root = tmp_path_factory.mktemp("models")
    saved: dict[str, Path] = {}

    def folder(name: str) -> str:
        if name not in saved:
            saved[name] = getattr(tiny_models, f"save_{name}")(root / f"tiny-{name}")
        return str(saved[name])

    return folder


@pytest.fixture
def request_for() -> Callable[..., GenerationRequest]:
    """``request_for(category_id, index)``: a request with a prompt and a seed of its own."""

    def make(category_id: int, index: int, name: str = "bun") -> GenerationRequest:
        prompt = f"a photo of a single {name}"
        seed = request_seed(0, category_id, index)
        return GenerationRequest(
            category_id, index, prompt, seed, "a photo of a single {name}", name, "small bread"
        )

    return make
