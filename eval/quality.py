"""Distance between two sets of pictures: Fréchet (FID where the features are Inception's) and KID, in float64, streamed.

FID: Heusel et al. 2017; KID: Binkowski et al. 2018. A distance on other features has another name: "FD-emoji" is on the
embedded judge's 192 features, and no figure of it compares with an FID.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erase.files import atomic

Features = NDArray[np.float64]  # (N, D)


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of n feature vectors."""

    n: int
    mean: Features
    covariance: Features

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, n=self.n, mean=self.mean, covariance=self.covariance)

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """Read what `save` wrote; raises ValueError if it is not that."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(int(data["n"]), data["mean"], data["covariance"])
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} holds no picture statistics; delete it, it is made again.") from error


def moments(batches: Iterable[Features]) -> Moments:
    """Mean and covariance of features that come in batches; each batch is merged and let go (Chan et al. 1983)."""
    n = 0
    mean = scatter = np.zeros(0)
    for batch in batches:
        part = np.asarray(batch, np.float64)
        m, part_mean = len(part), part.mean(0)
        centred = part - part_mean
        part_scatter = centred.T @ centred
        if n == 0:
            n, mean, scatter = m, part_mean, part_scatter
            continue
        gap = part_mean - mean
        scatter = scatter + part_scatter + np.outer(gap, gap) * (n * m / (n + m))
        mean = mean + gap * (m / (n + m))
        n += m
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 pictures, there {'is' if n == 1 else 'are'} {n}.")
    return Moments(n, mean, scatter / (n - 1))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians: |mean gap|^2 + trace(A + B - 2 (A^1/2 B A^1/2)^1/2).

    The root's trace is the sum of singular values of A^1/2 B^1/2, which stays real when a covariance is singular.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"the two sets have {len(a.mean)} and {len(b.mean)} features: read both by one network.")
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    gap = a.mean - b.mean
    return max(0.0, float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))


def frechet_interval(
    a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]], groups: int = 20, z: float = 1.959964
) -> tuple[float, float]:
    """95 % interval of the distance between two sets of N paired vectors, by the jackknife that leaves out a group at a time.

    (The bootstrap's repeated rows shrink the covariances and shift the distance itself.)
    """
    if len(a) != len(b) or len(a) < 2 * groups:
        raise ValueError(f"an interval needs two sets of equally many pictures, at least {2 * groups}.")
    group = np.arange(len(a)) % groups
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    without = [frechet(moments([first[group != k]]), moments([second[group != k]])) for k in range(groups)]
    error = float(np.sqrt((groups - 1) * np.var(without)))
    value = frechet(moments([first]), moments([second]))
    return max(0.0, value - z * error), value + z * error


def _root(covariance: Features) -> Features:
    values, vectors = np.linalg.eigh(covariance)
    root: Features = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def kid(a: Features, b: Features, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """(mean, standard deviation) over subsets of the unbiased squared MMD with the kernel (x.y / D + 1)^3."""
    size = min(subset_size, len(a), len(b))
    if size < 2:
        raise ValueError(f"KID needs at least 2 pictures on each side, there are {len(a)} and {len(b)}.")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)]
        values.append(squared_mmd(x, y))
    return float(np.mean(values)), float(np.std(values))


def squared_mmd(x: Features, y: Features) -> float:
    """Unbiased squared maximum mean discrepancy of equally many vectors with the kernel (x.y / D + 1)^3."""
    n, d = x.shape
    xx, yy, xy = ((p @ q.T / d + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (n * (n - 1)) - 2 * xy.mean())
