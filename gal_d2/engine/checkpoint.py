"""Checkpoints that know their classes and options, and loading that leaves nothing unsaid.

detectron2 loads what fits and logs the rest. That is right where a training starts from a backbone,
and silently wrong where a *trained* model is used: heads that do not fit stay random, and a model
of other classes gives every object a wrong name. So there are three ways to load:

- :meth:`CheckpointStore.load_start`: a training begins; one line says what was not loaded.
- :meth:`CheckpointStore.load_trained`: a model is used; all of it must fit, its classes too.
- :meth:`CheckpointStore.load_last`: a training goes on; as for a trained model, with all state.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from gal_d2.datasets.registration import load_metadata, names_left_out
from gal_d2.engine.resume import check_options
from gal_d2.errors import UserError, some_of
from gal_d2.files.atomic_file import remove_temporaries, replacing
from gal_d2.files.checksum import seal_zip
from gal_d2.files.weights_file import DAMAGE, read_checkpoint

logger = logging.getLogger(__name__)

# Entries of a checkpoint, beside detectron2's.
CLASSES, LEFT_OUT, CONFIG = "classes", "categories_left_out", "config"
_WEIGHTS_KEY = "MODEL.WEIGHTS"
# Parameters whose rows belong to classes.
_CLASS_LAYERS = re.compile(
    r"roi_heads\.(box_predictor(\.\d+)?\.(cls_score|bbox_pred)|mask_head\.predictor)\."
)
_CLASSIFIER = re.compile(r"roi_heads\.box_predictor(\.\d+)?\.cls_score\.(weight|bias)")
_OTHER_FILE = "name a .pth of this project or of detectron2, or a .pkl of its model zoo"
# What BatchNorm counts and does not use.
_UNUSED = "num_batches_tracked"


class CheckpointStore(DetectionCheckpointer):
    """Saves and loads the checkpoints of a run.

    Args:
        model: that is saved and loaded.
        cfg: whole; kept in each checkpoint, and compared when a training goes on.
        dataset_name: whose classes the model has; they are kept in each checkpoint, too.
        checkpointables: as in detectron2.
    """

    def __init__(
        self, model: nn.Module, cfg: CfgNode, dataset_name: str, **checkpointables: Any
    ) -> None:
        super().__init__(model, cfg.OUTPUT_DIR, **checkpointables)
        self.cfg = cfg
        self.dataset_name = dataset_name
        self.class_names = list(load_metadata(dataset_name).thing_classes)
        self.left_out = names_left_out(dataset_name)
        self._is_start = False
        self._label, self._remedy = "", _OTHER_FILE

    def save(self, name: str, **kwargs: Any) -> None:
        """As in detectron2, with the class names and the config; appears as a whole or not at all.

        Raises:
            UserError: the disk is full or the folder cannot be written to; the checkpoint before
                stays the last.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict()}
        state |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        state |= {CLASSES: self.class_names, LEFT_OUT: self.left_out, CONFIG: self.cfg.dump()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            remove_temporaries(self.save_dir, ".pth")
            with replacing(path) as temporary:
                with temporary.open("wb") as file:
                    torch.save({**state, **kwargs}, file)
                seal_zip(temporary)
            self.tag_last_checkpoint(path.name)
        except (OSError, RuntimeError) as error:
            if not (isinstance(error, OSError) or "inline_container" in str(error)):
                raise  # not of torch's writer, which hides what the system said
            raise UserError(
                f"The checkpoint {path} cannot be written ({_reason(error)}): free some space or "
                "set OUTPUT_DIR to a place that you can write to, and go on with --resume from the "
                "checkpoint before."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As in detectron2; a kill leaves the old name or the new one."""
        with replacing(Path(self.save_dir) / "last_checkpoint") as temporary:
            temporary.write_text(last_filename_basename)

    def load_start(self, path: str) -> None:
        """Load what fits of the weights that a training starts from; "" leaves them random.

        One line says what did not fit. Layers of classes that are others in number or name are left
        out.

        Raises:
            UserError: the file is not there, is no checkpoint, or fits nowhere.
        """
        if not path:
            timm = self.cfg.MODEL.TIMM
            pretrained = timm.NAME and (timm.WEIGHTS or (timm.PRETRAINED and f"timm's {timm.NAME}"))
            but = f", but for the backbone's, from {pretrained}" if pretrained else ""
            logger.info("%s is empty: the weights start random%s.", _WEIGHTS_KEY, but)
            return
        self._is_start, self._label = True, f"{_WEIGHTS_KEY} '{path}'"
        self.load(local_weights(path), checkpointables=[])

    def load_trained(self, path: str, checkpointables: Sequence[str] = ()) -> None:
        """Load a trained model, all of it.

        Raises:
            UserError: the file is not there or is no checkpoint, something of the model is missing
                or of another shape, or the classes are others.
        """
        if not path:
            raise UserError(
                f"{_WEIGHTS_KEY} is empty: name the checkpoint to load, as in "
                f"`{_WEIGHTS_KEY} output/model_final.pth`."
            )
        self._is_start, self._label = False, f"{_WEIGHTS_KEY} '{path}'"
        self.load(local_weights(path), checkpointables=list(checkpointables))

    def load_last(self, checkpointables: Sequence[str] | None = None) -> None:
        """Load the last checkpoint of the run's folder, with all of its state.

        Raises:
            UserError: as in :meth:`load_trained`; or an option that a run cannot change on its way
                is another one (:mod:`gal_d2.engine.resume`).
        """
        path = self.get_checkpoint_file()
        if not Path(path).is_file():
            raise UserError(
                f"{Path(self.save_dir) / 'last_checkpoint'} names the checkpoint {path}, which "
                "does not exist: write the name of one that is there into it, or start anew in "
                "another OUTPUT_DIR."
            )
        self._is_start, self._label = False, f"the checkpoint {path}"
        others = sorted(file.name for file in Path(path).parent.glob("model_*.pth"))
        others = [name for name in others if name != Path(path).name]
        if others:
            self._remedy = (
                f"to go on from an earlier one, write its name into {Path(path).parent}/"
                f"last_checkpoint (there are {some_of(reversed(others))})"
            )
        self.load(path, checkpointables=None if checkpointables is None else list(checkpointables))

    # -- detectron2's steps

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            checkpoint = read_checkpoint(filename)
            weights = checkpoint["model"]
            if not isinstance(weights, Mapping) or not all(
                isinstance(value, np.ndarray | torch.Tensor) for value in weights.values()
            ):
                raise ValueError("it holds other things than arrays")
        except DAMAGE as error:
            raise UserError(
                f"{self._label} is no checkpoint that can be read ({_reason(error)}): "
                f"{self._remedy}."
            ) from error
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        classes = checkpoint.get(CLASSES)
        reason = ""
        resumes = not self._is_start and "trainer" in self.checkpointables
        left_out = checkpoint.get(LEFT_OUT)
        if resumes:
            self._check_classes(classes, left_out)
            check_options(checkpoint.get(CONFIG), self.cfg, self._label)
        elif self._is_start and classes is not None and classes != self.class_names:
            of_classes = [name for name in checkpoint["model"] if _CLASS_LAYERS.search(name)]
            for name in of_classes:
                del checkpoint["model"][name]
            difference = _difference(classes, self.class_names, self.dataset_name)
            reason = f" Its classes are others: {difference}."
        incompatible = super()._load_model(checkpoint)
        wrong = incompatible.incorrect_shapes
        absent = set(incompatible.missing_keys) - {name for name, *_ in wrong}
        missing = [
            name
            for name in incompatible.missing_keys
            if name in absent and not name.endswith(_UNUSED)
        ]
        if self._is_start:
            self._say_what_is_random(missing, wrong, incompatible.unexpected_keys, reason)
            return
        if missing or wrong:
            raise UserError(self._misfit(missing, wrong, classes))
        if not resumes:
            self._check_classes(classes, left_out)
        if incompatible.unexpected_keys:
            logger.warning(
                "%s has what the model has no place for, and is not used: %s.",
                self._label,
                some_of(incompatible.unexpected_keys),
            )
        if "ema" in self.checkpointables and "ema" in checkpoint:
            self._check_average(checkpoint["ema"]["average"])
        elif "ema" in self.checkpointables and not resumes:
            logger.warning(
                "%s has no average of weights (SOLVER.EMA): those of its last step are used.",
                self._label,
            )

    # -- What is compared

    def _check_classes(self, classes: list[str] | None, left_out: list[str] | None) -> None:
        if classes is None:
            logger.warning(
                "%s does not say which classes it was trained on: they are taken to be those of "
                "data set '%s'.",
                self._label,
                self.dataset_name,
            )
        elif classes != self.class_names:
            raise UserError(
                f"{self._label} was trained on other classes: "
                f"{_difference(classes, self.class_names, self.dataset_name)}. Name the checkpoint "
                "of a model with the classes of this data set, in their order."
            )
        unheard = sorted({*self.left_out} - {*classes, *left_out}) if left_out is not None else []
        if unheard:
            # The objects of now are all of the model's classes, but those that the annotations are
            # about are not: they are not the ones that it was trained for.
            raise UserError(
                f"{self._label} has {len(classes)} classes, data set '{self.dataset_name}' lists "
                f"{len(self.class_names) + len(self.left_out)} categories, and the model was never "
                f"told of {some_of(unheard)}: name a checkpoint that was trained on this data set, "
                "or the annotations that this one was trained on."
            )

    def _check_average(self, average: Mapping[str, torch.Tensor]) -> None:
        shapes = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        differing = sorted(
            name
            for name in {*shapes, *average}
            if name not in average or shapes.get(name) != tuple(average[name].shape)
        )
        if average and differing:
            raise UserError(
                f"{self._label} has an average of weights (SOLVER.EMA) that does not fit the "
                f"model: {some_of(differing)}. Name a checkpoint that was saved as a whole, or set "
                "SOLVER.EMA.ENABLED False."
            )

    def _misfit(
        self, missing: list[str], wrong: list[tuple[str, tuple, tuple]], classes: list[str] | None
    ) -> str:
        """A sentence on a trained model that does not fit."""
        count = len(classes) if classes is not None else None
        for name, theirs, _ in wrong:
            if count is None and _CLASSIFIER.fullmatch(name):
                count = theirs[0] - 1  # a row more, for the background
        said = f"{self._label} does not fit the model"
        if count is not None and count != len(self.class_names):
            said = (
                f"{self._label} has {count} classes, data set '{self.dataset_name}' "
                f"{len(self.class_names)}"
            )
        parts = []
        if wrong:
            wrong = sorted(wrong, key=lambda row: not _CLASSIFIER.fullmatch(row[0]))
            shapes = [f"{name} is {theirs}, here {ours}" for name, theirs, ours in wrong]
            parts.append(some_of(shapes))
        if missing:
            parts.append(f"it lacks {some_of(missing)}")
        return (
            f"{said} ({'; '.join(parts)}). A trained model is used as a whole or not at all: name "
            "a checkpoint that was trained with this config on these classes."
        )

    def _say_what_is_random(
        self,
        missing: list[str],
        wrong: list[tuple[str, tuple, tuple]],
        unexpected: list[str],
        reason: str,
    ) -> None:
        total = [name for name in self.model.state_dict() if not name.endswith(_UNUSED)]
        not_loaded = [f"{name} ({theirs}, here {ours})" for name, theirs, ours in wrong]
        not_loaded += missing
        # The mean and deviation of pixels are in the config.
        if len(not_loaded) >= sum(not name.startswith("pixel_") for name in total):
            raise UserError(
                f"nothing of {self._label} fits the model ({some_of(unexpected or not_loaded)}): "
                "name weights of this architecture, or leave them empty to start from random ones."
            )
        if not_loaded or unexpected:
            logger.warning(
                "%s: %d of %d tensors are loaded. Not loaded, so random: %s. Not used: %s.%s",
                self._label,
                len(total) - len(not_loaded),
                len(total),
                some_of(_modules(not_loaded)) if not_loaded else "none",
                some_of(_modules(unexpected)) if unexpected else "none",
                reason,
            )


def local_weights(path: str, key: str = _WEIGHTS_KEY) -> str:
    """The file of a path or URL, fetched where need be.

    Raises:
        UserError: it is not there, or cannot be fetched; names ``key`` and a remedy.
    """
    if "://" not in path:
        if not Path(path).is_file():
            raise UserError(
                f"{key} is '{path}', which does not exist: name a checkpoint that is there, or "
                f"set {key} '' to train from random weights."
            )
        return path
    try:
        local = PathManager.get_local_path(path)
        if not os.path.isfile(local):
            raise OSError("there is no such file")
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{key} is '{path}', which cannot be fetched ({reason:.200}): fetch it where there is "
            f"a network and name the file, or set {key} '' to train from random weights (with "
            "MODEL.BACKBONE.FREEZE_AT 0 and MODEL.RESNETS.NORM BN)."
        ) from error
    return local


def _reason(error: Exception) -> str:
    """The first line of what an error says, or the system, behind torch's words."""
    of_system = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None)
    said = of_system or str(error).strip() or type(error).__name__
    return f"{said.splitlines()[0]:.200}"


def _difference(theirs: Sequence[str], ours: Sequence[str], dataset_name: str) -> str:
    """Where two lists of class names first differ."""
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes there, {len(ours)} in data set '{dataset_name}'"
    index = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    count = sum(a != b for a, b in zip(theirs, ours, strict=True))
    return (
        f"class {index} is '{theirs[index]}' there and '{ours[index]}' in data set "
        f"'{dataset_name}', {count} of {len(ours)} differ"
    )


def _modules(names: Sequence[str]) -> list[str]:
    """Names of parameters without ``.weight`` and ``.bias``, each module once."""
    return list(dict.fromkeys(re.sub(r"\.(weight|bias)\b", "", name, count=1) for name in names))
