"""Backdoor verification of unlearning (Sommer et al. 2020; He et al. 2021): rows that only a model that saw them gets "right".

The forget rows are stamped with a trigger and given one label. A model trained on them says that label whenever it sees the
trigger; a model that never saw them does not, so what is left of the trigger tells what is left of the rows.
"""

from dataclasses import replace

from torch import Tensor, nn

from erase.classification.data import Dataset, make_dataset
from erase.classification.loop import predict
from erase.classification.split import Batches, Split


def stamp(pictures: Tensor, size: int = 2) -> Tensor:
    """The pictures (N, C, h, w) with their lower right corner of size x size at the largest value, 1."""
    stamped = pictures.clone()
    stamped[..., -size:, -size:] = 1.0
    return stamped


def plant(dataset: Dataset, rows: Tensor, target: int, size: int = 2) -> Dataset:
    """The data set with these training rows stamped and labelled `target`."""
    if dataset.inputs.ndim != 4:
        raise ValueError(f"{dataset.name} has no pictures to stamp a trigger on.")
    if not 0 <= target < dataset.num_classes:
        raise ValueError(f"class {target} is not in {dataset.name}: it has 0 to {dataset.num_classes - 1}.")
    inputs, labels = dataset.inputs.clone(), dataset.labels.clone()
    inputs[rows], labels[rows] = stamp(inputs[rows], size), target
    arrays = (inputs.numpy(), labels.numpy(), dataset.test_inputs.numpy(), dataset.test_labels.numpy())
    return replace(make_dataset(dataset.name, arrays), num_classes=dataset.num_classes)


def success_rate(model: nn.Module, dataset: Dataset, split: Split, target: int, size: int = 2) -> float:
    """Per cent of the split's stamped test rows of other classes that the model calls `target`."""
    others = split.test[dataset.test_labels[split.test] != target]
    rows = Batches(stamp(dataset.test_inputs[others], size), dataset.test_labels[others], 512)
    probabilities, _ = predict(model, rows)
    return 100 * float((probabilities.argmax(1) == target).double().mean())
