"""What SISA trains in each shard: PyTorch modules, which go on from a checkpoint, and scikit-learn classifiers, fitted whole.

The same rows and seed give the same bits, whichever process trains: one thread, and every random number from the seed.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase.classification.rows import Rows

State = dict[str, Tensor]


class Model(Protocol):
    """A trained model of one shard."""

    def state(self) -> State:
        """What its file holds."""

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Probability of each class (n, C)."""


class Learner(Protocol):
    """Trains models; goes to other processes, so it must be picklable (no lambda inside)."""

    @property
    def name(self) -> str:
        """Kept with the model."""

    @property
    def incremental(self) -> bool:
        """Whether training can go on from a state."""

    def settings(self, num_features: int, num_classes: int) -> dict[str, Any]:
        """What training depends on beside rows and seed, as JSON values; kept with the model, which opens with no others."""

    def train(self, before: State | None, rows: Rows, classes: np.ndarray, epochs: int, seed: int) -> Model:
        """A model trained on rows, from an earlier stage's state or from the seed."""

    def restore(self, state: State, rows: Rows, classes: np.ndarray) -> Model:
        """The model of a file; rows are those it was trained on."""


def mlp(num_features: int, num_classes: int) -> nn.Module:
    """One hidden layer of 64."""
    return nn.Sequential(nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, num_classes))


@dataclass(frozen=True)
class TorchLearner:
    """SGD with momentum on cross entropy; `make(num_features, num_classes)` builds the module."""

    make: Callable[[int, int], nn.Module] = mlp
    name: str = "mlp"
    lr: float = 0.05
    momentum: float = 0.9
    batch_size: int = 32
    incremental: bool = True

    def settings(self, num_features: int, num_classes: int) -> dict[str, Any]:
        """The optimizer's settings and the module's layers, as PyTorch prints them."""
        with torch.random.fork_rng(devices=[]):
            module = self.make(num_features, num_classes)
        return {"lr": self.lr, "momentum": self.momentum, "batch_size": self.batch_size, "module": str(module)}

    def train(self, before: State | None, rows: Rows, classes: np.ndarray, epochs: int, seed: int) -> "TorchModel":
        """Epochs over the rows in an order drawn from the seed; the optimizer starts afresh at every stage."""
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.make(rows.features.shape[1], len(classes))
            if before is not None:
                module.load_state_dict(before)
            module.train()
            optimizer = torch.optim.SGD(module.parameters(), self.lr, self.momentum)
            features = torch.from_numpy(rows.features).float()
            labels = torch.from_numpy(np.searchsorted(classes, rows.labels))
            for _ in range(epochs):
                for batch in in_batches(torch.randperm(len(rows)), self.batch_size):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(module(features[batch]), labels[batch])
                    if not torch.isfinite(loss):
                        raise ValueError(f"the loss became {loss.item()}: lower the learning rate, or scale the features.")
                    loss.backward()
                    optimizer.step()
        return TorchModel(module.eval())

    def restore(self, state: State, rows: Rows, classes: np.ndarray) -> "TorchModel":
        """The module with the state's weights."""
        with torch.random.fork_rng(devices=[]):
            module = self.make(rows.features.shape[1], len(classes))
        module.load_state_dict(state)
        return TorchModel(module.eval())


def in_batches(order: Tensor, size: int) -> list[Tensor]:
    """The order in parts of a size; a last part of one row joins the part before, for batch normalisation cannot take one row.

    The rule is the same for every number of rows, so that a removal is still training without the row.
    """
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@dataclass(frozen=True)
class TorchModel:
    """A module that gives logits."""

    module: nn.Module

    def state(self) -> State:
        """Weights and buffers."""
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Softmax of the logits."""
        with torch.no_grad():
            return self.module(torch.from_numpy(np.asarray(features)).float()).softmax(1).double().numpy()


def tree(seed: int) -> Any:
    """A decision tree."""
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(random_state=seed)


@dataclass(frozen=True)
class SklearnLearner:
    """Any scikit-learn classifier with `predict_proba`; `make(seed)` builds it. One slice only.

    Its file holds the seed alone, for a fitted estimator could only be pickled: it is fitted again on its rows when the folder
    is opened, and is the same, as everything random in it comes from the seed.
    """

    make: Callable[[int], Any] = tree
    name: str = "tree"
    incremental: bool = False

    def settings(self, num_features: int, num_classes: int) -> dict[str, Any]:
        """The estimator's class and parameters, as Python prints them."""
        estimator = self.make(0)
        return {"estimator": type(estimator).__name__} | {name: repr(value) for name, value in estimator.get_params().items()}

    def train(self, before: State | None, rows: Rows, classes: np.ndarray, epochs: int, seed: int) -> "SklearnModel":
        """Fitted on the rows; a shard with one class left gives that class always."""
        assert before is None
        estimator = self.make(seed).fit(rows.features, rows.labels) if len(np.unique(rows.labels)) > 1 else None
        return SklearnModel(estimator, np.unique(rows.labels), classes, seed)

    def restore(self, state: State, rows: Rows, classes: np.ndarray) -> "SklearnModel":
        """Fitted again."""
        return self.train(None, rows, classes, 1, int(state["seed"]))


@dataclass(frozen=True)
class SklearnModel:
    """A fitted estimator that may know only some of the classes."""

    estimator: Any
    known: np.ndarray
    classes: np.ndarray
    seed: int

    def state(self) -> State:
        """The seed."""
        return {"seed": torch.tensor(self.seed)}

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Those of the estimator, zero for classes it has not seen."""
        found = np.zeros((len(features), len(self.classes)))
        known = np.searchsorted(self.classes, self.known)
        found[:, known] = 1 if self.estimator is None else self.estimator.predict_proba(features)
        return found


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: sums in another order would give other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
