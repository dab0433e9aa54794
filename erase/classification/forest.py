"""Random forests that forget rows exactly (DaRE: Brophy & Lowd, ICML 2021), as a scikit-learn classifier with `remove`.

The trees are those of erase/classification/dare.py. No bootstrap: each sees all rows. Several classes are one forest each,
one-vs-rest. A forest after `remove` equals, node for node and in its file byte for byte, the one that `fit` makes of the rest.
"""

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from erase import __version__
from erase.classification.dare import Criterion, Grower, Node, mix_one
from erase.classification.rows import Rows, positions_to_remove, rows_of
from erase.files import metadata_of, write_safetensors
from erase.reading import check_safetensors, parse_json

FORMAT = "erase-forest-1"
TYPES = {"feature": np.int32, "threshold": np.float64, "total": np.int64, "ones": np.int64, "ids": np.int64}
DEEPEST = 300  # trees are walked by recursion, and Python allows a thousand calls within one another


@dataclass(frozen=True)
class ForestRemoval:
    """What a removal cost: rows passed through regrown nodes; `Forest.work()` is what a fit passes."""

    num_removed: int
    rebuilt: int


class Parameters(BaseModel):
    """The parameters in a forest's file; `Forest` says which values it takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    n_estimators: int = 10
    max_depth: int = 20
    n_thresholds: int = 25
    random_depth: int = 0
    max_features: int | None = None
    criterion: Criterion = "gini"
    seed: int = 0


class Forest(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn classifier with `remove(ids)`; see the module. Without ids a row's id is its number in `fit`."""

    classes_: np.ndarray
    trees_: dict[Any, list[Node]]  # by the class that is positive
    features_: np.ndarray
    labels_: np.ndarray
    ids_: np.ndarray
    alive_: np.ndarray  # False where a row was removed

    def __init__(
        self,
        n_estimators: int = 10,
        *,
        max_depth: int = 20,
        n_thresholds: int = 25,
        random_depth: int = 0,
        max_features: int | None = None,
        criterion: Criterion = "gini",
        seed: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.n_thresholds = n_thresholds
        self.random_depth = random_depth
        self.max_features = max_features
        self.criterion = criterion
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, ids: ArrayLike | None = None) -> Self:
        """Grow the trees on all rows (no bootstrap: a row in several samples could not be removed from one place)."""
        self._check_parameters()
        self._take(X, y, ids)
        rows = np.arange(len(self.ids_))
        self.trees_ = {}
        for name in self._positive_classes():
            grower = self._grower(name)
            self.trees_[name] = [grower.grow(rows, self._key(name, tree)) for tree in range(self.n_estimators)]
        return self

    def remove(self, ids: Sequence[int] | np.ndarray) -> ForestRemoval:
        """Make the forest the one that `fit` would make of the other rows; on an error it is as it was."""
        check_is_fitted(self)
        alive = np.flatnonzero(self.alive_)
        gone = alive[positions_to_remove(self.ids_[alive], ids)]
        classes = np.unique(self.labels_[np.setdiff1d(alive, gone)])
        if len(classes) < 2:
            raise ValueError(f"only class {classes[0]} would be left; a classifier needs two classes.")
        self.classes_ = classes
        self.trees_ = {name: self.trees_[name] for name in self._positive_classes()}
        rebuilt = 0
        for name, trees in self.trees_.items():
            grower = self._grower(name)
            for tree in trees:
                grower.remove(tree, gone)
            rebuilt += grower.rebuilt
        self.alive_[gone] = False
        self.features_[gone], self.ids_[gone], self.labels_[gone] = np.nan, -1, classes[0]
        return ForestRemoval(len(gone), rebuilt)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: nothing of the rows that were removed, not even that there were some."""
        state: dict[str, Any] = super().__getstate__()
        if "alive_" not in state or self.alive_.all():
            return state
        alive, place = self.alive_, np.cumsum(self.alive_) - 1
        trees = copy.deepcopy(self.trees_)
        for node in (node for grown in trees.values() for tree in grown for node in tree.walk()):
            node.rows = None if node.rows is None else place[node.rows]
        kept = {"features_": np.asfortranarray(self.features_[alive]), "labels_": self.labels_[alive], "ids_": self.ids_[alive]}
        return state | kept | {"trees_": trees, "alive_": np.ones(int(alive.sum()), bool)}

    def work(self) -> int:
        """Rows passed through nodes by a fit: what `rebuilt` of a removal compares with."""
        return sum(node.total for trees in self.trees_.values() for tree in trees for node in tree.walk())

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Mean share of positive rows in the leaves reached (n, C); over several classes scaled to sum to 1."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        shares = np.stack(
            [np.mean([self._shares(tree, features) for tree in trees], axis=0) for trees in self.trees_.values()], axis=1
        )
        if len(self.classes_) == 2:
            return np.hstack([1 - shares, shares])
        sums = shares.sum(1, keepdims=True)
        return np.where(sums > 0, shares / np.where(sums > 0, sums, 1), 1 / len(self.classes_))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The likeliest class of each row, the first of equals."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]

    def _check_parameters(self) -> None:
        least = {"n_estimators": 1, "max_depth": 1, "n_thresholds": 1, "random_depth": 0, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if self.max_depth > DEEPEST:
            raise ValueError(f"max_depth is {self.max_depth}; accepted: 1 to {DEEPEST}.")
        if self.max_features is not None and self.max_features < 1:
            raise ValueError(f"max_features is {self.max_features}; it must be at least 1, or None for the root of all.")
        if self.criterion not in ("gini", "entropy"):
            raise ValueError(f"criterion is {self.criterion!r}; accepted: gini, entropy.")

    def _take(self, X: ArrayLike, y: ArrayLike, ids: ArrayLike | None) -> None:
        features, named = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(named)
        self.classes_, labels = np.unique(named, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"all rows are of 1 class ({self.classes_[0]}); a classifier needs two.")
        rows = rows_of(features + 0.0, labels, ids)  # + 0.0 makes -0.0 a plain zero: equal values must have equal hashes
        order = np.argsort(rows.ids)
        self.features_, self.labels_, self.ids_ = np.asfortranarray(rows.features[order]), named[order], rows.ids[order]
        self.alive_ = np.ones(len(rows), bool)

    def _positive_classes(self) -> list[Any]:
        return list(self.classes_[1:] if len(self.classes_) == 2 else self.classes_)

    def _grower(self, name: Any) -> Grower:
        num_features = self.max_features or int(math.sqrt(self.features_.shape[1]))
        labels = (self.labels_ == name).astype(np.int64)
        limits = (self.max_depth, self.n_thresholds, self.random_depth, num_features)
        return Grower(self.features_, labels, *limits, self.criterion)

    def _key(self, name: Any, tree: int) -> int:
        text = f"{self.seed} {name} {tree}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def _shares(self, tree: Node, features: np.ndarray) -> np.ndarray:
        """Share of positive rows in the leaf that each row reaches (n,)."""
        shares = np.empty(len(features))
        waiting = [(tree, np.arange(len(features)))]
        while waiting:
            node, rows = waiting.pop()
            if node.left is None or node.right is None:
                shares[rows] = node.ones / node.total
            elif len(rows):
                left = features[rows, node.feature] <= node.threshold
                waiting += [(node.left, rows[left]), (node.right, rows[~left])]
        return shares

    def arrays(self) -> dict[str, np.ndarray]:
        """The forest itself: every node in walking order, and the ids of each leaf's rows; equal forests have equal arrays."""
        check_is_fitted(self)
        nodes = [node for trees in self.trees_.values() for tree in trees for node in tree.walk()]
        rows = [node.rows for node in nodes if node.rows is not None]
        return {
            "feature": np.array([node.feature for node in nodes], np.int32),
            "threshold": np.array([node.threshold for node in nodes]),
            "total": np.array([node.total for node in nodes], np.int64),
            "ones": np.array([node.ones for node in nodes], np.int64),
            "ids": self.ids_[np.concatenate(rows)],
        }

    def save(self, path: Path, provenance: dict[str, str] | None = None) -> None:
        """Write trees, ids and a hash of the rows: no row, and after a removal the same bytes as after a fit on the rest."""
        header = {"format": FORMAT, "version": __version__, "rows": self._remaining().digest()}
        header |= {"parameters": json.dumps(self.get_params(), default=int), "classes": json.dumps(self.classes_.tolist())}
        tensors = {name: torch.from_numpy(array) for name, array in self.arrays().items()}
        write_safetensors(tensors, path, (provenance or {}) | header)

    @classmethod
    def load(cls, path: Path, X: ArrayLike, y: ArrayLike, ids: ArrayLike | None = None) -> Self:
        """The forest in a file with its rows, found by id; raises ValueError if one is missing or was changed."""
        arrays, header = read_forest(path)
        forest = cls(**parse_json(header["parameters"]))
        forest._check_parameters()
        wanted = np.unique(arrays["ids"])
        found = rows_of(X, np.arange(len(np.asarray(y))), ids).with_ids(wanted)  # labels: where the row stands in y
        forest._take(found.features, np.asarray(y)[found.labels], wanted)
        if forest._remaining().digest() != header["rows"] or forest.classes_.tolist() != parse_json(header["classes"]):
            raise ValueError(f"the rows of {path} are not those it was trained on: the data has changed since; train it again.")
        nodes = zip(*(arrays[name].tolist() for name in ("feature", "threshold", "total", "ones")), strict=True)
        leaf_rows = iter(np.split(np.searchsorted(wanted, arrays["ids"]), arrays["total"][arrays["feature"] < 0].cumsum()[:-1]))

        if len(forest._positive_classes()) * forest.n_estimators > len(arrays["feature"]):
            raise ValueError(f"{path} is not a forest: it has {len(arrays['feature'])} nodes for {forest.n_estimators} trees.")

        def read(key: int, depth: int) -> Node:
            feature, threshold, total, ones = next(nodes)
            if depth > forest.max_depth or feature >= found.features.shape[1]:
                raise ValueError(f"node {feature} at depth {depth} cannot be")
            node = Node(key, depth, total, ones, feature=feature, threshold=threshold)
            if feature < 0:
                node.rows = next(leaf_rows)
            else:
                node.left, node.right = read(mix_one(key, 0), depth + 1), read(mix_one(key, 1), depth + 1)
            return node

        try:
            forest.trees_ = {
                name: [read(forest._key(name, tree), 0) for tree in range(forest.n_estimators)]
                for name in forest._positive_classes()
            }
        except (StopIteration, ValueError) as error:
            raise ValueError(f"{path} is not a forest: its nodes are not those of {forest.n_estimators} trees.") from error
        if next(nodes, None) is not None or next(leaf_rows, None) is not None:
            raise ValueError(f"{path} is not a forest: it has more nodes than its {forest.n_estimators} trees.")
        return forest

    def _remaining(self) -> Rows:
        alive = self.alive_
        return Rows(self.features_[alive], np.searchsorted(self.classes_, self.labels_[alive]), self.ids_[alive])


def read_forest(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and header of a forest's file; raises ValueError on any other file."""
    try:
        check_safetensors(path)
        with safe_open(path, "np") as file:
            header = metadata_of(file)
            if header.get("format") != FORMAT:
                raise ValueError(f"its header does not say {FORMAT}")
            if missing := [key for key in ("parameters", "classes", "rows") if key not in header]:
                raise ValueError(f"its header lacks {missing[0]!r}")
            try:
                Parameters.model_validate(parse_json(header["parameters"]))
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"its parameters{''.join(f': {name}' for name in first['loc'])}: {first['msg']}") from error
            if not isinstance(parse_json(header["classes"]), list):
                raise ValueError("its classes are no list")
            arrays = {name: file.get_tensor(name) for name in TYPES}
            if wrong := [name for name, array in arrays.items() if array.dtype != TYPES[name] or array.ndim != 1]:
                raise ValueError(f"its {wrong[0]} is no list of {np.dtype(TYPES[wrong[0]])}")
            if len({len(array) for name, array in arrays.items() if name != "ids"}) > 1:
                raise ValueError("its lists of nodes differ in length")
            if not (arrays["total"] > 0).all() or arrays["total"][arrays["feature"] < 0].sum() != len(arrays["ids"]):
                raise ValueError("its leaves do not hold as many rows as there are ids")
            return arrays, header
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a forest: {error}.") from error
