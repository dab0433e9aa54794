"""What certified removal promises, and what a removal uses up of it (Guo, Goldstein, Hannun, van der Maaten, ICML 2020)."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from erase.classification.linear import Loss

GAMMA = {"logistic": 1 / (6 * math.sqrt(3)), "squared": 0.0}  # the Lipschitz constant of l'': the largest |l'''|
PAPER_GAMMA = {"logistic": 0.25, "squared": 0.0}

Bound = Literal["elementwise", "corollary", "paper", "worst"]


class LinearConfig(BaseModel):
    """How a removable linear model is trained and what it promises."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    loss: Loss = "logistic"
    """`logistic`, or `squared` (half the squared error), whose removals are exact."""
    lam: float = Field(1e-2, gt=0)
    """L2 regularisation: lam n / 2 |w|^2 is added to the sum of the losses."""
    sigma: float = Field(1.0, gt=0)
    """Standard deviation of the perturbation b: more allows more removals and costs accuracy."""
    epsilon: float = Field(1.0, gt=0, le=100)
    """Guarantee: likelihood ratios within exp(+-epsilon) of a model trained without the rows."""
    delta: float = Field(1e-4, ge=0, lt=1)
    """Probability that the ratio is exceeded; 0 draws b with density exp(-|b| / sigma) in place of a Gaussian."""
    bound: Bound = "elementwise"
    """Which bound is charged; all but `elementwise` assume rows of norm at most 1."""

    @property
    def budget(self) -> float:
        """The gradient residual that the perturbation hides (Theorem 3): sigma epsilon / c, or sigma epsilon for delta = 0."""
        return self.sigma * self.epsilon / (gaussian_constant(self.delta) if self.delta else 1)

    @model_validator(mode="after")
    def _the_constant_holds(self) -> Self:
        if self.delta and gaussian_delta(1, gaussian_constant(self.delta) / self.epsilon, self.epsilon) > self.delta:
            raise ValueError(
                f"Theorem 3's constant does not hold at epsilon {self.epsilon} and delta {self.delta}: lower epsilon"
            )
        return self


def gaussian_constant(delta: float) -> float:
    """Theorem 3's c: delta = 1.5 exp(-c^2 / 2)."""
    return math.sqrt(2 * math.log(1.5 / delta))


def gaussian_delta(shift: float, std: float, epsilon: float) -> float:
    """The exact delta at which N(0, std^2) and N(shift, std^2) are (epsilon, delta)-indistinguishable (Balle & Wang, 2018)."""

    def cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    half, rest = shift / (2 * std), epsilon * std / shift
    return cdf(half - rest) - math.exp(epsilon) * cdf(-half - rest)


def composed(extractor: tuple[float, float], head: tuple[float, float], num_removed: int = 1) -> tuple[float, float]:
    """(epsilon, delta) of a private feature extractor with a removable head on it, after `num_removed` removals.

    For one row the sums (Theorem 5). The extractor is private for one row; for m of them, by group privacy, it is
    (m e, m exp((m - 1) e) d)-private. The head's guarantee holds for all removals since its last training as it is.
    """
    if num_removed < 1:
        raise ValueError(f"num_removed is {num_removed}; it must be at least 1.")
    epsilon, delta = extractor
    return num_removed * epsilon + head[0], num_removed * math.exp((num_removed - 1) * epsilon) * delta + head[1]


@dataclass(frozen=True)
class Bounds:
    """What bounds the residual of one removal, tightest first (gamma: the Lipschitz constant of l'', X: the remaining rows).

    elementwise: gamma/2 |X| |(Xv)*(Xv)|, from residual = X^T integral_0^1 (l''(w + tv) - l''(w)) Xv dt; needs no |x| <= 1.
    corollary: Corollary 1, gamma |X| |v| |Xv|. paper: the same with the paper's gamma of 1/4. theorem: Theorem 1's
    gamma (n - m) |v|^2, gamma 1/4. worst: Theorem 1 and 4 before any data is seen, 4 gamma m^2 C^2 / (lam^2 (n - m)), C = 1;
    where lam |w| > C (the perturbation can do that), with C + lam |w| for 2 C.
    """

    elementwise: float
    corollary: float
    paper: float
    theorem: float
    worst: float


def bounds_of(
    config: LinearConfig, step: np.ndarray, weights: np.ndarray, features: np.ndarray, norm: float, num_removed: int
) -> Bounds:
    """The bounds for a step v (K, d) of all heads together; features are the remaining rows, norm their spectral norm."""
    gamma, paper_gamma, num_rows = GAMMA[config.loss], PAPER_GAMMA[config.loss], len(features)
    moved = features @ step.T  # (n, K)
    length, moved_length = np.linalg.norm(step, axis=1), np.linalg.norm(moved, axis=0)
    largest = 1 + np.maximum(1, config.lam * np.linalg.norm(weights, axis=1))
    heads = {
        "elementwise": gamma / 2 * norm * np.linalg.norm(moved**2, axis=0),
        "corollary": gamma * norm * length * moved_length,
        "paper": paper_gamma * norm * length * moved_length,
        "theorem": paper_gamma * num_rows * length**2,
        "worst": paper_gamma * (num_removed * largest / config.lam) ** 2 / num_rows,
    }
    return Bounds(**{name: float(np.linalg.norm(head)) for name, head in heads.items()})


def draw_noise(config: LinearConfig, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """b: Gaussian, or for delta = 0 of uniform direction and density exp(-|b| / sigma)."""
    noise = generator.normal(0, config.sigma, shape)
    return noise if config.delta else noise / np.linalg.norm(noise) * generator.gamma(noise.size, config.sigma)
