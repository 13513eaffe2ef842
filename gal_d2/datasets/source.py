"""Where the files of a data set are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gal_d2.datasets.image_paths import find_image, first_value, leaves_folder
from gal_d2.errors import UserError


@dataclass(frozen=True)
class Source:
    """Where a data set's files are.

    ``split_folders``: images lie in ``image_root/<split>/<name>``, the last two parts of their
    ``coco_url``, as LVIS is laid out; otherwise in ``image_root/<file_name>``.
    ``annotated_only``: categories without any annotation are no classes.
    """

    json_file: Path
    image_root: Path
    categories_from: str | None = None
    split_folders: bool = False
    annotated_only: bool = False

    @property
    def own_classes_annotated_only(self) -> bool:
        """Where another set gives the classes, what this one has no annotation of is no matter."""
        return self.annotated_only or self.categories_from is not None


def image_name(source: Source, image: dict[str, Any]) -> str:
    """The file of an image, relative to the data set's folder.

    Args:
        source: of the data set.
        image: with ``file_name`` or ``coco_url``.

    Raises:
        UserError: it lies outside of the folder.
    """
    url, name = image.get("coco_url"), image.get("file_name")
    if url and (source.split_folders or not name):
        name = "/".join(url.split("/")[-2:])
    if leaves_folder(source.image_root, name):
        raise UserError(
            f"{source.json_file}: image {image.get('id', '')} is '{name}', which lies outside of "
            f"the image folder {source.image_root}: give the folder that holds all images."
        )
    return name


def first_image(source: Source) -> Path | None:
    """The file of the first image, found without parsing the JSON; None if it names none."""
    keys = ("coco_url",) if source.split_folders else ("file_name", "coco_url")
    found = first_value(source.json_file, keys)
    if found is None:
        return None
    return Path(find_image(source.image_root, image_name(source, dict([found]))))
