"""UA, RA, TA by hand; the membership attack where it must see everything and where there is nothing to see."""

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import nn

from erase.classification.audit import audit
from erase.classification.data import make_dataset
from erase.classification.metrics import average_gap, forgetting_row, membership
from erase.classification.split import split_class, split_ids
from eval.unlearning import sape


class Table(nn.Module):
    """Says class `inputs[:, 0]`, with a confidence that is the second column's."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        said = torch.nn.functional.one_hot(inputs[:, 0].long(), self.num_classes).float()
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


def test_a_forgotten_class_is_held_against_its_own_unseen_rows() -> None:
    """Forget rows and unseen rows of the class are alike, other classes' are far easier: nothing gives them away."""
    draw = torch.Generator().manual_seed(0)
    easy, hard = (lambda n, low=low: low + 0.2 * torch.rand(n, generator=draw) for low in (0.8, 0.2))
    found = membership(easy(1000), easy(500), hard(200), hard(100))
    assert found.balanced == pytest.approx(0.5, abs=0.05) and found.auc == pytest.approx(0.5, abs=0.1)
    assert abs(membership(easy(1000), easy(500), hard(200)).auc - 0.5) > 0.4, "against other classes it is their difficulty"
    learned = membership(easy(1000), hard(500), easy(200), hard(100))
    assert learned.balanced > 0.95 and learned.auc > 0.95, "where the class is remembered it is seen"


def test_unseen_rows_that_are_compared_are_not_those_the_attack_was_trained_on() -> None:
    """An attack with two dots a row knows its own rows by heart: only rows it has not seen can look like anything else."""
    draw = torch.Generator().manual_seed(0)
    retain, test, forget = (torch.rand(n, generator=draw) for n in (40, 40, 40))
    asked, fitted = [], []

    class Spy(SVC):
        def fit(self, rows, labels):
            fitted.append(rows[labels == 0].ravel())
            return super().fit(rows, labels)

        def decision_function(self, rows):
            asked.append(rows.ravel())
            return super().decision_function(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.svm.SVC", Spy)
        membership(retain, test, forget)
    compared = asked[-1][len(forget) :]
    assert len(compared) == len(fitted[-1]) == 20
    assert not np.isin(compared, fitted[-1]).any() and np.isin(compared, test.double().numpy()).all()


def test_accuracy_on_the_unseen_rows_of_the_forgotten_class() -> None:
    """Class 0 of three: of its two test rows the model is right on one; rows by number have no such rows."""
    rows = np.stack([np.array([0, 1, 0, 1, 2, 2]) % 2, np.linspace(0.9, 0.99, 6)], 1).astype(np.float32)
    test = np.array([[0, 0.6], [1, 0.7], [1, 0.7], [1, 0.8]], np.float32)
    data = make_dataset("table", (rows, np.array([0, 1, 0, 1, 2, 2]), test, np.array([0, 0, 1, 1])))
    assert forgetting_row(Table(3), data, split_class(data, 0)).unseen_accuracy == 50
    assert forgetting_row(Table(3), data, split_ids(data, [0, 2])).unseen_accuracy is None
    none_to_compare = forgetting_row(Table(3), data, split_class(data, 2))
    assert none_to_compare.unseen_accuracy is None and none_to_compare.mia is not None and none_to_compare.mia_auc is None


def test_one_row_leaves_the_attack_empty() -> None:
    row = forgetting_row(Table(), table(), split_ids(table(), [2]))
    assert (row.ua, row.mia, row.mia_balanced, row.mia_auc) == (0, None, None, None)
    assert average_gap(row.asdict(), row.asdict() | {"ua": 3.0}) == 1, "the mean of the three that are there"


def test_an_audit_of_two_equal_models_finds_no_difference() -> None:
    data = table()
    found = audit(Table(), Table(), data, split_ids(data, [0, 1, 2, 3]), Table())
    assert found["l2_before_after"] == found["consistency_l2"] == found["consistency_kl"] == found["average_gap"] == 0
    assert found["consistency_labels"] == 1 and found["versions_auc"] == 0.5


class Lookup(nn.Module):
    """Says of the row of that number the probabilities whose logarithms are its weights."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.tensor(probabilities, dtype=torch.float64).log())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logs[inputs[:, 0].long()]


# rows 0 to 4 are training rows, of which 0 to 2 are forgotten, 5 to 8 test rows; their classes are 0 1 0 1 0 and 0 1 0 1
BEFORE = [[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.2, 0.8], [0.8, 0.2], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]
AFTER = [[0.4, 0.6], [0.3, 0.7], [0.3, 0.7], [0.3, 0.7], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.4, 0.6], [0.8, 0.2]]
RETRAINED = [[0.3, 0.7], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.8, 0.2], [0.4, 0.6], [0.9, 0.1], [0.6, 0.4]]


def test_an_audit_of_three_different_models_by_hand() -> None:
    """Which model stands where: every figure is another one if two of the three change places.

    Of the forgotten rows the model before is right on three, the one after on one (row 1), the retrained one on two; of the
    test rows on four, one (row 5) and three. After and retrained say the same of rows 5 and 8.
    """
    rows = [np.arange(*numbers, dtype=np.float32)[:, None] for numbers in ((0, 5), (5, 9))]
    data = make_dataset("lookup", (rows[0], np.array([0, 1, 0, 1, 0]), rows[1], np.array([0, 1, 0, 1])))
    split = split_ids(data, [0, 1, 2])
    before, after, retrained = (np.array(table) for table in (BEFORE, AFTER, RETRAINED))
    found = audit(Lookup(BEFORE), Lookup(AFTER), data, split, Lookup(RETRAINED))
    rates = {name: (round(row["ua"], 1), row["ra"], row["ta"]) for name, row in found["models"].items()}
    assert rates == {"before": (0, 100, 100), "after": (66.7, 100, 25), "reference": (33.3, 100, 75)}
    assert found["effectiveness"] == pytest.approx(50) and found["consistency_labels"] == 0.5
    assert found["l2_before_after"] == pytest.approx(np.linalg.norm(np.log(before) - np.log(after)))
    assert found["consistency_l2"] == pytest.approx(np.linalg.norm(np.log(retrained) - np.log(after)))
    kl = (after * np.log(after / retrained)).sum(1)[5:].mean()  # of the unlearned model against the retrained one
    assert found["consistency_kl"] == pytest.approx(kl, rel=1e-6)
    assert abs(kl - (retrained * np.log(retrained / after)).sum(1)[5:].mean()) > 0.01
    assert found["sape_forget_accuracy"] == pytest.approx(100 / 3)  # of 2 / 3 against 1 / 3
    gaps = [abs(found["models"]["after"][key] - found["models"]["reference"][key]) for key in ("ua", "ra", "ta", "mia")]
    assert found["average_gap"] == pytest.approx(sum(gaps) / 4) and gaps[:3] == pytest.approx([100 / 3, 0, 50])
    # the confidence in the true class falls by .5, .2 and .5 where forgotten, by .1 and 0 where kept
    assert found["versions_auc"] == 1 and audit(Lookup(AFTER), Lookup(BEFORE), data, split)["versions_auc"] == 0


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
