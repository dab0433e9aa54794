"""UA, RA, TA by hand; the membership attack where it must see everything and where there is nothing to see."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from erase.classification.audit import audit
from erase.classification.data import make_dataset
from erase.classification.metrics import average_gap, forgetting_row, membership, modified_entropy
from erase.classification.split import split_ids
from eval.unlearning import sape


class Table(nn.Module):
    """Says class `inputs[:, 0]`, with a confidence that is the second column's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        said = torch.nn.functional.one_hot(inputs[:, 0].long(), 2).float()
        confidence = inputs[:, 1:2]
        return self.scale * (said * confidence.log() + (1 - said) * (1 - confidence).log())


def table():
    """8 training rows, the model is right on all but rows 0 and 7; 4 test rows, right on three."""
    labels, test_labels = np.array([0, 1] * 4), np.array([0, 1, 0, 1])
    said, test_said = labels.copy(), test_labels.copy()
    said[[0, 7]] = 1 - said[[0, 7]]
    test_said[2] = 1
    rows = np.stack([said, np.linspace(0.9, 0.99, 8)], 1).astype(np.float32)
    test = np.stack([test_said, np.linspace(0.6, 0.7, 4)], 1).astype(np.float32)
    return make_dataset("table", (rows, labels, test, test_labels))


def test_ua_ra_and_ta_are_shares_of_wrong_and_right_rows() -> None:
    data = table()
    row = forgetting_row(Table(), data, split_ids(data, [0, 1, 2, 3]))
    assert (row.ua, row.ra, row.ta) == (25.0, 75.0, 75.0)  # one of four wrong, three of four right, three of four right


def test_average_gap_is_the_mean_distance_of_the_four() -> None:
    row = {"ua": 5.0, "ra": 99.0, "ta": 93.0, "mia": 20.0, "seconds": 1.0}
    retrained = {"ua": 8.0, "ra": 100.0, "ta": 91.0, "mia": 10.0, "seconds": 9.0}
    assert average_gap(row, retrained) == (3 + 1 + 2 + 10) / 4
    assert average_gap(retrained, retrained) == 0


def test_the_attack_sees_the_extremes() -> None:
    """Members .99-1, non-members .3-.6: forget rows at .45 are all taken for unseen, at .995 for members."""
    retain, test = torch.linspace(0.99, 1, 200), torch.linspace(0.3, 0.6, 200)
    unseen, seen = (membership(retain, test, torch.full((100,), value)) for value in (0.45, 0.995))
    assert unseen.efficacy == 100 and seen.efficacy == 0
    assert seen.balanced == 1.0 and seen.auc == 1.0
    assert unseen.balanced == pytest.approx(0.5, abs=0.01)


def test_with_nothing_to_see_balanced_accuracy_and_auc_are_a_half_and_the_efficacy_anything() -> None:
    found = []
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        retain, test, forget = (torch.rand(n, generator=draw) for n in (1000, 500, 500))
        found.append(membership(retain, test, forget, seed=seed))
    assert np.mean([each.balanced for each in found]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([each.auc for each in found]) == pytest.approx(0.5, abs=0.05)
    assert np.std([each.efficacy for each in found]) > 5  # per cent: why the efficacy is never compared with 50


def test_modified_entropy_by_hand() -> None:
    """Row 1: -(1 - .7) ln .7 - .2 ln .8 - .1 ln .9; row 2: -(1 - .3) ln .3 - .1 ln .9 - .6 ln .4."""
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    together = modified_entropy(probabilities, torch.tensor([0, 2]))
    assert together.tolist() == pytest.approx([0.1622, 1.4031], abs=1e-4)
    by_row = [modified_entropy(probabilities[k : k + 1], torch.tensor([label])) for k, label in enumerate((0, 2))]
    assert torch.equal(torch.cat(by_row), together)
    sure = modified_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert sure[0] == 0 and math.isfinite(sure[1]) and sure[1] > 50


def test_an_audit_of_two_equal_models_finds_no_difference() -> None:
    data = table()
    found = audit(Table(), Table(), data, split_ids(data, [0, 1, 2, 3]), Table())
    assert found["l2_before_after"] == found["consistency_l2"] == found["consistency_kl"] == found["average_gap"] == 0
    assert found["consistency_labels"] == 1 and found["versions_auc"] == 0.5


def test_an_audit_of_two_versions_finds_the_forgotten_rows() -> None:
    class Forgets(Table):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            inputs = inputs.clone()
            inputs[:, 1] = torch.where(inputs[:, 1] < 0.94, 0.55, inputs[:, 1])  # rows 0 to 3 are the least sure
            return super().forward(inputs)

    data = table()
    rows = [1, 2, 3]
    found = audit(Table(), Forgets(), data, split_ids(data, rows), Table())
    assert found["versions_auc"] > 0.9 and "Both versions together" in found["warning"]
    assert found["sape_forget_accuracy"] == sape(100, 100) == 0
