"""Certified removal from linear models (Guo, Goldstein, Hannun, van der Maaten, ICML 2020, "Certified Data Removal ...").

Training minimises L_b(w; D) = sum_i l(w.x_i, y_i) + lam n / 2 |w|^2 + b.w with a secret random b. Removing rows is one Newton
step on what remains. It leaves a gradient residual; while its accumulated bound, the optimiser's own residual included, stays
below the budget, the model is (epsilon, delta)-indistinguishable from one trained without the rows (Theorem 3). When it
would not, the model is trained anew with a fresh b. Several classes are one-vs-rest heads seen as one stacked parameter.

What the Theorem does not cover: the bounds are functions of the weights, hence of b, and so is the decision to train anew. At a
removal where some draws of b would be trained anew and others not, delta is larger by up to e^epsilon times the share of the
former. Where all or none would be it holds as stated, so `remove(..., anew=True)` at removals fixed in advance, well before the
budget ends, keeps to it. The ids must not be chosen by who has seen the weights.

b never leaves the memory of the process that drew it: who knows it can undo the guarantee, so no file holds it.

The model's file is the owner's and secret: its account (`spent`) is a function of the removed rows, and the ids that it lacks
say who left. The guarantee speaks of the weights alone; `export_linear` writes what may be handed out.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from erase import __version__
from erase.classification.guarantee import Bounds, LinearConfig, bounds_of, draw_noise
from erase.classification.linear import gradient, minimise, newton_step
from erase.classification.rows import Rows, class_labels, positions_to_remove
from erase.files import metadata_of, require_new, write_safetensors
from erase.reading import check_safetensors

FORMAT = "erase-linear-1"
PUBLIC_FORMAT = "erase-linear-weights-1"


@dataclass(frozen=True)
class Removal:
    """What a removal did; `residual` is measured where b is in memory, and None in a model read from a file."""

    num_removed: int
    retrained: bool
    charged: float
    spent: float
    budget: float
    bounds: Bounds
    residual: float | None


class RemovableLinear:
    """A linear model that rows can be removed from, with the guarantee its config states; on any features.

    Labels are classes (two: one head; more: one head a class), or with `squared` and float labels real targets. Without a
    generator the perturbation comes from the system's entropy, as the guarantee wants; with one, runs can be repeated.
    """

    weights: np.ndarray  # (K, d)
    classes: np.ndarray  # (C,), empty for real targets
    spent: float  # of config.budget, since the last training
    rows: Rows  # those that remain
    _gram: np.ndarray  # their X^T X

    def __init__(self, config: LinearConfig | None = None, generator: np.random.Generator | None = None) -> None:
        self.config = config or LinearConfig()
        self._generator = generator or np.random.default_rng()
        self._noise: np.ndarray | None = None

    def fit(self, rows: Rows) -> Self:
        """Algorithm 1; raises ValueError where the bound charged would not hold for these rows."""
        longest = float(np.linalg.norm(rows.features, axis=1).max())
        if self.config.bound != "elementwise" and longest > 1 + 1e-12:
            raise ValueError(
                f"a row has norm {longest:.3g} and the bound {self.config.bound!r} assumes at most 1: divide the rows by a "
                "constant, clip them, or use the bound 'elementwise', which assumes nothing."
            )
        real = rows.labels.dtype.kind == "f" and self.config.loss == "squared"
        self._train(rows, np.empty(0, np.int64) if real else np.unique(class_labels(rows)))
        return self

    def remove(self, ids: Sequence[int] | np.ndarray, anew: bool = False) -> Removal:
        """Algorithm 2 for rows of these ids at once; on an error the model is as it was.

        `anew` trains anew whatever the budget says, as at removals that were fixed in advance (see the module). Where a class
        has no row left the model is trained anew without it: its head would tell that it was there.
        """
        gone = np.isin(np.arange(len(self.rows)), positions_to_remove(self.rows.ids, ids))
        rest, removed = self.rows.take(~gone), self.rows.take(gone)
        classes = np.unique(class_labels(rest)) if len(self.classes) else self.classes
        targets = self.targets(rest)
        step = newton_step(
            self.config.loss, self.config.lam, self.weights, rest.features, targets, removed.features, self.targets(removed)
        )
        gram = self._gram - removed.features.T @ removed.features
        norm = math.sqrt(max(0.0, float(np.linalg.eigvalsh(gram)[-1])))
        bounds = bounds_of(self.config, step, self.weights, rest.features, norm, len(removed))
        charged = asdict(bounds)[self.config.bound]
        within = self.spent + charged <= self.config.budget  # False for what is no number
        retrained = anew or not within or len(classes) < len(self.classes)
        if retrained:
            self._train(rest, classes)
        else:
            self.weights, self.spent, self.rows, self._gram = self.weights + step, self.spent + charged, rest, gram
        return Removal(len(removed), retrained, charged, self.spent, self.config.budget, bounds, self.residual())

    def residual(self) -> float | None:
        """|gradient of L_b| at the present weights on the present rows, measured; None where b is not in memory."""
        if self._noise is None:
            return None
        slope = (
            gradient(self.config.loss, self.config.lam, self.weights, self.rows.features, self.targets(self.rows)) + self._noise
        )
        return float(np.linalg.norm(slope))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """w.x of every head (n, K)."""
        return features @ self.weights.T

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The class of each row (n,), or the real value."""
        return predictions(self.weights, self.classes, features)

    def save(self, path: Path, provenance: dict[str, str] | None = None) -> None:
        """Write the weights, the ids that remain, a hash of their rows and the account; neither rows nor b.

        The file is secret all the same (see the module): `export_linear` makes the one to hand out.
        """
        metadata = {
            **(provenance or {}),
            "format": FORMAT,
            "version": __version__,
            "config": self.config.model_dump_json(),
            "spent": repr(self.spent),
            "rows": self.rows.digest(),
        }
        arrays = {"weights": self.weights, "ids": self.rows.ids, "classes": self.classes}
        write_safetensors({name: torch.from_numpy(array) for name, array in arrays.items()}, path, metadata)

    @classmethod
    def load(cls, path: Path, rows: Rows) -> Self:
        """The model in a file with its rows, found by id in `rows`; raises ValueError if one is missing or was changed."""
        arrays, metadata = read_linear(path)
        model = cls(config_in(metadata, path))
        model.weights, model.classes, model.spent = arrays["weights"], arrays["classes"], float(metadata["spent"])
        model.rows = rows.with_ids(arrays["ids"])
        if model.weights.shape[1] != model.rows.features.shape[1]:
            raise ValueError(f"{path} has {model.weights.shape[1]} weights a head, the rows {model.rows.features.shape[1]}.")
        if model.rows.digest() != metadata["rows"]:
            raise ValueError(f"the rows of {path} are not those it was trained on: the data has changed since; train it again.")
        if len(model.classes) and not np.array_equal(np.unique(class_labels(model.rows)), model.classes):
            raise ValueError(f"{path} is damaged: its classes are {model.classes.tolist()}, not those of its rows.")
        model._gram = model.rows.features.T @ model.rows.features
        return model

    def _train(self, rows: Rows, classes: np.ndarray) -> None:
        targets = targets_of(rows, classes)
        noise = draw_noise(self.config, (targets.shape[1], rows.features.shape[1]), self._generator)
        weights = minimise(self.config.loss, self.config.lam, rows.features, targets, noise)
        left = float(np.linalg.norm(gradient(self.config.loss, self.config.lam, weights, rows.features, targets) + noise))
        if left > self.config.budget:
            raise ValueError(f"training leaves a gradient of {left:.2g}, budget {self.config.budget:.2g}: raise sigma.")
        self.rows, self.classes, self.weights, self.spent, self._noise = rows, classes, weights, left, noise
        self._gram = rows.features.T @ rows.features

    def targets(self, rows: Rows) -> np.ndarray:
        """What each head is asked for (n, K): 1 or -1, or the real target."""
        return targets_of(rows, self.classes)


def targets_of(rows: Rows, classes: np.ndarray) -> np.ndarray:
    """What the heads of these classes are asked for (n, K): 1 or -1; without classes the real target."""
    if not len(classes):
        return rows.labels[:, None]
    positive = classes[1:] if len(classes) == 2 else classes
    return np.where(rows.labels[:, None] == positive, 1.0, -1.0)


def predictions(weights: np.ndarray, classes: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The class that weights (K, d) give each row (n,); without classes the real value. Raises ValueError on another width."""
    if features.shape[1] != weights.shape[1]:
        raise ValueError(f"the rows have {features.shape[1]} features, the model {weights.shape[1]}.")
    scores = features @ weights.T
    if not len(classes):
        return scores[:, 0]
    return classes[(scores[:, 0] > 0).astype(int) if len(classes) == 2 else scores.argmax(1)]


def is_linear(path: Path) -> bool:
    """Whether the file says that it is a removable linear model."""
    try:
        read_linear(path)
    except ValueError:
        return False
    return True


def read_linear(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and header of a model's file; raises ValueError on any other file."""
    arrays, metadata = _read(path, (FORMAT,), ("weights", "ids", "classes"), ("config", "spent", "rows"))
    if arrays["ids"].ndim != 1 or arrays["ids"].dtype != np.int64:
        raise ValueError(f"{path} is not a removable linear model: its ids are no list of whole numbers.")
    try:
        accounted = 0 <= float(metadata["spent"]) < math.inf
    except ValueError:
        accounted = False
    if not accounted:
        raise ValueError(f"{path} is not a removable linear model: its account is {metadata['spent']!r}.")
    return arrays, metadata


def export_linear(source: Path, path: Path) -> None:
    """Write what of a model's file may be handed out: weights, classes, settings, and how rows are scaled.

    Nothing but the weights depends on the rows that were removed: the rest is byte for byte that of a model trained without
    them. Raises ValueError if `path` is there already, or `source` is no model's file.
    """
    require_new(path)
    arrays, metadata = read_linear(source)
    header = {"format": PUBLIC_FORMAT, "version": __version__, "config": metadata["config"], "scale": metadata.get("scale", "")}
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("weights", "classes")}
    write_safetensors(tensors, path, header)


def read_weights(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """(weights (K, d), classes, header) of a model's file or of an exported one; raises ValueError on any other file."""
    arrays, metadata = _read(path, (FORMAT, PUBLIC_FORMAT), ("weights", "classes"), ("config",))
    return arrays["weights"], arrays["classes"], metadata


def config_in(metadata: dict[str, str], path: Path) -> LinearConfig:
    """The settings in a file's header; raises ValueError if they are none."""
    try:
        return LinearConfig.model_validate_json(metadata["config"])
    except ValidationError as error:
        raise ValueError(f"{path} is not a removable linear model: its settings are {error.errors()[0]['msg']}.") from error


def _read(
    path: Path, formats: tuple[str, ...], names: tuple[str, ...], keys: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        check_safetensors(path)
        with safe_open(path, "np") as file:
            metadata = metadata_of(file)
            if metadata.get("format") == PUBLIC_FORMAT and PUBLIC_FORMAT not in formats:
                raise ValueError("it is an export, which has weights alone; rows are removed from the file that `fit` wrote")
            if metadata.get("format") not in formats:
                raise ValueError(f"its header does not say {FORMAT}")
            if missing := [key for key in keys if key not in metadata]:
                raise ValueError(f"its header lacks {missing[0]!r}")
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a removable linear model: {error}.") from error
    weights, classes = arrays["weights"], arrays["classes"]
    if weights.ndim != 2 or weights.dtype != np.float64 or classes.ndim != 1 or classes.dtype != np.int64:
        raise ValueError(
            f"{path} is not a removable linear model: its weights are no matrix of float64 beside a list of classes."
        )
    if not np.isfinite(weights).all():
        raise ValueError(f"{path} is not a removable linear model: not all of its weights are finite.")
    if len(arrays["weights"]) != len(arrays["classes"]) - (len(arrays["classes"]) == 2) + (not len(arrays["classes"])):
        raise ValueError(f"{path} is not a removable linear model: it has {len(arrays['weights'])} heads for its classes.")
    config_in(metadata, path)
    return arrays, metadata
