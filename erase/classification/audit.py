"""What the models before and after and a retrained one say of each other: consistency, certifiability, what versions reveal.

The measures are those of Mercuri et al. 2022 (eval.unlearning). Whoever holds a model from before and one from after a deletion
learns from their difference which rows were deleted (Gao et al. 2022), however well the second forgot: `versions_auc`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erase.classification.certified import RemovableLinear
from erase.classification.data import Dataset
from erase.classification.linear import revealed
from erase.classification.loop import predict
from erase.classification.metrics import average_gap, forgetting_row
from erase.classification.rows import Rows
from erase.classification.split import Batches, Split
from eval.unlearning import consistency_kl, consistency_labels, consistency_parameters, effectiveness, sape

LINEAR_WARNING = (
    "Both versions together reveal what was deleted: their difference points at the removed row (|cosine| below). "
    "Keep the model from before, and everything made of it, out of reach of whoever has the one from after."
)
WARNING = (
    "Both versions together reveal what was deleted: the rows whose confidence fell most are the forgotten ones (AUC below). "
    "Keep the model from before, and everything made of it, out of reach of whoever has the one from after."
)


def audit(
    before: nn.Module, after: nn.Module, dataset: Dataset, split: Split, reference: nn.Module | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Figures of both models; with `reference`, retrained without the forget set, also how near to it the second comes.

    `seed` draws the rows that the membership attack is trained on, as in `forgetting_row`.
    """
    parameters = {
        name: _flat(model) for name, model in (("before", before), ("after", after), ("reference", reference)) if model
    }
    if len({vector.shape for vector in parameters.values()}) > 1:
        raise ValueError("the models have different numbers of weights: audit compares versions of one model.")
    models = {
        name: forgetting_row(model, dataset, split, seed=seed)
        for name, model in (("before", before), ("after", after), ("reference", reference))
        if model
    }
    rows = {name: row.asdict() for name, row in models.items()}
    result: dict[str, Any] = {
        "models": rows,
        "l2_before_after": consistency_parameters(parameters["before"], parameters["after"]),
        "versions_auc": versions_auc(before, after, dataset, split),
        "warning": WARNING,
    }
    if reference is None:
        return result
    probabilities = {}
    for name, model in (("after", after), ("reference", reference)):
        data = Batches(dataset.test_inputs[split.test], dataset.test_labels[split.test], 512)
        probabilities[name] = predict(model, data)[0].double().numpy()
        probabilities[name] = np.maximum(probabilities[name], 1e-12)
        probabilities[name] /= probabilities[name].sum(1, keepdims=True)
    labels = {name: rows_of.argmax(1) for name, rows_of in probabilities.items()}
    return result | {
        "average_gap": average_gap(rows["after"], rows["reference"]),
        "effectiveness": effectiveness(models["reference"].ta, models["after"].ta),
        "consistency_l2": consistency_parameters(parameters["reference"], parameters["after"]),
        "consistency_labels": consistency_labels(labels["reference"], labels["after"]),
        "consistency_kl": consistency_kl(probabilities["after"], probabilities["reference"]),
        "sape_forget_accuracy": sape(100 - models["reference"].ua, 100 - models["after"].ua),
    }


def audit_linear(before: RemovableLinear, after: RemovableLinear, rows: Rows, num: int = 5) -> dict[str, Any]:
    """What two versions of a removable linear model give away: which of the rows of `before` were removed.

    H (w- - w) - lam w is parallel to a single removed row (`linear.revealed`). `suspects` are [id, |cosine|], the likeliest
    first; `removed` are the ids that truly went, `rank_of_removed` their best place among all rows (1: found).
    """
    if before.weights.shape != after.weights.shape or before.config != after.config:
        raise ValueError("the two files are not versions of one model: their weights or settings differ.")
    gone = np.setdiff1d(before.rows.ids, after.rows.ids)
    if not len(gone) or len(np.setdiff1d(after.rows.ids, before.rows.ids)):
        raise ValueError(
            "the second file does not have fewer rows than the first: give the model before removal, then the one after."
        )
    targets = after.targets(after.rows)
    found = revealed(before.config.loss, before.config.lam, before.weights, after.weights, after.rows.features, targets)
    had = rows.with_ids(before.rows.ids)
    lengths = np.linalg.norm(had.features, axis=1)[:, None] * np.linalg.norm(found, axis=1)[None]
    likeness = (np.abs(had.features @ found.T) / np.maximum(lengths, 1e-300)).mean(1)
    order = np.argsort(-likeness, kind="stable")
    return {
        "suspects": [[int(had.ids[k]), float(likeness[k])] for k in order[:num]],
        "removed": gone.tolist(),
        "rank_of_removed": int(np.isin(had.ids[order], gone).argmax()) + 1,
        "warning": LINEAR_WARNING,
    }


def versions_auc(before: nn.Module, after: nn.Module, dataset: Dataset, split: Split) -> float:
    """AUC with which the fall of confidence between versions tells forgotten rows from kept ones; 0.5: not at all."""
    from sklearn.metrics import roc_auc_score

    def fall(rows: Tensor) -> np.ndarray:
        data = Batches(dataset.inputs[rows], dataset.labels[rows], 512)
        (old, labels), (new, _) = predict(before, data), predict(after, data)
        return (old - new).gather(1, labels[:, None])[:, 0].double().numpy()

    falls = [fall(split.forget), fall(split.retain)]
    return float(roc_auc_score(np.repeat([1, 0], [len(falls[0]), len(falls[1])]), np.concatenate(falls)))


def _flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1).cpu().double() for p in model.parameters()]).numpy()
