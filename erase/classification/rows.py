"""Rows with identities: what the systems that can delete a row are given, and how changed data is found out."""

import hashlib
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

MOST_IDS = 10_000_000
MOST = np.iinfo(np.int64).max
BUILT_IN = ("digits", "breast_cancer")


@dataclass(frozen=True, eq=False)
class Rows:
    """Features (n, d) float64, labels (n,) (classes or real targets) and ids (n,) int64; refuses what has no use."""

    features: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.size == 0:
            raise ValueError(f"features have the shape {self.features.shape}; rows x features are needed, one or more of each.")
        if self.labels.shape != (len(self.features),) or self.ids.shape != (len(self.features),):
            raise ValueError(
                f"{len(self.features)} rows have labels of shape {self.labels.shape} and ids of shape {self.ids.shape}; "
                "one label and one id a row are needed."
            )
        if self.features.dtype != np.float64 or self.ids.dtype != np.int64:
            raise ValueError(f"features are {self.features.dtype} and ids {self.ids.dtype}; float64 and int64 are needed.")
        bad = ~np.isfinite(self.features).all(1) | (~np.isfinite(self.labels) if self.labels.dtype.kind == "f" else False)
        if bad.any():
            raise ValueError(f"row {self.ids[bad][0]} has a value that is not finite: clean the data first.")
        if len(np.unique(self.ids)) != len(self.ids):
            values, counts = np.unique(self.ids, return_counts=True)
            raise ValueError(f"the id {values[counts > 1][0]} stands on more than one row; ids must be unique.")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: np.ndarray) -> "Rows":
        """The rows at positions or where a boolean mask is True."""
        return Rows(self.features[positions], self.labels[positions], self.ids[positions])

    def with_ids(self, ids: np.ndarray) -> "Rows":
        """The rows with these ids, in this order; raises ValueError if one is missing."""
        order = np.argsort(self.ids)
        found = np.minimum(np.searchsorted(self.ids, ids, sorter=order), len(self) - 1)
        positions = order[found]
        if (self.ids[positions] != ids).any():
            missing = ids[self.ids[positions] != ids]
            raise ValueError(f"the data lacks {len(missing)} of the model's rows, first {missing[0]}: was the file changed?")
        return self.take(positions)

    def digest(self) -> str:
        """Hash of every row with its id and label: changes with any of them."""
        labels = self.labels.astype(np.float64 if self.labels.dtype.kind == "f" else np.int64)
        found = hashlib.sha256(repr((self.features.shape, labels.dtype.str)).encode())
        for part in (self.ids, labels, self.features):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def rows_of(features: ArrayLike, labels: ArrayLike, ids: ArrayLike | None = None) -> Rows:
    """Rows from plain arrays; without ids a row's id is its number."""
    features = np.asarray(features, np.float64)
    numbers = np.arange(len(features)) if ids is None else np.asarray(ids)
    if numbers.dtype.kind not in "iu" or (numbers.dtype.kind == "u" and (numbers > MOST).any()):
        raise ValueError(f"ids are {numbers.dtype}; whole numbers are needed, below 2^63.")
    return Rows(features, np.asarray(labels), numbers.astype(np.int64))


def class_labels(rows: Rows, num_classes: int | None = None) -> np.ndarray:
    """The rows' classes (n,); raises ValueError unless they are two or more whole numbers from 0, below C if given."""
    labels = rows.labels
    if labels.dtype.kind == "u" and (labels > MOST).any():
        raise ValueError(f"the label {labels.max()} is too large; classes are whole numbers from 0 and below 2^63.")
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels are {labels.dtype}; classes are whole numbers from 0.")
    outside = (labels < 0) | (labels >= num_classes if num_classes else False)
    if outside.any():
        accepted = f"0 to {num_classes - 1}" if num_classes else "0 or more"
        raise ValueError(f"the label of row {rows.ids[outside][0]} is {labels[outside][0]}; accepted: {accepted}.")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all {len(labels)} rows are of class {labels[0]}; a classifier needs two classes.")
    return labels.astype(np.int64)


def positions_to_remove(known: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where the ids stand in `known`; raises ValueError for none at all, repeated or unknown ones, and for all there are."""
    wanted = np.asarray(ids)
    if wanted.size == 0:
        raise ValueError("no id to remove was given.")
    if wanted.dtype.kind not in "iu" or wanted.ndim != 1:
        raise ValueError(f"ids to remove are {wanted.dtype} of shape {wanted.shape}; a list of whole numbers is needed.")
    values, counts = np.unique(wanted, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"the id {values[counts > 1][0]} is given more than once; name each row once.")
    unknown = values[~np.isin(values, known)]
    if len(unknown):
        raise ValueError(f"no row with the id {unknown[0]} is in the model: never there, or removed already.")
    if len(values) == len(known):
        raise ValueError(f"all {len(known)} rows would be removed: delete the model instead.")
    return np.flatnonzero(np.isin(known, values))


def parse_ids(text: str) -> list[int]:
    """Ids as on the command line: `17,42,100-120`."""
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d{1,18})(?:-(\d{1,18}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"ids are {text!r}; accepted: numbers and ranges from low to high, as in 17,42,100-120.")
        first, last = int(match[1]), int(match[2] or match[1])
        if len(ids) + last - first >= MOST_IDS:
            raise ValueError(f"ids are {text!r}; at most {MOST_IDS:,} are taken at once.")
        ids += range(first, last + 1)
    return ids


def load_rows(spec: str) -> Rows:
    """`digits`, `breast_cancer` or FILE.npz (`features`, `labels`, perhaps `ids`), perhaps with classes, as in `digits:3,8`.

    Digits are divided by 16, the most a pixel can have. The classes named become 0, 1, ... in that order. Without ids in the
    file a row's id is its number, counted among the classes named.
    """
    match = re.fullmatch(r"(.+?)(?::(\d+(?:,\d+)*))?", spec)
    if match is None:
        raise ValueError(f"no data was given; accepted: {', '.join(BUILT_IN)} or FILE.npz.")
    name, chosen = match.groups()
    arrays = _built_in(name) if name in BUILT_IN else _npz(Path(name))
    features = arrays["features"]
    rows = rows_of(features.reshape(len(features), math.prod(features.shape[1:])), arrays["labels"], arrays.get("ids"))
    if chosen is None:
        return rows
    classes, present = [int(number) for number in chosen.split(",")], np.unique(class_labels(rows)).tolist()
    if len(set(classes)) < max(2, len(classes)) or not set(classes) <= set(present):
        raise ValueError(f"{spec}: {name} has the classes {', '.join(map(str, present))}; name two or more of them, each once.")
    kept = rows.take(np.isin(rows.labels, classes))
    return rows_of(kept.features, [classes.index(label) for label in kept.labels], kept.ids if "ids" in arrays else None)


def _built_in(name: str) -> dict[str, np.ndarray]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(f"the data set {name} comes with scikit-learn: pip install 'erase-concepts[classifier]'.") from error
    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    return {"features": features / 16 if name == "digits" else features, "labels": labels}


def _npz(path: Path) -> dict[str, np.ndarray]:
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"no data set {path}; accepted: {', '.join(BUILT_IN)} or a FILE.npz with features and labels.")
    arrays = read_npz(path, ("features", "labels", "ids"))
    if not {"features", "labels"} <= set(arrays) or not arrays["features"].ndim:
        raise ValueError(f"{path} lacks features or labels: it needs both, (n, d) and (n,), and may have ids (n,).")
    return arrays


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that are in an .npz file; raises ValueError on any other file, and on a damaged one."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array (.npy)")
        with loaded as file:
            arrays = {name: file[name] for name in names if name in file.files}
            if wrong := [name for name, array in arrays.items() if array.dtype.kind not in "iufb"]:
                raise ValueError(f"its {wrong[0]} is {arrays[wrong[0]].dtype}, not numbers")
            return arrays
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable .npz without pickled objects: {error}.") from error
