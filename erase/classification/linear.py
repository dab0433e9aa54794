"""L2-regularised linear models: gradients, Hessians, Newton's method, and the Newton step that removes rows.

L(w; D) = sum_i l(w.x_i, y_i) + lam n / 2 |w|^2 for K heads with weights (K, d), features (n, d) and targets (n, K).
"""

from typing import Literal

import numpy as np

Loss = Literal["logistic", "squared"]


def derivatives(loss: Loss, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The losses' l' and l'' with respect to the scores w.x; logistic targets are -1 and 1."""
    if loss == "squared":
        return scores - targets, np.ones_like(scores)
    right = (1 + np.tanh(targets * scores / 2)) / 2  # the logistic function, without overflow
    return (right - 1) * targets, right * (1 - right)


def gradient(loss: Loss, lam: float, weights: np.ndarray, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Gradient (K, d) of L, b apart, at weights (K, d) for features (n, d) and targets (n, K)."""
    first, _ = derivatives(loss, features @ weights.T, targets)
    return first.T @ features + lam * len(features) * weights


def hessians(loss: Loss, lam: float, weights: np.ndarray, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The heads' Hessians (K, d, d) of L."""
    _, second = derivatives(loss, features @ weights.T, targets)
    ridge = lam * len(features) * np.eye(features.shape[1])
    return np.stack([(features.T * curvature) @ features + ridge for curvature in second.T])


def minimise(loss: Loss, lam: float, features: np.ndarray, targets: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Weights (K, d) that minimise L + noise.w by Newton's method; a step that shrinks the gradient too little is halved."""
    weights = np.zeros_like(noise)
    slope = gradient(loss, lam, weights, features, targets) + noise
    for _ in range(100):
        norm = np.linalg.norm(slope)
        if norm < 1e-11 * len(features):
            break
        step = np.linalg.solve(hessians(loss, lam, weights, features, targets), -slope[..., None])[..., 0]
        share = 1.0
        while share > 1e-6:
            trial = weights + share * step
            trial_slope = gradient(loss, lam, trial, features, targets) + noise
            if np.linalg.norm(trial_slope) < (1 - share / 4) * norm:
                break
            share /= 2
        else:
            break  # rounding: no step is better, and what is left is charged to the budget
        weights, slope = trial, trial_slope
    return weights


def newton_step(
    loss: Loss,
    lam: float,
    weights: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    removed_features: np.ndarray,
    removed_targets: np.ndarray,
) -> np.ndarray:
    """H^-1 (m lam w + sum of the removed losses' gradients) (K, d), H the Hessian on the remaining rows (section 3.1)."""
    change = gradient(loss, lam, weights, removed_features, removed_targets)
    return np.linalg.solve(hessians(loss, lam, weights, features, targets), change[..., None])[..., 0]


def revealed(
    loss: Loss, lam: float, before: np.ndarray, after: np.ndarray, features: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """What who holds both versions and the remaining rows learns: H (w- - w) - lam w (K, d), parallel to the one row removed.

    Deletion inference (Gao et al., 2022) in the linear case; a certificate speaks of one version, not of both together.
    """
    return np.einsum("kij,kj->ki", hessians(loss, lam, before, features, targets), after - before) - lam * before
