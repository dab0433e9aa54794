"""Removal from linear models: the bounds hold, the budget is kept, and what is promised about files and errors is so."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression, Ridge

from erase.classification.certified import RemovableLinear, export_linear, read_weights
from erase.classification.guarantee import (
    GAMMA,
    LinearConfig,
    bounds_of,
    composed,
    draw_noise,
    gaussian_constant,
    gaussian_delta,
)
from erase.classification.linear import derivatives, gradient, hessians, minimise, newton_step, revealed
from erase.classification.rows import Rows, load_rows, rows_of
from erase.files import sha256


def scaled(rows: Rows) -> Rows:
    """Rows divided by a constant that makes the longest 1."""
    return Rows(rows.features / np.linalg.norm(rows.features, axis=1).max(), rows.labels, rows.ids)


@pytest.fixture(scope="module")
def digits() -> Rows:
    """357 rows of 64 pixels, threes and eights, longest norm 1."""
    return scaled(load_rows("digits:3,8"))


def fitted(rows: Rows, seed: int = 0, **settings: object) -> RemovableLinear:
    """A model whose perturbation comes from a seed."""
    return RemovableLinear(LinearConfig(**settings), np.random.default_rng(seed)).fit(rows)


# The formulas


def test_largest_third_derivative_of_the_logistic_loss() -> None:
    """l''' = s (1 - s) (1 - 2 s) is largest at s = (1 +- 1/sqrt 3) / 2, where it is 1 / (6 sqrt 3); l'' is at most 1/4."""
    scores = torch.linspace(-8, 8, 160_001, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.softplus(-scores)
    derivative = loss
    found = []
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), scores, create_graph=True)
        found.append(derivative.detach().abs().max().item())
    assert found[1] == pytest.approx(0.25, abs=1e-9)
    assert found[2] == pytest.approx(GAMMA["logistic"], abs=1e-9)
    assert GAMMA["logistic"] == pytest.approx(0.0962250449, abs=1e-10)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_gradient_and_hessian_are_those_of_autograd(loss: str) -> None:
    generator = np.random.default_rng(0)
    features, weights = generator.normal(size=(20, 5)), generator.normal(size=(1, 5))
    targets = np.sign(generator.normal(size=(20, 1)))

    def objective(w: torch.Tensor) -> torch.Tensor:
        scores, y = torch.tensor(features) @ w, torch.tensor(targets[:, 0])
        losses = torch.nn.functional.softplus(-y * scores) if loss == "logistic" else (scores - y) ** 2 / 2
        return losses.sum() + 0.1 * 20 / 2 * w @ w

    w = torch.tensor(weights[0])
    np.testing.assert_allclose(gradient(loss, 0.1, weights, features, targets)[0], torch.func.grad(objective)(w), atol=1e-12)
    np.testing.assert_allclose(hessians(loss, 0.1, weights, features, targets)[0], torch.func.hessian(objective)(w), atol=1e-12)


def test_large_scores_do_not_overflow() -> None:
    first, second = derivatives("logistic", np.array([-1e4, 0, 1e4]), np.array([1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(first, [-1, -0.5, 0])
    np.testing.assert_array_equal(second, [0, 0.25, 0])


def test_without_perturbation_training_is_scikit_learns_logistic_regression(digits: Rows) -> None:
    targets = np.where(digits.labels == 1, 1.0, -1.0)[:, None]
    weights = minimise("logistic", 0.01, digits.features, targets, np.zeros((1, 64)))
    oracle = LogisticRegression(C=1 / (0.01 * len(digits)), fit_intercept=False, tol=1e-12, max_iter=10_000)
    np.testing.assert_allclose(weights, oracle.fit(digits.features, digits.labels).coef_, atol=1e-6)


def test_constant_and_budget_of_the_gaussian() -> None:
    assert gaussian_constant(1e-4) == pytest.approx(4.3853860674, abs=1e-10)
    assert 1.5 * math.exp(-(gaussian_constant(1e-4) ** 2) / 2) == pytest.approx(1e-4)
    assert LinearConfig(sigma=1, epsilon=1, delta=1e-4).budget == pytest.approx(0.2280300946, abs=1e-10)
    assert LinearConfig(sigma=2, epsilon=0.5, delta=0).budget == 1


def test_exact_delta_of_a_shifted_gaussian_is_that_of_a_numerical_integral() -> None:
    shift, std, epsilon = 1.0, 1.3, 0.7
    x = np.linspace(-20, 20, 2_000_001)
    here, there = (np.exp(-((x - mean) ** 2) / (2 * std**2)) / math.sqrt(2 * math.pi) / std for mean in (shift, 0))
    integral = np.trapezoid(np.maximum(here - math.exp(epsilon) * there, 0), x)
    assert gaussian_delta(shift, std, epsilon) == pytest.approx(integral, rel=1e-6)


def test_an_epsilon_for_which_the_constant_of_the_theorem_fails_is_refused() -> None:
    LinearConfig(epsilon=8, delta=1e-4)
    with pytest.raises(ValueError, match="lower epsilon"):
        LinearConfig(epsilon=10, delta=1e-4)


def test_perturbation_without_delta_has_density_falling_with_its_norm() -> None:
    """Density exp(-|b| / sigma) in d dimensions: |b| is Gamma(d, sigma), with mean d sigma and variance d sigma^2."""
    generator, config = np.random.default_rng(0), LinearConfig(delta=0, sigma=0.5)
    drawn = np.stack([draw_noise(config, (2, 3), generator) for _ in range(20_000)]).reshape(-1, 6)
    norms = np.linalg.norm(drawn, axis=1)
    assert norms.mean() == pytest.approx(3, rel=0.02)
    assert norms.var() == pytest.approx(1.5, rel=0.05)
    assert np.abs(drawn.mean(0)).max() < 0.03


def test_extractor_and_head_add_up() -> None:
    assert composed((1.0, 1e-5), (0.1, 1e-4)) == (1.1, pytest.approx(1.1e-4))


def test_the_extractors_privacy_of_several_removed_rows_is_that_of_a_group() -> None:
    """Three rows, (0.5, 1e-5): 3 * 0.5 + 1 and 3 exp(2 * 0.5) 1e-5 + 1e-4."""
    assert composed((0.5, 1e-5), (1.0, 1e-4), 3) == (2.5, pytest.approx(3 * math.e * 1e-5 + 1e-4))
    with pytest.raises(ValueError, match="num_removed is 0"):
        composed((1.0, 1e-5), (0.1, 1e-4), 0)


# Removal


def test_squared_loss_is_removed_exactly_without_perturbation() -> None:
    generator = np.random.default_rng(0)
    features, targets = generator.normal(size=(50, 5)), generator.normal(size=(50, 1))
    keep = np.arange(50) != 7
    nothing = np.zeros((1, 5))
    weights = minimise("squared", 0.1, features, targets, nothing)
    np.testing.assert_allclose(weights[0], Ridge(alpha=0.1 * 50, fit_intercept=False).fit(features, targets[:, 0]).coef_)
    step = newton_step("squared", 0.1, weights, features[keep], targets[keep], features[~keep], targets[~keep])
    again = minimise("squared", 0.1, features[keep], targets[keep], nothing)
    np.testing.assert_allclose(weights + step, again, atol=1e-12)


def test_parameters_that_are_close_may_still_betray_a_row() -> None:
    """Rows e_i with target i: w_i = i / (1 + lam n) = i / 1.4; e_3's removal makes w_3 = 0 and the others i / 1.3."""
    features, targets = np.eye(4), np.arange(1.0, 5)[:, None]
    weights = minimise("squared", 0.1, features, targets, np.zeros((1, 4)))
    np.testing.assert_allclose(weights[0], [0.7142857, 1.4285714, 2.1428571, 2.8571429], atol=1e-7)
    keep = np.array([True, True, False, True])
    weights += newton_step("squared", 0.1, weights, features[keep], targets[keep], features[~keep], targets[~keep])
    np.testing.assert_allclose(weights[0], [1 / 1.3, 2 / 1.3, 0, 4 / 1.3], atol=1e-12)


def test_ridge_equals_training_again_through_many_removals(digits: Rows) -> None:
    model = fitted(digits, loss="squared")
    for ids in ([3], [10, 200, 356], list(range(20, 60))):
        removal = model.remove(ids)
        assert not removal.retrained
        assert set(vars(removal.bounds).values()) == {0}
    again = minimise("squared", 0.01, model.rows.features, model.targets(model.rows), model._noise)
    assert len(model.rows) == 357 - 44
    np.testing.assert_allclose(model.weights, again, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_every_residual_stays_below_every_bound_in_order(digits: Rows, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(digits.ids)[:50]
    for first in range(0, 50, 10):
        model = fitted(digits, seed=1000 * seed + first)
        for removed in order[first : first + 10]:
            before = slope(model)
            removal = model.remove([removed])
            assert not removal.retrained
            bounds, grown = removal.bounds, np.linalg.norm(slope(model) - before)
            assert 0 < grown <= bounds.elementwise <= bounds.corollary <= bounds.paper <= bounds.theorem <= bounds.worst
            assert removal.residual == pytest.approx(np.linalg.norm(slope(model)))
            assert removal.residual <= removal.spent


def slope(model: RemovableLinear) -> np.ndarray:
    """The gradient of the perturbed objective at the model's weights."""
    return gradient("logistic", 0.01, model.weights, model.rows.features, model.targets(model.rows)) + model._noise


def test_bounds_of_one_removal_by_their_definitions(digits: Rows) -> None:
    """Each bound from its formula with dense linear algebra; the worst is 4 / (4 * 0.01^2 * 356) = 28.09."""
    model = fitted(digits)
    weights, target = model.weights[0], np.where(digits.labels == 1, 1.0, -1.0)
    removal = model.remove([5])
    keep = digits.ids != 5
    rest = digits.features[keep]
    sigmoid = 1 / (1 + np.exp(-rest @ weights * target[keep]))
    hessian = rest.T @ np.diag(sigmoid * (1 - sigmoid)) @ rest + 0.01 * 356 * np.eye(64)
    mistake = 1 / (1 + np.exp(-digits.features[5] @ weights * target[5])) - 1
    step = np.linalg.solve(hessian, 0.01 * weights + mistake * target[5] * digits.features[5])
    norm, gamma, moved = np.linalg.norm(rest, 2), 1 / (6 * math.sqrt(3)), rest @ step
    np.testing.assert_allclose(model.weights[0], weights + step, atol=1e-12)
    assert removal.bounds.elementwise == pytest.approx(gamma / 2 * norm * np.linalg.norm(moved**2))
    assert removal.bounds.corollary == pytest.approx(gamma * norm * np.linalg.norm(step) * np.linalg.norm(moved))
    assert removal.bounds.paper == pytest.approx(removal.bounds.corollary * 0.25 / gamma)
    assert removal.bounds.theorem == pytest.approx(0.25 * 356 * step @ step)
    assert removal.bounds.worst == pytest.approx(4 * 0.25 / 0.01**2 / 356)
    assert removal.charged == removal.bounds.elementwise


def test_the_worst_bound_of_a_batch_grows_with_its_square(digits: Rows) -> None:
    for num in (1, 2, 5, 10, 20, 50):
        removal = fitted(digits, seed=3, sigma=10).remove(np.random.default_rng(3).permutation(357)[:num])
        assert removal.bounds.worst == pytest.approx(28.09 * num**2 * 356 / (357 - num), rel=1e-3)
        assert removal.residual <= removal.bounds.elementwise + 1e-12


def test_the_elementwise_bound_allows_ten_times_the_removals_of_the_papers(digits: Rows) -> None:
    order = np.random.default_rng(1).permutation(digits.ids)

    def removals(bound: str) -> int:
        model = fitted(digits, bound=bound)
        return sum(1 for _ in itertools.takewhile(lambda i: not model.remove([i]).retrained, order))

    assert removals("elementwise") >= 250
    assert removals("paper") == pytest.approx(25, abs=3)


def test_a_spent_budget_trains_anew_with_another_perturbation(digits: Rows) -> None:
    model = fitted(digits, sigma=0.05)
    noise = model._noise
    for removed in digits.ids:
        before = model.spent
        removal = model.remove([removed])
        if removal.retrained:
            break
    assert before + removal.charged > removal.budget, "only a charge that no longer fits trains anew"
    assert removal.spent == pytest.approx(removal.residual) and removal.spent < 1e-8, "the account starts again"
    assert np.abs(model._noise - noise).min() > 0
    assert removed not in model.rows.ids
    again = minimise("logistic", 0.01, model.rows.features, model.targets(model.rows), model._noise)
    np.testing.assert_allclose(model.weights, again, atol=1e-9)


def test_training_anew_at_a_removal_fixed_in_advance_resets_the_account(digits: Rows) -> None:
    model = RemovableLinear(generator=np.random.default_rng(0)).fit(digits)
    before, weights = model.remove([0, 1]), model.weights
    removal = model.remove([2, 3], anew=True)
    assert not before.retrained and removal.retrained and removal.spent < before.spent < removal.budget
    assert np.abs(model.weights - weights).max() > 0.1 and removal.residual == pytest.approx(removal.spent)


def test_the_decision_to_train_anew_costs_delta_and_nothing_else_does() -> None:
    """One feature, one weight, by integration over b: what the module says of the Theorem's limit, in numbers.

    D = the weight of a model trained without the row, A = the weight after its removal. The real delta at epsilon is the
    integral of the positive part of p_D - e^epsilon p_A. With the charges of all draws within the budget it is below delta.
    With a budget that a share of the draws exceeds, those are missing from A (they are trained anew, and so spread over all),
    and the real delta is far above, but below delta + e^epsilon times that share.
    """
    features, labels = np.array([[1.0], [0.9], [-0.8], [0.7], [-1.0], [0.6], [-0.5], [0.8]]), np.array([1, 1, 0, 1, 0, 0, 1, 1])
    config = LinearConfig(lam=0.1, sigma=1.0)
    rows = rows_of(features, labels)
    rest = rows.take(np.arange(1, len(rows)))
    noise = np.linspace(-6, 6, 6001) * config.sigma
    weight = np.exp(-((noise / config.sigma) ** 2) / 2)
    weight /= weight.sum()
    model, charges, after, without = RemovableLinear(config), [], [], []
    for b in noise:
        model.rows, model.classes, model.spent, model._gram = rows, np.array([0, 1]), 0.0, features.T @ features
        model.weights = minimise(config.loss, config.lam, features, model.targets(rows), np.array([[b]]))
        step = newton_step(
            config.loss, config.lam, model.weights, rest.features, model.targets(rest), features[:1], model.targets(rows)[:1]
        )
        norm = float(np.linalg.norm(rest.features))
        charges.append(bounds_of(config, step, model.weights, rest.features, norm, 1).elementwise)
        after.append((model.weights + step)[0, 0])
        without.append(minimise(config.loss, config.lam, rest.features, model.targets(rest), np.array([[b]]))[0, 0])
    edges = np.linspace(min(*after, *without), max(*after, *without), 200)
    p_without = np.histogram(without, edges, weights=weight)[0]

    def real_delta(budget: float) -> tuple[float, float]:
        """(delta, the share of draws that are trained anew)."""
        anew = np.array(charges) > budget
        kept = np.histogram(np.array(after)[~anew], edges, weights=weight[~anew])[0]
        share = float(weight[anew].sum())
        return float(np.maximum(0, p_without - math.e * (kept + share * p_without)).sum()), share

    largest = max(charges)
    assert largest < config.budget
    assert real_delta(config.budget) == (pytest.approx(0, abs=config.delta), 0)
    order = np.argsort(charges)
    fifth = charges[order[np.searchsorted(weight[order].cumsum(), 0.8)]]  # what a fifth of the draws exceeds
    delta, share = real_delta(float(fifth))
    assert 0.01 < share < 0.5 and 10 * config.delta < delta < config.delta + math.e * share


def test_the_optimisers_own_residual_is_charged(digits: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def sloppy(*arguments: object) -> np.ndarray:
        return minimise(*arguments) + 1e-4

    monkeypatch.setattr("erase.classification.certified.minimise", sloppy)
    model = fitted(digits)
    assert model.spent == pytest.approx(model.residual()) and model.spent > 1e-4
    removal = model.remove([0])
    assert removal.spent == pytest.approx(model.residual(), abs=removal.charged + 1e-4)
    assert removal.residual <= removal.spent
    with pytest.raises(ValueError, match="raise sigma"):
        fitted(digits, sigma=1e-4)


def test_heads_of_several_classes_share_one_account() -> None:
    digits = scaled(load_rows("digits"))
    model = fitted(digits, sigma=10)
    assert model.weights.shape == (10, 64)
    for removed in (0, 5, 9):
        removal = model.remove([removed])
        assert removal.residual <= removal.spent
        assert 0 < removal.charged == removal.bounds.elementwise <= removal.bounds.corollary
    alone = [fitted(Rows(digits.features, (digits.labels == k).astype(int), digits.ids)) for k in range(10)]
    for k, head in enumerate(alone):  # the same perturbation in each head as in the stack: each head is that binary model
        head._noise = fitted(digits, sigma=10)._noise[k : k + 1]
        head.weights = minimise("logistic", 0.01, digits.features, head.targets(head.rows), head._noise)
    stacked = fitted(digits, sigma=10)
    np.testing.assert_allclose(stacked.weights, np.concatenate([head.weights for head in alone]), atol=1e-8)
    charges = [head.remove([77]).charged for head in alone]
    assert stacked.remove([77]).charged == pytest.approx(math.sqrt(sum(charge**2 for charge in charges)))


def test_accuracy_on_digits_and_breast_cancer(digits: Rows) -> None:
    assert (fitted(digits).predict(digits.features) == digits.labels).mean() > 0.95
    features, labels = load_breast_cancer(return_X_y=True)
    cancer = scaled(rows_of((features - features.mean(0)) / features.std(0), labels))
    assert (fitted(cancer).predict(cancer.features) == cancer.labels).mean() > 0.92


def test_real_targets_with_squared_loss() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 3))
    model = fitted(rows_of(features, features @ [1.0, -2.0, 3.0]), loss="squared", lam=1e-6, sigma=1e-3)
    np.testing.assert_allclose(model.predict(np.eye(3)), [1, -2, 3], atol=1e-3)


# Two versions together


def test_two_versions_reveal_the_row_and_retraining_with_fresh_noise_does_not(digits: Rows) -> None:
    model = fitted(digits)
    before = model.weights
    model.remove([42])
    targets = model.targets(model.rows)

    def likeness(after: np.ndarray) -> np.ndarray:
        direction = revealed("logistic", 0.01, before, after, model.rows.features, targets)[0]
        return np.abs(digits.features @ direction) / np.linalg.norm(digits.features, axis=1) / np.linalg.norm(direction)

    found = likeness(model.weights)
    assert found[42] > 1 - 1e-9
    assert np.delete(found, 42).max() < 0.99, "no other row lies in that direction"
    model._train(model.rows, model.classes)
    assert likeness(model.weights)[42] < 0.5


# Files and mistakes


def test_saved_and_loaded_models_go_on_alike(digits: Rows, tmp_path: Path) -> None:
    model, path = fitted(digits), tmp_path / "linear.safetensors"
    model.remove([1, 2])
    model.save(path, {"data": "digits:3,8"})
    shuffled = digits.take(np.random.default_rng(0).permutation(357))
    loaded = RemovableLinear.load(path, shuffled)
    np.testing.assert_array_equal(loaded.weights, model.weights)
    assert loaded.config == model.config and loaded.spent == model.spent
    first, second = model.remove([17]), loaded.remove([17])
    np.testing.assert_allclose(loaded.weights, model.weights, atol=1e-12)
    assert second.spent == pytest.approx(first.spent) and second.residual is None, "b is in no file"


def test_no_file_holds_the_perturbation_or_a_row(digits: Rows, tmp_path: Path) -> None:
    model, path = fitted(digits), tmp_path / "linear.safetensors"
    model.save(path)
    content = path.read_bytes()
    assert model.weights[0, 5].tobytes() in content, "the search finds what is there"
    assert not any(value.tobytes() in content for value in model._noise.ravel())
    assert not any(row.tobytes() in content for row in digits.features)


def test_rows_that_were_removed_may_vanish_from_the_data_but_no_other_may_change(digits: Rows, tmp_path: Path) -> None:
    path = tmp_path / "linear.safetensors"
    model = fitted(digits)
    model.remove([4])
    model.save(path)
    RemovableLinear.load(path, digits.take(digits.ids != 4))
    with pytest.raises(ValueError, match="lacks 1 of the model's rows, first 5"):
        RemovableLinear.load(path, digits.take(digits.ids != 5))
    changed = digits.features.copy()
    changed[100, 20] += 1e-9
    with pytest.raises(ValueError, match="changed since"):
        RemovableLinear.load(path, Rows(changed, digits.labels, digits.ids))
    with pytest.raises(ValueError, match="changed since"):
        RemovableLinear.load(path, Rows(digits.features, 1 - digits.labels, digits.ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no id"),
        ([999], "no row with the id 999"),
        ([3, 3], "id 3 is given more than once"),
        (list(range(357)), "all 357 rows"),
        ([0.5], "whole numbers"),
        ("one class", "of class 1"),
    ],
)
def test_a_refused_removal_leaves_the_model_as_it_was(ids: object, message: str, digits: Rows, tmp_path: Path) -> None:
    model = fitted(digits)
    model.save(tmp_path / "before")
    with pytest.raises(ValueError, match=message):
        model.remove(digits.ids[digits.labels == 0] if ids == "one class" else ids)
    model.save(tmp_path / "after")
    assert sha256(tmp_path / "before") == sha256(tmp_path / "after")


def test_an_export_is_but_for_its_weights_that_of_a_model_trained_without_the_row(digits: Rows, tmp_path: Path) -> None:
    """The model's own file tells of the removal; with the other's weights put into the export no byte of it differs."""
    model, without = fitted(digits), fitted(digits.take(digits.ids != 42))
    model.remove([42])
    for name, each in (("model", model), ("without", without)):
        each.save(tmp_path / name, {"data": f"{name}.npz", "scale": "2.0"})
        export_linear(tmp_path / name, tmp_path / f"{name}.public")
    one, other = ((tmp_path / f"{name}.public").read_bytes() for name in ("model", "without"))
    assert repr(model.spent).encode() in (tmp_path / "model").read_bytes() and repr(model.spent).encode() not in one
    assert one != other and one.replace(model.weights.tobytes(), without.weights.tobytes()) == other
    weights, classes, header = read_weights(tmp_path / "model.public")
    assert np.array_equal(weights, model.weights) and classes.tolist() == [0, 1] and header["scale"] == "2.0"
    with pytest.raises(ValueError, match="an export, which has weights alone"):
        RemovableLinear.load(tmp_path / "model.public", digits)
    with pytest.raises(ValueError, match="already exists"):
        export_linear(tmp_path / "model", tmp_path / "model.public")


def test_a_class_whose_last_row_goes_leaves_the_shape_too() -> None:
    digits = load_rows("digits").take(np.arange(150))
    model = fitted(digits.take(digits.labels < 3), sigma=10)
    removal = model.remove(model.rows.ids[model.rows.labels == 1])
    assert removal.retrained and model.classes.tolist() == [0, 2] and model.weights.shape == (1, 64)
    assert set(model.predict(model.rows.features)) <= {0, 2} and removal.spent < removal.budget


def test_removing_an_id_twice_is_refused(digits: Rows) -> None:
    model = fitted(digits)
    model.remove([3])
    with pytest.raises(ValueError, match="removed already"):
        model.remove([3])


def test_long_rows_are_refused_where_the_bound_assumes_short_ones(digits: Rows) -> None:
    long = Rows(digits.features * 1.5, digits.labels, digits.ids)
    for bound in ("corollary", "paper", "worst"):
        with pytest.raises(ValueError, match=r"norm 1\.5"):
            fitted(long, bound=bound)
    model = fitted(long)
    removal = model.remove([0])
    assert removal.residual <= removal.bounds.elementwise


def test_another_file_is_refused(digits: Rows, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="not a removable linear model"):
        RemovableLinear.load(path, digits)


def test_a_file_whose_classes_or_width_are_not_its_rows_is_refused(digits: Rows, tmp_path: Path) -> None:
    model = fitted(digits)
    model.classes = np.array([0, 7])
    model.save(tmp_path / "classes")
    with pytest.raises(ValueError, match=r"its classes are \[0, 7\], not those of its rows"):
        RemovableLinear.load(tmp_path / "classes", digits)
    model.classes, model.weights = np.array([0, 1]), model.weights[:, :9]
    model.save(tmp_path / "width")
    with pytest.raises(ValueError, match="has 9 weights a head, the rows 64"):
        RemovableLinear.load(tmp_path / "width", digits)
    with pytest.raises(ValueError, match="less than or equal to 100"):
        LinearConfig(epsilon=1000)
