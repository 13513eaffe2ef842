"""Names, templates and requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gal_d2.datasets.annotation_file import Category
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.generation.generator import prompt_origin, template_of
from gal_d2.generation.prompts import (
    DEFINITION_TEMPLATE,
    PHOTO_TEMPLATE,
    CategoryText,
    PromptBook,
    category_text,
    fill_template,
    read_prompt_file,
)

CATEGORIES = (
    Category(3, "bun", "r", 1, "small rounded bread either plain or sweet"),
    Category(5, "sandal_(type_of_shoe)", "c", 20, "a shoe fastened by straps"),
    Category(9, "crab_(animal)", "r", 2),
)
NAMES = CategoryNames({"id": c.id, "name": c.name, "synonyms": []} for c in CATEGORIES)


@pytest.mark.parametrize(
    ("lvis", "name", "hint"),
    [
        ("bun", "bun", ""),
        ("baby_buggy", "baby buggy", ""),
        ("sandal_(type_of_shoe)", "sandal", "type of shoe"),
        ("flip-flop_(sandal)", "flip-flop", "sandal"),
        ("monitor_(computer_equipment) computer_monitor", "monitor computer monitor",
         "computer equipment"),
        ("(_animal_)", "animal", ""),
        ("Band_Aid", "Band Aid", ""),
    ],
)  # fmt: skip
def test_names_lose_underscores_and_parentheses(lvis: str, name: str, hint: str) -> None:
    assert category_text(lvis) == CategoryText(name, hint)


@pytest.mark.parametrize(
    ("template", "name", "definition", "prompt"),
    [
        (PHOTO_TEMPLATE, "bun", "", "a photo of a single bun"),
        (PHOTO_TEMPLATE, "crab_(animal)", "", "a photo of a single crab, animal"),
        (DEFINITION_TEMPLATE, "bun", "small bread.", "bun, small bread, in a white background"),
        (DEFINITION_TEMPLATE, "bun", "", "bun, in a white background"),
        # The definition tells what kind of crab it is; without one, the hint has to.
        (DEFINITION_TEMPLATE, "crab_(animal)", "decapod", "crab, decapod, in a white background"),
        (DEFINITION_TEMPLATE, "crab_(animal)", "", "crab, animal, in a white background"),
        ("a {name} ({hint}) at sea", "crab_(animal)", "", "a crab (animal) at sea"),
        ("a {name} ({hint}) at sea", "crab", "", "a crab at sea"),
        ("{definition}", "crab", "decapod; edible", "decapod; edible"),
        # Braces in a definition are text.
        (DEFINITION_TEMPLATE, "bun", "{x}", "bun, {x}, in a white background"),
    ],
)
def test_templates(template: str, name: str, definition: str, prompt: str) -> None:
    assert fill_template(template, category_text(name, definition)) == prompt


def test_templates_take_turns_and_own_ones_come_first() -> None:
    book = PromptBook(CATEGORIES, [PHOTO_TEMPLATE, DEFINITION_TEMPLATE], {9: ["one {name}"]})
    prompts = [book.request(3, index).prompt for index in range(3)]
    assert prompts == [
        "a photo of a single bun",
        "bun, small rounded bread either plain or sweet, in a white background",
        "a photo of a single bun",
    ]
    assert book.request(9, 1).prompt == "one crab, animal"
    assert book.templates(9) == ("one {name}",)
    chosen = book.request(3, 0, template=DEFINITION_TEMPLATE)
    assert (chosen.prompt, chosen.template) == (prompts[1], DEFINITION_TEMPLATE)


def test_request_says_all_that_later_stages_need() -> None:
    request = PromptBook(CATEGORIES, seed=7).request(5, 4)
    assert (request.category_id, request.index, request.name) == (5, 4, "sandal, type of shoe")
    assert request.definition == "a shoe fastened by straps"
    assert template_of(prompt_origin(request)) == request.template == PHOTO_TEMPLATE


def test_seed_depends_on_run_category_and_index_only() -> None:
    books = [
        PromptBook(CATEGORIES, [template], seed=seed)
        for seed in (0, 1)
        for template in (PHOTO_TEMPLATE, DEFINITION_TEMPLATE)
    ]
    seeds = [
        {book.request(category_id, index).seed for category_id in (3, 5) for index in range(50)}
        for book in books
    ]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert len(seeds[0] | seeds[2]) == 2 * 2 * 50
    assert all(0 <= seed < 1 << 63 for seed in seeds[0])
    # Written down: another value would make another image of every seed that was ever used.
    assert books[0].request(3, 0).seed == 8053047280485620712


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo of a {nme}", r"\['nme'\]"),
        ("a photo", "none"),
        ("a {name", "expected '}'"),
    ],
)
def test_wrong_templates_are_named(template: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"GAL.GENERATOR.PROMPT.TEMPLATES.*{message}"):
        PromptBook(CATEGORIES, [template])


def test_no_template_is_an_error_unless_every_category_has_its_own() -> None:
    with pytest.raises(UserError, match="TEMPLATES is empty"):
        PromptBook(CATEGORIES, [], {3: ["{name}"]})
    book = PromptBook(CATEGORIES, [], {3: ["{name}"], 5: ["{name}"], 9: ["x"]})
    assert book.request(9, 0).prompt == "x"


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_prompt_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prompts.{suffix}"
    content = {"bun": ["a {name} on a plate", "hot cross bun"], "9": "a {name} in the sand"}
    if suffix == "json":
        path.write_text(json.dumps(content, indent="\t"))
    else:
        path.write_text("bun:\n- a {name} on a plate\n- hot cross bun\n9: a {name} in the sand\n")
    assert read_prompt_file(path, NAMES) == {
        3: ("a {name} on a plate", "hot cross bun"),
        9: ("a {name} in the sand",),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- bun", "holds no mapping"),
        ("bum: x", r"'bum' \(did you mean bun\?\); correct"),
        ("bun: []", r"'bun' is \[\]"),
        ("bun: [1]", r"'bun' is \[1\]"),
        ("bun: a {what}", r"'what'"),
        ("bun: [", "neither YAML nor JSON"),
    ],
)
def test_wrong_prompt_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"prompts\.yaml.*{message}"):
        read_prompt_file(path, NAMES)


def test_missing_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.yaml cannot be read"):
        read_prompt_file(tmp_path / "none.yaml", NAMES)
