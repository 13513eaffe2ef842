"""A data set that takes its classes from another one, and what is said of a file's objects."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from gal_d2.datasets.annotation_file import AnnotationFile, Category
from gal_d2.errors import UserError

logger = logging.getLogger(__name__)


def require_listed(
    json_file: Path, own: tuple[Category, ...], name_of: Mapping[int, str], other: str
) -> None:
    """Make sure that another data set lists a file's categories, under the same names.

    Args:
        json_file: the file, for the message.
        own: its categories.
        name_of: of the other data set's categories, by id.
        other: name of that data set.

    Raises:
        UserError: it does not.
    """
    for category in own:
        if name_of.get(category.id) != category.name:
            raise UserError(
                f"{json_file}: category {category.id} is '{category.name}', but "
                f"{name_of.get(category.id, 'missing')!r} in data set '{other}'; use the same "
                "category list in both."
            )


def with_categories(
    content: AnnotationFile, categories: tuple[Category, ...], other: str
) -> AnnotationFile:
    """``content`` with the categories of another data set, and without objects of others.

    Args:
        content: of a file; its report is added to.
        categories: of the other data set.
        other: its name, for the log.
    """
    classes = {category.id for category in categories}
    if classes.issuperset(content.report.objects_of):
        return dataclasses.replace(content, categories=categories)
    names = {c.id: c.name for c in content.categories}
    foreign = sorted(content.report.objects_of.keys() - classes)
    for annotation in content.annotations.of_categories(foreign):
        content.report.add_foreign(annotation)
    logger.warning(
        "%s: the objects of %s are left out: they are no classes of data set '%s', which has no "
        "annotation of them; to make one a class, give it an 'image_count' (0) there",
        content.path,
        ", ".join(f"'{names[i]}'" for i in foreign),
        other,
    )
    return dataclasses.replace(
        content,
        categories=categories,
        annotations=content.annotations.of_categories(classes),
    )


def log_findings(content: AnnotationFile, *, follows_another: bool) -> None:
    """Log what was put right in a file, and which of its categories are no classes."""
    for what, finding in content.report.corrections.items():
        logger.warning(
            "%s: %d annotations %s (ids %s)",
            content.path,
            finding.count,
            what.value,
            finding.some_ids,
        )
    if content.left_out and not follows_another:
        logger.warning(
            "%s: no annotation is of %s: no class, and nothing is generated for it; to make one a "
            "class, give it an 'image_count' (0) there",
            content.path,
            ", ".join(f"'{name}' (id {i})" for i, name in content.left_out.items()),
        )
