"""What was forgotten and what was kept: UA, RA, TA, membership inference, and the gap to retraining (Fan et al., ICLR 2024)."""

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
    """One model's figures in per cent; MIA's balanced accuracy and AUC are shares (0.5: forget rows look like unseen rows)."""

    ua: float
    """100 - accuracy on the forget set."""
    ra: float
    """Accuracy on the retain set."""
    ta: float
    """Accuracy on the test rows."""
    mia: float
    """Share of the forget rows that the attack takes for unseen; even where nothing gives them away its spread is wide."""
    mia_balanced: float
    mia_auc: float

    def asdict(self) -> dict[str, float]:
        """As a mapping."""
        return asdict(self)


@dataclass(frozen=True)
class Membership:
    """What the attack finds out about the forget rows."""

    efficacy: float
    """100 * TN / |D_f|: per cent of the forget rows taken for unseen (SalUn's MIA)."""
    balanced: float
    """Balanced accuracy in telling forget rows from test rows that the attack was not trained on."""
    auc: float
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
    attack = membership(retain, test, forget, seed=seed)
    return Row(100 - forget_accuracy, ra, ta, attack.efficacy, attack.balanced, attack.auc)


def membership(retain: Tensor, test: Tensor, forget: Tensor, *, seed: int = 0) -> Membership:
    """The membership attack on the confidences in the true class (Song & Mittal 2021, as SalUn uses it).

    An SVC (C = 3, rbf, gamma = auto) learns to tell as many retain rows as there are test rows from these; the efficacy is what
    it says of the forget rows. Balanced accuracy and AUC come from an attack trained on half of the test rows, and compare the
    forget rows (as members) with the other half.
    """
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.svm import SVC

    if min(len(retain), len(test), len(forget)) < 2:
        raise ValueError("the membership attack needs at least two rows each of retain, test and forget.")
    rng = np.random.default_rng(seed)
    members, unseen = (rng.permutation(values.double().numpy())[:, None] for values in (retain, test))
    asked = forget.double().numpy()[:, None]

    def attack(members: np.ndarray, unseen: np.ndarray) -> SVC:
        size = min(len(members), len(unseen))
        rows = np.concatenate([members[:size], unseen[:size]])
        return SVC(C=3, kernel="rbf", gamma="auto").fit(rows, np.repeat([1, 0], size))

    efficacy = 100 * float((attack(members, unseen).predict(asked) == 0).mean())
    half = len(unseen) // 2
    judge = attack(members, unseen[:half])
    rows, truth = np.concatenate([asked, unseen[half:]]), np.repeat([1, 0], [len(asked), len(unseen) - half])
    balanced = float(balanced_accuracy_score(truth, judge.predict(rows)))
    return Membership(efficacy, balanced, float(roc_auc_score(truth, judge.decision_function(rows))))


def average_gap(row: dict[str, float], retrained: dict[str, float]) -> float:
    """Mean distance of UA, RA, TA and MIA from the retrained model's: 0 is the goal, not 100 per cent of anything."""
    return sum(abs(row[key] - retrained[key]) for key in METRICS) / len(METRICS)


def modified_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """-(1 - p_y) log p_y - sum over the other classes of p log(1 - p), by row (Song & Mittal 2021); low = sure and right."""
    tiny = torch.finfo(probabilities.dtype).tiny
    own = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, labels[:, None], True)
    inside, outside = probabilities.clamp_min(tiny).log(), (1 - probabilities).clamp_min(tiny).log()
    return torch.where(own, -(1 - probabilities) * inside, -probabilities * outside).sum(1)
