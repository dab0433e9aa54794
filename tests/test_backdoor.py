"""Backdoor verification on digits: the trigger works on the original, not on the retrained, and SalUn comes near to that."""

import pytest
import torch

from erase.classification.backdoor import plant, stamp, success_rate
from erase.classification.bench import Recipe, config_for, run_method, train_original
from erase.classification.data import load_dataset
from erase.classification.methods.relabel import SalUn
from erase.classification.split import split_ids

TARGET = 0


def test_a_stamp_is_a_bright_corner_and_nothing_else() -> None:
    pictures = torch.rand(2, 1, 8, 8) * 0.9
    stamped = stamp(pictures)
    changed = stamped != pictures
    assert changed.sum() == 2 * 4 and changed[..., -2:, -2:].all() and (stamped[changed] == 1).all()


def test_the_trigger_tells_what_is_left_of_the_forget_rows() -> None:
    digits = load_dataset("digits")
    others = (digits.labels != TARGET).nonzero()[:, 0]
    rows = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:100]]
    planted, split = plant(digits, rows, TARGET), split_ids(digits, rows.tolist())
    assert (planted.labels[rows] == TARGET).all() and planted.sha256 != digits.sha256
    assert torch.equal(planted.inputs[split.retain], digits.inputs[split.retain])
    recipe = Recipe.model_validate({"original": {"epochs": 20}})
    original = train_original(planted, recipe, seed=0)
    retrained, _ = run_method(original, config_for(recipe, "retrain"), planted, split, recipe, seed=0)
    config = SalUn(epochs=5, learning_rate=0.02)
    unlearned, _ = run_method(original, config, planted, split, recipe, seed=0)
    rates = [success_rate(model, planted, split, TARGET) for model in (original, retrained, unlearned)]
    assert rates[0] >= 90 and rates[1] <= 15
    assert rates[2] < 5, "near to Retrain's; SAPE beside a rate of 0 would be 100 for any other"


def test_what_cannot_be_stamped_is_refused() -> None:
    with pytest.raises(ValueError, match="no pictures to stamp"):
        plant(load_dataset("breast_cancer"), torch.arange(3), 0)
    with pytest.raises(ValueError, match="class 12 is not in digits"):
        plant(load_dataset("digits"), torch.arange(3), 12)
