"""What is to be forgotten and what is to be kept, and the batches that training reads."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from erase.classification.data import Dataset

Batch = tuple[Tensor, Tensor]  # inputs (B, ...), labels (B,)


class Loader(Protocol):
    """What the methods read: any `DataLoader` of (inputs, labels), or `Batches`."""

    def __iter__(self) -> Iterator[Batch]:
        """One epoch's batches."""
        ...

    def __len__(self) -> int:
        """Batches in one epoch."""
        ...


class Batches:
    """Mini-batches of two tensors, shuffled each epoch if a generator is given; a `DataLoader` without its cost per row."""

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
        augment: bool = False,
    ) -> None:
        self.inputs, self.labels, self.batch_size, self.generator, self.augment = inputs, labels, batch_size, generator, augment

    def __len__(self) -> int:
        """Batches in one epoch."""
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """One epoch's batches; augmented pictures are flipped and shifted by up to four pixels."""
        order = torch.arange(len(self.labels))
        if self.generator is not None:
            order = torch.randperm(len(order), generator=self.generator)
        for rows in order.split(self.batch_size):
            inputs = self.inputs[rows]
            yield _flip_and_shift(inputs, self.generator) if self.augment else inputs, self.labels[rows]


def _flip_and_shift(pictures: Tensor, generator: torch.Generator | None) -> Tensor:
    """CIFAR's usual augmentation, drawn once for the batch's halves: flips per picture, shifts per batch."""
    flip = (torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5).to(pictures.device)
    down, right = torch.randint(9, (2,), generator=generator).tolist()
    height, width = pictures.shape[-2:]
    padded = F.pad(torch.where(flip, pictures.flip(-1), pictures), (4, 4, 4, 4))
    return padded[..., down : down + height, right : right + width]


@dataclass(frozen=True)
class Split:
    """Row numbers: `forget` and `retain` of the training rows (disjoint, together all), `test` of the test rows."""

    forget: Tensor
    retain: Tensor
    test: Tensor
    description: str
    own: Tensor | None = None
    """The test rows of the class that is forgotten, which no model has seen; None where rows, not a class, are forgotten."""


def split_class(dataset: Dataset, forget_class: int) -> Split:
    """Forget all of one class; its test rows leave `test` (SalUn's class-wise setting) and become `own`.

    Raises ValueError if the class is unknown or only one would be left.
    """
    if not 0 <= forget_class < dataset.num_classes or not bool((dataset.labels == forget_class).any()):
        raise ValueError(f"class {forget_class} is not in {dataset.name}: it has 0 to {dataset.num_classes - 1}.")
    forgotten = dataset.labels == forget_class
    test, own = ((dataset.test_labels == forget_class).eq(same).nonzero()[:, 0] for same in (False, True))
    return replace(_checked(dataset, forgotten, test, f"class {forget_class}"), own=own)


def split_random(dataset: Dataset, share: float, seed: int) -> Split:
    """Forget a random share of the training rows, drawn by the seed."""
    if not 0 < share < 1:
        raise ValueError(f"the share to forget is {share}; it must be above 0 and below 1.")
    num_rows = len(dataset.labels)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    forgotten = torch.zeros(num_rows, dtype=torch.bool)
    forgotten[order[: round(share * num_rows)]] = True
    return _checked(dataset, forgotten, torch.arange(len(dataset.test_labels)), f"random {share:g}, seed {seed}")


def split_ids(dataset: Dataset, ids: Sequence[int]) -> Split:
    """Forget the training rows of these numbers; raises ValueError on an unknown or repeated one."""
    num_rows = len(dataset.labels)
    if unknown := [row for row in ids if not 0 <= row < num_rows]:
        raise ValueError(f"row {unknown[0]} is not in {dataset.name}: its training rows are 0 to {num_rows - 1}.")
    if repeated := [row for row, times in Counter(ids).items() if times > 1]:
        raise ValueError(f"row {min(repeated)} is named more than once.")
    forgotten = torch.zeros(num_rows, dtype=torch.bool)
    forgotten[torch.tensor(list(ids), dtype=torch.int64)] = True
    description = f"{len(ids)} {'row' if len(ids) == 1 else 'rows'} by number"
    return _checked(dataset, forgotten, torch.arange(len(dataset.test_labels)), description)


def _checked(dataset: Dataset, forgotten: Tensor, test: Tensor, description: str) -> Split:
    forget, retain = forgotten.nonzero()[:, 0], (~forgotten).nonzero()[:, 0]
    if len(forget) == 0:
        raise ValueError(f"the forget set ({description}) is empty: there is nothing to forget.")
    if len(retain) == 0:
        raise ValueError(f"the retain set is empty ({description}): to forget everything, delete the model instead.")
    if len(dataset.labels[retain].unique()) < 2:
        raise ValueError(f"only one class would be left after forgetting {description}; a classifier needs two.")
    if len(test) == 0:
        raise ValueError(f"no test row is left after forgetting {description}.")
    return Split(forget, retain, test, description)
