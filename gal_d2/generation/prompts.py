"""From a category to the text that a text-to-image model is asked with."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from gal_d2.datasets.annotation_file import Category
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.generation.generator import GenerationRequest, request_seed

# X-Paste's and BSGAL's; the second after DiverGen's prompts from definitions.
PHOTO_TEMPLATE = "a photo of a single {name}"
DEFINITION_TEMPLATE = "{name}, {definition}, in a white background"

FIELDS = ("name", "hint", "definition")
_PARENTHESES = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True)
class CategoryText:
    """How a category is spoken of.

    Attributes:
        name: plain words, without LVIS's underscores and parentheses.
        hint: what stood in parentheses: it tells this category from another of the same name.
        definition: LVIS's definition, or "".
    """

    name: str
    hint: str = ""
    definition: str = ""

    @property
    def full_name(self) -> str:
        """The name with its hint: "sandal, type of shoe"."""
        return f"{self.name}, {self.hint}" if self.hint else self.name


def category_text(name: str, definition: str = "") -> CategoryText:
    """Clean a category name as LVIS writes it.

    Example:
        >>> category_text("sandal_(type_of_shoe)")
        CategoryText(name='sandal', hint='type of shoe', definition='')
        >>> category_text("flip-flop_(sandal)").full_name
        'flip-flop, sandal'
    """
    plain = name.replace("_", " ")
    hints = [_squeeze(hint) for hint in _PARENTHESES.findall(plain)]
    bare = _squeeze(_PARENTHESES.sub(" ", plain))
    if not bare:  # nothing but parentheses: they are the name
        return CategoryText(", ".join(hints), "", _squeeze(definition))
    return CategoryText(bare, ", ".join(filter(None, hints)), _squeeze(definition))


def fill_template(template: str, text: CategoryText) -> str:
    """Put a category into a template.

    ``{name}`` comes with the hint ("crab, animal"), unless the template has ``{hint}`` or
    ``{definition}`` and so disambiguates by itself. A field that the category lacks disappears
    together with its comma.

    Example:
        >>> fill_template(PHOTO_TEMPLATE, category_text("crab_(animal)"))
        'a photo of a single crab, animal'
        >>> fill_template(DEFINITION_TEMPLATE, category_text("bun"))
        'bun, in a white background'
    """
    used = _fields(template)
    definition = text.definition.rstrip(".;, ")
    explained = ("hint" in used and text.hint) or ("definition" in used and definition)
    filled = template.format(
        name=text.name if explained else text.full_name, hint=text.hint, definition=definition
    )
    if (text.hint and definition) or not used & {"hint", "definition"}:
        return filled
    filled = re.sub(r"\(\s*\)", "", filled)
    filled = re.sub(r"\s+,", ",", filled)
    filled = re.sub(r",(?:\s*,)+", ",", filled)
    return _squeeze(filled).strip(", ")


def template_fields(template: str, origin: str = "prompt template") -> set[str]:
    """Names of the fields in a template.

    Raises:
        UserError: it is no format string, has another field than ``FIELDS``, or none.
    """
    allowed = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        found = _fields(template)
    except ValueError as error:
        raise UserError(f"{origin} '{template}': {error}; write its fields as {allowed}") from error
    if not found or not found <= set(FIELDS):
        raise UserError(
            f"{origin} '{template}' has the fields {sorted(found) or 'none'}: use some of {allowed}"
        )
    return found


class PromptBook:
    """The prompts of each category, and the requests made of them.

    The templates of a category take turns: image ``index`` gets template ``index % count``.

    Args:
        categories: of the data set.
        templates: for every category that has none of its own.
        own: templates by category id.
        seed: the run's, from which each image's seed is mixed.

    Attributes:
        texts: how each category is spoken of, by id.

    Raises:
        UserError: a template has an unknown field, or there are none.
    """

    def __init__(
        self,
        categories: Iterable[Category],
        templates: Sequence[str] = (PHOTO_TEMPLATE,),
        own: Mapping[int, Sequence[str]] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.texts = {c.id: category_text(c.name, c.definition) for c in categories}
        self.seed = seed
        self._templates = tuple(templates)
        self._own = {category_id: tuple(listed) for category_id, listed in (own or {}).items()}
        for template in self._templates:
            template_fields(template, "GAL.GENERATOR.PROMPT.TEMPLATES:")
        if not self._templates and self.texts.keys() - self._own.keys():
            raise UserError(
                "GAL.GENERATOR.PROMPT.TEMPLATES is empty: give at least one template, such as "
                f"'{PHOTO_TEMPLATE}'"
            )

    def templates(self, category_id: int) -> tuple[str, ...]:
        """The templates of a category, in the order in which they take turns."""
        return self._own.get(category_id, self._templates)

    def request(
        self, category_id: int, index: int, *, template: str | None = None
    ) -> GenerationRequest:
        """The request for the ``index``-th image of a category.

        Args:
            category_id: a category of the data set.
            index: 0, 1, 2 ...
            template: in place of the one whose turn it is.
        """
        text = self.texts[category_id]
        if template is None:
            templates = self.templates(category_id)
            template = templates[index % len(templates)]
        return GenerationRequest(
            category_id=category_id,
            index=index,
            prompt=fill_template(template, text),
            seed=request_seed(self.seed, category_id, index),
            template=template,
            name=text.full_name,
            definition=text.definition,
        )


def read_prompt_file(path: str | Path, names: CategoryNames) -> dict[int, tuple[str, ...]]:
    """Templates by category id, from a YAML or JSON file.

    The file maps a category (name, synonym or id) to a template or a list of templates. Text
    without a field is a prompt as it stands, and allowed here.

    Raises:
        UserError: the file is missing or of another form, or names a category that is not there.
    """
    path = Path(path)
    remedy = "map each category's name to a list of prompt templates"
    try:
        # JSON is YAML, but for tabs.
        content = yaml.safe_load(path.read_text(encoding="utf-8").replace("\t", " "))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is neither YAML nor JSON ({reason}); {remedy}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no mapping; {remedy}")
    result = {}
    for key, value in content.items():
        (category_id,) = names.resolve_all([str(key)], str(path))
        templates = [value] if isinstance(value, str) else value
        if (
            not isinstance(templates, list)
            or not templates
            or not all(isinstance(template, str) and template.strip() for template in templates)
        ):
            raise UserError(f"{path}: '{key}' is {value!r}; {remedy}")
        for template in templates:
            if "{" in template or "}" in template:
                template_fields(template, f"{path}: '{key}':")
        result[category_id] = tuple(templates)
    return result


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}


def _squeeze(text: str) -> str:
    return " ".join(text.split())
