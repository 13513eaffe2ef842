"""The checked images and annotations of a file as arrays: small, and mapped where they are cached.

As Python objects, LVIS's 1.27 million annotations take 5 GB in each process. As arrays they take
1 GB, which all processes of a machine share; dicts are made of those that are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np


class Packer:
    """Takes checked annotations apart into arrays, some thousands at a time.

    The arrays, by name. Of each row, an annotation, in the order of the file: ``id, category,
    crowd, area`` (n,), ``box`` (n, 4) XYWH, ``image`` (n,), its index; of images, ``rows`` (n,)
    grouped by image, from ``first_rows`` (m + 1,) on, ``image_id`` (m,), ``image_size`` (m, 2)
    height and width. What is of varying length stands one behind the other, the i-th from
    ``first_...[i]`` to ``first_...[i + 1]``: ``points``, flat coordinates of each polygon, and
    ``first_polygon``, of each row; ``rle`` texts of the rows without polygons; of images the texts
    ``file_name`` and ``coco_url``, and the ids ``neg`` and ``not_exhaustive``.

    Args:
        index_of: of images by id.
    """

    def __init__(self, index_of: Mapping[int, int]) -> None:
        self._index_of = index_of
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, annotations: Sequence[dict[str, Any]]) -> None:
        """The next annotations of :class:`gal_d2.datasets.annotation_objects.Normaliser`."""
        masks = [annotation["segmentation"] for annotation in annotations]
        polygons = list(chain.from_iterable(mask for mask in masks if isinstance(mask, list)))
        per_mask = [len(mask) if isinstance(mask, list) else 0 for mask in masks]
        texts = [b"" if isinstance(mask, list) else mask["counts"].encode() for mask in masks]
        images = [self._index_of[annotation["image_id"]] for annotation in annotations]
        part = {
            "id": np.array([a["id"] for a in annotations], np.int64),
            "category": np.array([a["category_id"] for a in annotations], np.int64),
            "crowd": np.array([a["iscrowd"] for a in annotations], np.uint8),
            "area": np.array([a["area"] for a in annotations], np.float64),
            "box": np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4),
            "image": np.array(images, np.int64),
            "first_polygon": np.array(per_mask, np.int64),
            "first_points": np.array(list(map(len, polygons)), np.int64),
            "points": np.array(list(chain.from_iterable(polygons)), np.float64),
            "first_rle": np.array(list(map(len, texts)), np.int64),
            "rle": np.frombuffer(b"".join(texts), np.uint8),
        }
        self._parts.append(part)

    def finish(self, images: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays of all that was added.

        Args:
            images: m of them, checked, in the order of their indices.
        """
        if not self._parts:
            self.add([])
        arrays = {}
        for name in list(self._parts[0]):
            # One by one, so that no more than one array is there twice.
            arrays[name] = np.concatenate([part.pop(name) for part in self._parts])
            if name.startswith("first_"):
                arrays[name] = _starts(arrays[name])
        arrays["rows"] = np.argsort(arrays["image"], kind="stable")
        arrays["first_rows"] = _starts(np.bincount(arrays["image"], minlength=len(images)))
        return arrays | _pack_images(images)


class AnnotationTable(Sequence):
    """Checked annotations in the order of their file, as dicts that are made on the way.

    Each has ``id, image_id, category_id`` (JSON id), ``segmentation``, ``bbox`` (XYWH, pixels),
    ``area`` and ``iscrowd``: see :class:`gal_d2.datasets.annotation_file.AnnotationFile`.

    Args:
        arrays: what :class:`Packer` gives.
        selected: (k,) rows of the annotations that it has; all by default.

    Attributes:
        arrays: the argument.
        home: path and identity of the array file that ``arrays`` are mapped from; None: of none.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        home: tuple[str, Any] | None = None,
        selected: np.ndarray | None = None,
    ) -> None:
        self.arrays = arrays
        self._selected = selected
        self.home = home

    def __len__(self) -> int:
        return len(self.column("id"))

    def __getitem__(self, index: int | slice) -> Any:
        rows = range(len(self)) if self._selected is None else self._selected
        if isinstance(index, slice):
            return [self._annotation(int(row)) for row in rows[index]]
        return self._annotation(int(rows[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    @property
    def num_objects(self) -> int:
        """How many are no crowds."""
        return int(np.count_nonzero(self.column("crowd") == 0))

    def column(self, name: str) -> np.ndarray:
        """(k, ...) of one of :class:`Packer`'s names that have a value of each row."""
        array = self.arrays[name]
        return array if self._selected is None else array[self._selected]

    def of_categories(self, category_ids: Iterable[int]) -> AnnotationTable:
        """Those of some categories alone."""
        wanted = np.isin(self.column("category"), list(category_ids))
        rows = np.flatnonzero(wanted) if self._selected is None else self._selected[wanted]
        return AnnotationTable(self.arrays, home=self.home, selected=rows)

    def classes(self, category_ids: Sequence[int]) -> np.ndarray:
        """(k,) int64: the place of each one's category in ``category_ids``, or -1.

        Args:
            category_ids: ascending.
        """
        known, categories = np.asarray(category_ids, np.int64), self.column("category")
        found = np.searchsorted(known, categories)
        is_there = known[np.minimum(found, len(known) - 1)] == categories
        return np.where(is_there, found, -1)

    def images(self) -> list[dict[str, Any]]:
        """New dicts of the images: see :class:`~gal_d2.datasets.annotation_file.AnnotationFile`."""
        arrays = self.arrays
        columns = zip(
            arrays["image_id"].tolist(),
            arrays["image_size"].tolist(),
            _split_texts(arrays, "file_name"),
            _split_texts(arrays, "coco_url"),
            _split(arrays, "neg"),
            _split(arrays, "not_exhaustive"),
            strict=True,
        )
        images = []
        for image_id, (height, width), name, url, negative, not_exhaustive in columns:
            image = {"id": image_id, "height": height, "width": width}
            if name:
                image["file_name"] = name
            if url:
                image["coco_url"] = url
            image["neg_category_ids"] = negative
            image["not_exhaustive_category_ids"] = not_exhaustive
            images.append(image)
        return images

    def segmentation(self, row: int) -> list[list[float]] | dict[str, Any]:
        """Flat polygons, or a compressed RLE."""
        arrays = self.arrays
        first, end = arrays["first_polygon"][row : row + 2].tolist()
        if first == end:
            start, stop = arrays["first_rle"][row : row + 2].tolist()
            size = arrays["image_size"][arrays["image"][row]].tolist()
            return {"size": size, "counts": arrays["rle"][start:stop].tobytes().decode("ascii")}
        bounds = arrays["first_points"][first : end + 1].tolist()
        points = arrays["points"]
        return [points[start:stop].tolist() for start, stop in pairwise(bounds)]

    def _annotation(self, row: int) -> dict[str, Any]:
        arrays = self.arrays
        return {
            "id": int(arrays["id"][row]),
            "image_id": int(arrays["image_id"][arrays["image"][row]]),
            "category_id": int(arrays["category"][row]),
            "segmentation": self.segmentation(row),
            "bbox": arrays["box"][row].tolist(),
            "area": float(arrays["area"][row]),
            "iscrowd": int(arrays["crowd"][row]),
        }


def _pack_images(images: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    size = [(image["height"], image["width"]) for image in images]
    arrays = {
        "image_id": np.array([image["id"] for image in images], np.int64),
        "image_size": np.array(size, np.int64).reshape(-1, 2),
    }
    for key in ("file_name", "coco_url"):
        arrays |= _texts(key, [image.get(key) or "" for image in images])
    for name in ("neg", "not_exhaustive"):
        ids = [image[f"{name}_category_ids"] for image in images]
        arrays[name] = np.array(list(chain.from_iterable(ids)), np.int64)
        arrays[f"first_{name}"] = _starts(np.fromiter(map(len, ids), np.int64, len(ids)))
    return arrays


def _texts(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    encoded = [text.encode() for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"first_{name}": _starts(lengths)}


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _split(arrays: Mapping[str, np.ndarray], name: str) -> Iterator[list]:
    values, bounds = arrays[name].tolist(), arrays[f"first_{name}"].tolist()
    return (values[a:b] for a, b in pairwise(bounds))


def _split_texts(arrays: Mapping[str, np.ndarray], name: str) -> Iterator[str]:
    text, bounds = arrays[name].tobytes(), arrays[f"first_{name}"].tolist()
    return (text[a:b].decode() for a, b in pairwise(bounds))
