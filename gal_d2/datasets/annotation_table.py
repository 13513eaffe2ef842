"""The checked images and annotations of a file as arrays: small, and mapped where they are cached.

As Python objects, LVIS's 1.27 million annotations take 5 GB in each process. As arrays they take
1 GB, which all processes of a machine share; dicts are made of those that are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

# So many annotations at a time are taken apart.
_CHUNK = 20_000


def pack(images: Sequence[dict[str, Any]], annotations: list) -> dict[str, np.ndarray]:
    """Arrays of what :func:`gal_d2.datasets.annotation_objects.normalise_annotations` gives.

    Rows are annotations; those of an image stand together, in the order of the file.

    Args:
        images: m of them, checked.
        annotations: n; the list is emptied on the way, for the memory's sake.

    Returns:
        By name: ``order`` (n,), the row of each annotation in the order of the file;
        ``first_row`` (m + 1,), of each image; ``id, category, crowd, area`` (n,), ``box`` (n, 4)
        XYWH; ``first_polygon`` (n + 1,) of each row, ``first_point`` of each polygon, into
        ``points``, flat coordinates; ``rle`` texts of the rows without polygons; of images
        ``image_id`` (m,), ``image_size`` (m, 2) height and width, ``file_name`` and ``coco_url``
        texts, ``neg`` and ``not_exhaustive`` ids. Texts and ids of ``name`` stand one behind the
        other in ``name``, the i-th from ``first_name[i]`` to ``first_name[i + 1]``.
    """
    count = len(annotations)
    index_of = {image["id"]: index for index, image in enumerate(images)}
    image = np.fromiter((index_of[a["image_id"]] for a in annotations), np.int64, count)
    file_position = np.argsort(image, kind="stable")
    order = np.empty(count, np.int64)
    order[file_position] = np.arange(count)
    polygons_of = np.zeros(count, np.int64)
    total = 0
    for row, position in enumerate(file_position.tolist()):
        segmentation = annotations[position]["segmentation"]
        if isinstance(segmentation, list):
            polygons_of[row] = len(segmentation)
            total += sum(map(len, segmentation))
    arrays = {
        "order": order,
        "first_row": np.searchsorted(image[file_position], np.arange(len(images) + 1)),
        "id": np.empty(count, np.int64),
        "category": np.empty(count, np.int64),
        "crowd": np.empty(count, np.uint8),
        "area": np.empty(count, np.float64),
        "box": np.empty((count, 4), np.float64),
        "first_polygon": _starts(polygons_of),
        "points": np.empty(total, np.float64),
    }
    lengths: list[int] = []
    texts: list[str] = []
    filled = 0
    for start in range(0, count, _CHUNK):
        positions = file_position[start : start + _CHUNK].tolist()
        chunk = [annotations[position] for position in positions]
        rows = slice(start, start + len(chunk))
        for name, key in (("id", "id"), ("category", "category_id"), ("crowd", "iscrowd")):
            arrays[name][rows] = [annotation[key] for annotation in chunk]
        arrays["area"][rows] = [annotation["area"] for annotation in chunk]
        arrays["box"][rows] = [annotation["bbox"] for annotation in chunk]
        masks = [annotation["segmentation"] for annotation in chunk]
        polygons = list(chain.from_iterable(mask for mask in masks if isinstance(mask, list)))
        lengths += map(len, polygons)
        texts += ("" if isinstance(mask, list) else mask["counts"] for mask in masks)
        points = np.array(list(chain.from_iterable(polygons)), np.float64)
        arrays["points"][filled : filled + len(points)] = points
        filled += len(points)
        for position in positions:
            annotations[position] = None
    annotations.clear()
    arrays["first_point"] = _starts(np.array(lengths, np.int64))
    return arrays | _texts("rle", texts) | _pack_images(images)


class AnnotationTable(Sequence):
    """Checked annotations in the order of their file, as dicts that are made on the way.

    Each has ``id, image_id, category_id`` (JSON id), ``segmentation``, ``bbox`` (XYWH, pixels),
    ``area`` and ``iscrowd``: see :class:`gal_d2.datasets.annotation_file.AnnotationFile`.

    Args:
        arrays: what :func:`pack` gives.
        order: (k,) rows of the annotations that it has; all by default.

    Attributes:
        arrays, order: the arguments.
        home: path and identity of the array file that ``arrays`` are mapped from; None: of none.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        home: tuple[str, Any] | None = None,
        order: np.ndarray | None = None,
    ) -> None:
        self.arrays = arrays
        self.order = arrays["order"] if order is None else order
        self.home = home

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._annotation(row) for row in self.order[index].tolist()]
        return self._annotation(int(self.order[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._annotation, self.order.tolist())

    @property
    def num_objects(self) -> int:
        """How many are no crowds."""
        return int(np.count_nonzero(self.column("crowd") == 0))

    def column(self, name: str) -> np.ndarray:
        """(k, ...) of one of :func:`pack`'s names with a value a row, in the order of the file."""
        return self.arrays[name][self.order]

    def image_indices(self) -> np.ndarray:
        """(k,) int64, into the images."""
        starts = self.arrays["first_row"]
        return np.repeat(np.arange(len(starts) - 1), np.diff(starts))[self.order]

    def of_categories(self, category_ids: Iterable[int]) -> AnnotationTable:
        """Those of some categories alone."""
        wanted = np.isin(self.column("category"), list(category_ids))
        return AnnotationTable(self.arrays, home=self.home, order=self.order[wanted])

    def classes_by_row(self, category_ids: Sequence[int]) -> np.ndarray:
        """(n,) int64: of each row, the place of its category in ``category_ids``, or -1.

        Args:
            category_ids: ascending.
        """
        known = np.asarray(category_ids, np.int64)
        found = np.searchsorted(known, self.arrays["category"])
        is_there = known[np.minimum(found, len(known) - 1)] == self.arrays["category"]
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

    def image_of_row(self, row: int) -> int:
        """Index of the image that a row is of."""
        return int(np.searchsorted(self.arrays["first_row"], row, side="right")) - 1

    def segmentation(self, row: int) -> list[list[float]] | dict[str, Any]:
        """Flat polygons, or a compressed RLE."""
        arrays = self.arrays
        first, end = arrays["first_polygon"][row : row + 2].tolist()
        if first == end:
            start, stop = arrays["first_rle"][row : row + 2].tolist()
            size = arrays["image_size"][self.image_of_row(row)].tolist()
            return {"size": size, "counts": arrays["rle"][start:stop].tobytes().decode("ascii")}
        bounds = arrays["first_point"][first : end + 1].tolist()
        points = arrays["points"]
        return [points[start:stop].tolist() for start, stop in pairwise(bounds)]

    def _annotation(self, row: int) -> dict[str, Any]:
        arrays = self.arrays
        return {
            "id": int(arrays["id"][row]),
            "image_id": int(arrays["image_id"][self.image_of_row(row)]),
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
