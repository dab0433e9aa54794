"""What was forgotten and what was kept: UA, RA, TA, membership inference, and the gap to retraining (Fan et al., ICLR 2024)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from erase.classification.data import Dataset
from erase.classification.loop import predict
from erase.classification.split import Batches, Split

METRICS = ("ua", "ra", "ta", "mia")


@dataclass(frozen=True)
class Row:
    """One model's figures in per cent; MIA's balanced accuracy and AUC are shares (0.5: forget rows look like unseen rows).

    What there are too few rows for is None (see `membership`).
    """

    ua: float
    """100 - accuracy on the forget set."""
    ra: float
    """Accuracy on the retain set."""
    ta: float
    """Accuracy on the test rows."""
    mia: float | None
    """Share of the forget rows that the attack takes for unseen; even where nothing gives them away its spread is wide."""
    mia_balanced: float | None
    mia_auc: float | None
    unseen_accuracy: float | None
    """Accuracy on the test rows of the forgotten class; None where rows, not a class, are forgotten."""

    def asdict(self) -> dict[str, float | None]:
        """As a mapping."""
        return asdict(self)


@dataclass(frozen=True)
class Membership:
    """What the attack finds out about the forget rows."""

    efficacy: float | None
    """100 * TN / |D_f|: per cent of the forget rows taken for unseen (SalUn's MIA)."""
    balanced: float | None
    """Balanced accuracy in telling forget rows from unseen rows like them, which the attack was not trained on."""
    auc: float | None
    """Area under the curve of the same decision."""


@torch.no_grad()
def forgetting_row(model: nn.Module, dataset: Dataset, split: Split, *, seed: int = 0, batch_size: int = 512) -> Row:
    """The model's figures on the split; `seed` draws the retain rows that the attack is trained on."""

    def read(inputs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        probabilities, truth = predict(model, Batches(inputs, labels, batch_size))
        accuracy = 100 * float((probabilities.argmax(1) == truth).double().mean())
        return probabilities.gather(1, truth[:, None])[:, 0], accuracy

    forget, forget_accuracy = read(dataset.inputs[split.forget], dataset.labels[split.forget])
    retain, ra = read(dataset.inputs[split.retain], dataset.labels[split.retain])
    test, ta = read(dataset.test_inputs[split.test], dataset.test_labels[split.test])
    own, own_accuracy = None, None
    if split.own is not None:
        own = torch.empty(0)
        if len(split.own):
            own, own_accuracy = read(dataset.test_inputs[split.own], dataset.test_labels[split.own])
    attack = membership(retain, test, forget, own, seed=seed)
    return Row(100 - forget_accuracy, ra, ta, attack.efficacy, attack.balanced, attack.auc, own_accuracy)


def membership(retain: Tensor, test: Tensor, forget: Tensor, own: Tensor | None = None, *, seed: int = 0) -> Membership:
    """The membership attack on the confidences in the true class (Song & Mittal 2021, as SalUn uses it).

    An SVC (C = 3, rbf, gamma = auto) learns to tell as many retain rows as there are test rows from these; the efficacy is what
    it says of the forget rows. Balanced accuracy and AUC compare the forget rows (as members) with unseen rows like them. Where
    a class is forgotten these are `own`, its test rows: rows of other classes differ in how hard they are, seen or not. Else
    they are one half of the test rows, for an attack trained on the other. None where there are fewer than two rows.
    """
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.svm import SVC

    if min(len(retain), len(test), len(forget)) < 2:
        return Membership(None, None, None)
    rng = np.random.default_rng(seed)
    members, unseen = (rng.permutation(values.double().numpy())[:, None] for values in (retain, test))
    asked = forget.double().numpy()[:, None]

    def attack(members: np.ndarray, unseen: np.ndarray) -> SVC:
        size = min(len(members), len(unseen))
        rows = np.concatenate([members[:size], unseen[:size]])
        return SVC(C=3, kernel="rbf", gamma="auto").fit(rows, np.repeat([1, 0], size))

    efficacy = 100 * float((attack(members, unseen).predict(asked) == 0).mean())
    half = len(unseen) // 2
    trained, compared = (unseen[:half], unseen[half:]) if own is None else (unseen, own.double().numpy()[:, None])
    if own is not None and len(own) < 2:
        return Membership(efficacy, None, None)
    judge = attack(members, trained)
    rows, truth = np.concatenate([asked, compared]), np.repeat([1, 0], [len(asked), len(compared)])
    balanced = float(balanced_accuracy_score(truth, judge.predict(rows)))
    return Membership(efficacy, balanced, float(roc_auc_score(truth, judge.decision_function(rows))))


def average_gap(row: Mapping[str, float | None], retrained: Mapping[str, float | None]) -> float:
    """Mean distance of UA, RA, TA and MIA (if there is one) from the retrained model's; 0 is the goal."""
    pairs = [(row[key], retrained[key]) for key in METRICS]
    gaps = [abs(one - other) for one, other in pairs if one is not None and other is not None]
    return sum(gaps) / len(gaps)
