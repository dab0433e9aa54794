"""How near an unlearned model comes to one retrained without the data: the measures of Mercuri et al. 2022, on plain numbers.

Every function takes the retrained (or naive) side first, but for `consistency_kl`, which is written as its formula reads:
KL(unlearned || retrained). What the numbers stand for - a classifier's accuracy, a share of pictures - is the caller's.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def efficiency(retraining_s: ArrayLike, unlearning_s: ArrayLike) -> float:
    """Mean over requests of the time to retrain over the time to unlearn: how many times faster; above 1 is a gain."""
    retraining, unlearning = np.broadcast_arrays(_numbers(retraining_s, "retraining"), _numbers(unlearning_s, "unlearning"))
    if (unlearning <= 0).any() or (retraining < 0).any():
        raise ValueError("efficiency needs times in seconds: above 0 for unlearning, not below 0 for retraining.")
    return float(np.mean(retraining / unlearning))


def effectiveness(retrained: ArrayLike, unlearned: ArrayLike) -> float:
    """Distance of a test measure (accuracy, say) of the two models, mean over several measures; 0 is best."""
    return float(np.mean(np.abs(_pair(retrained, unlearned, "measures"))))


def consistency_parameters(retrained: ArrayLike, unlearned: ArrayLike) -> float:
    """L2 distance of the two models' parameters; 0 is best."""
    return float(np.linalg.norm(_pair(retrained, unlearned, "parameters")))


def consistency_labels(retrained: ArrayLike, unlearned: ArrayLike) -> float:
    """Share of test inputs that both models label alike (He et al. 2021); 1 is best."""
    first, second = np.asarray(retrained), np.asarray(unlearned)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"both models must label the same inputs: {first.size} labels against {second.size}.")
    return float(np.mean(first == second))


def consistency_kl(unlearned: ArrayLike, retrained: ArrayLike) -> float:
    """Mean over rows of KL(unlearned || retrained) in nats, of class probabilities (N, classes) or (classes,); 0 is best.

    Infinite when the unlearned model gives weight to a class that the retrained one rules out.
    """
    rows = [np.atleast_2d(_numbers(p, "probabilities")) for p in (unlearned, retrained)]
    if rows[0].shape != rows[1].shape:
        raise ValueError(f"both models must rate the same inputs and classes: {rows[0].shape} against {rows[1].shape}.")
    for row in rows:
        if (row < 0).any() or not np.allclose(row.sum(1), 1, atol=1e-5):
            raise ValueError("KL needs probabilities: each row at least 0 and summing to 1 (softmax the logits first).")
    given, reference = rows
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(given > 0, given * np.log(given / reference), 0.0)
    return float(terms.sum(1).mean())


def sape(retrained: float, unlearned: float) -> float:
    """Symmetric absolute percentage error, 0 to 100, of a measure on the forgotten data; two zeros give 0.

    A small value proves little when the retrained model itself scores high there.
    """
    first, second = float(_numbers(retrained, "a measure")), float(_numbers(unlearned, "a measure"))
    size = abs(first) + abs(second)
    return 100 * abs(second - first) / size if size else 0.0


def _numbers(values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"{what}: finite numbers are needed, at least one.")
    return array


def _pair(first: ArrayLike, second: ArrayLike, what: str) -> NDArray[np.float64]:
    one, other = _numbers(first, what), _numbers(second, what)
    if one.shape != other.shape:
        raise ValueError(f"both models must have the same {what}: shape {one.shape} against {other.shape}.")
    return one - other
