"""Fisher forgetting against closed forms: noise, logistic regression's Hessian, KL of Gaussians, digits 3 against 8."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from erase.classification.methods import unlearn
from erase.classification.methods.fisher import (
    Fisher,
    Scrubbed,
    fisher_information,
    gaussian_kl,
    information_bound,
    matrix_power,
    scrub,
)
from erase.classification.methods.influence import FlatWeights
from erase.classification.split import Batches
from erase.saliency import Mask

LAM = 0.01


class Logistic(nn.Module):
    """sigmoid(w.x) as the second of two classes."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        score = inputs @ self.weights
        return torch.stack([torch.zeros_like(score), score], 1)


def hessian(x: np.ndarray, weights: np.ndarray, lam: float) -> np.ndarray:
    p = 1 / (1 + np.exp(-x @ weights))
    return (x.T * (p * (1 - p))) @ x + lam * len(x) * np.eye(x.shape[1])


def minimum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Newton's method from zero; y in {0, 1}."""
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        gradient = x.T @ (1 / (1 + np.exp(-x @ weights)) - y) + LAM * len(x) * weights
        weights = weights - np.linalg.solve(hessian(x, weights, LAM), gradient)
    return weights


def digits_3_vs_8() -> tuple[np.ndarray, np.ndarray]:
    """285 of the 357 rows of 3 and 8, drawn by seed 1, scaled so that the longest row has length 1."""
    digits = load_digits()
    chosen = np.isin(digits.target, (3, 8))
    x, y = digits.data[chosen], (digits.target[chosen] == 3).astype(float)
    order = np.random.default_rng(1).permutation(len(x))[:285]
    return x[order] / np.linalg.norm(x[order], axis=1).max(), y[order]


def batches(x: np.ndarray, y: np.ndarray, size: int = 100) -> Batches:
    return Batches(torch.from_numpy(x), torch.from_numpy(y).long(), size)


def test_the_fisher_information_of_logistic_regression_is_its_hessian() -> None:
    x, y = digits_3_vs_8()
    model = Logistic(minimum(x, y))
    weights = FlatWeights(model, None)
    full = fisher_information(model, weights, batches(x, y), full=True).numpy()
    np.testing.assert_allclose(full, hessian(x, model.weights.detach().numpy(), 0.0), atol=1e-12)
    diagonal = fisher_information(model, weights, batches(x, y, 7)).numpy()
    np.testing.assert_allclose(diagonal, np.diag(full), atol=1e-12)


def test_the_fisher_information_of_a_network_is_the_expectation_over_its_own_labels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.zeros(31, dtype=torch.float64)
    for row in x:
        log_p = model(row).log_softmax(0)
        for c in range(3):
            gradient = torch.autograd.grad(log_p[c], list(model.parameters()), retain_graph=True)
            expected += log_p[c].detach().exp() * torch.cat([g.reshape(-1) for g in gradient]) ** 2
    weights, data = FlatWeights(model, None), Batches(x, torch.zeros(5).long(), 2)
    torch.testing.assert_close(fisher_information(model, weights, data), expected, atol=1e-12, rtol=0)
    full = fisher_information(model, weights, data, full=True)  # by way of each row's own gradient
    torch.testing.assert_close(full.diagonal(), expected, atol=1e-12, rtol=0)


def test_the_noise_is_sigma_f_to_the_minus_quarter() -> None:
    information = torch.tensor([16.0, 1.0, 1 / 16])
    for covariance in (0.3**2 * information**-0.5, 0.3**2 * matrix_power(information.diag(), -0.5)):
        scrubbed = Scrubbed(torch.zeros(3), covariance)
        draws = torch.stack([scrubbed.draw(torch.Generator().manual_seed(seed)) for seed in range(2000)])
        torch.testing.assert_close(draws.std(0), 0.3 * torch.tensor([0.5, 1.0, 2.0]), rtol=0.08, atol=0)


def test_the_kl_divergence_of_gaussians() -> None:
    """N(1,1) || N(0,1) = 1/2; N(0,1) || N(1,2) = (ln 2 + 1/2 + 1/2 - 1) / 2; and against 400,000 draws in five dimensions."""

    def normal(mean: float, variance: float, full: bool) -> Scrubbed:
        covariance = torch.tensor([variance], dtype=torch.float64)
        return Scrubbed(torch.tensor([mean], dtype=torch.float64), covariance.diag() if full else covariance)

    for full in (False, True):
        assert gaussian_kl(normal(1, 1, full), normal(0, 1, full)) == pytest.approx(0.5)
        assert gaussian_kl(normal(0, 1, full), normal(1, 2, full)) == pytest.approx(math.log(2) / 2)
        assert gaussian_kl(normal(1, 2, full), normal(1, 2, full)) == pytest.approx(0, abs=1e-12)
    torch.manual_seed(0)
    roots = torch.randn(2, 5, 5, dtype=torch.float64)
    p, q = (Scrubbed(torch.randn(5, dtype=torch.float64), root @ root.T + torch.eye(5)) for root in roots)
    density = [torch.distributions.MultivariateNormal(each.mean, each.covariance) for each in (p, q)]
    draws = density[0].sample((400_000,))
    assert gaussian_kl(p, q) == pytest.approx(float((density[0].log_prob(draws) - density[1].log_prob(draws)).mean()), rel=0.01)


@pytest.mark.parametrize(
    ("num_forget", "distance", "noise_only", "newton_and_noise"),
    [(10, 0.107, 1.039, None), (50, 0.275, 6.27, 2.6e-5), (100, 0.538, 24.3, 3.5e-3)],
)
def test_digits_3_vs_8(num_forget: int, distance: float, noise_only: float, newton_and_noise: float | None) -> None:
    """KL to the retrained model under the same noise grows with the rows; with the Newton correction it is gone."""
    x, y = digits_3_vs_8()
    original, retrained = minimum(x, y), minimum(x[num_forget:], y[num_forget:])
    assert np.linalg.norm(original - retrained) == pytest.approx(distance, rel=0.01)
    retain = batches(x[num_forget:], y[num_forget:])

    def scrubbed(weights: np.ndarray, newton: bool) -> Scrubbed:
        config = Fisher(sigma=0.1, newton=newton, damping=0, l2=LAM, curvature="full")
        return scrub(config, Logistic(weights), retain)

    goal = scrubbed(retrained, newton=False)
    assert gaussian_kl(scrubbed(original, newton=False), goal) == pytest.approx(noise_only, rel=0.05)
    corrected = scrubbed(original, newton=True)
    same_noise = Scrubbed(corrected.mean, goal.covariance)  # the reference figures compare the means alone
    if newton_and_noise is not None:
        assert gaussian_kl(same_noise, goal) == pytest.approx(newton_and_noise, rel=0.05)
    assert (
        gaussian_kl(corrected, goal) < 2e-6
        if num_forget == 10
        else gaussian_kl(corrected, goal) < 1.1 * newton_and_noise + 1e-5
    )
    assert float((corrected.mean - goal.mean).norm()) < distance / 50


def test_the_information_bound_is_the_mean_divergence() -> None:
    assert information_bound([1.0, 3.0]) == 2.0 and information_bound([0.0]) == 0.0
    for wrong in ([], [-1.0]):
        with pytest.raises(ValueError, match="mean of KL divergences"):
            information_bound(wrong)


def test_noise_falls_on_the_mask_alone_and_grows_with_sigma() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    start = nn.Linear(6, 3)
    mask: Mask = {"weight": torch.rand(3, 6) < 0.5, "bias": torch.zeros(3, dtype=torch.bool)}
    moved = []
    for sigma in (0.01, 1.0):
        model = nn.Linear(6, 3)
        model.load_state_dict(start.state_dict())
        unlearn(model, Fisher(sigma=sigma, newton=False), forget=Batches(x, y, 8), retain=Batches(x, y, 8), mask=mask)
        change = model.weight.detach() - start.weight.detach()
        assert not change[~mask["weight"]].any() and change[mask["weight"]].all() and torch.equal(model.bias, start.bias)
        moved.append(float(change.norm()))
    assert moved[1] == pytest.approx(100 * moved[0], rel=1e-3)


def test_endless_noise_and_huge_matrices_are_refused() -> None:
    blank = Batches(torch.zeros(4, 3), torch.zeros(4).long(), 4)  # rows of zeros tell nothing about the weights
    with pytest.raises(ValueError, match="raise damping"):
        scrub(Fisher(damping=0), nn.Linear(3, 2), blank)
    with pytest.raises(ValueError, match="too large: take curvature=diagonal"):
        scrub(Fisher(curvature="full"), nn.Linear(3, 2000), blank)
