"""Fréchet distance and KID against closed forms and independent implementations."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from eval.quality import Moments, frechet, frechet_interval, kid, moments, squared_mmd


def gaussian(mean, covariance) -> Moments:
    return Moments(10, np.asarray(mean, float), np.asarray(covariance, float))


def test_the_closed_form_in_two_dimensions() -> None:
    """Mean gap (1, 0) gives 1; I against 4I gives 2 (1 + 4 - 2 * 2) = 2: in all 3."""
    a, b = gaussian([0, 0], np.eye(2)), gaussian([1, 0], 4 * np.eye(2))
    assert frechet(a, b) == pytest.approx(3.0, abs=1e-12)
    assert frechet(b, a) == pytest.approx(3.0, abs=1e-12)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-12)


def test_diagonal_gaussians() -> None:
    """sum (sqrt a - sqrt b)^2 over the diagonal, plus the squared mean gap."""
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.0])
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum() + 2.0**2
    assert frechet(gaussian([0, 0, 2], np.diag(a)), gaussian([0, 0, 0], np.diag(b))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_against_scipys_matrix_root(seed) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(60, 12)), rng.normal(size=(80, 12)) @ rng.normal(size=(12, 12)) + 0.3
    a, b = moments([x]), moments([y])
    root = sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)


def test_fewer_pictures_than_features_is_still_real_and_symmetric() -> None:
    rng = np.random.default_rng(0)
    a, b = moments([rng.normal(size=(20, 64))]), moments([rng.normal(size=(20, 64)) + 1])
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sizes", [[100], [1, 99], [33, 33, 34], [1] * 100])
def test_streamed_moments_are_numpys_whatever_the_batches(sizes) -> None:
    """Large means against small spreads: one pass over float32 sums would lose them."""
    data = np.random.default_rng(1).normal(loc=1e4, scale=1e-2, size=(100, 5))
    parts = np.split(data, np.cumsum(sizes)[:-1])
    found = moments(iter(parts))
    assert found.n == 100
    assert np.allclose(found.mean, data.mean(0), rtol=0, atol=1e-10)
    assert np.allclose(found.covariance, np.cov(data, rowvar=False), rtol=1e-6)


def test_statistics_are_kept_as_they_are(tmp_path) -> None:
    found = moments([np.random.default_rng(2).normal(size=(10, 3))])
    found.save(tmp_path / "s.npz")
    again = Moments.load(tmp_path / "s.npz")
    assert again.n == found.n and np.array_equal(again.covariance, found.covariance) and np.array_equal(again.mean, found.mean)
    (tmp_path / "s.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no picture statistics"):
        Moments.load(tmp_path / "s.npz")


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_pictures(n) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        moments([np.zeros((n, 3))] if n else [])


def test_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 features"):
        frechet(gaussian([0, 0], np.eye(2)), gaussian([0, 0, 0], np.eye(3)))


def test_mmd_by_scikit_learns_kernel() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 8)), rng.normal(size=(30, 8)) + 0.5
    xx, yy, xy = (polynomial_kernel(p, q, degree=3, gamma=1 / 8, coef0=1) for p, q in ((x, x), (y, y), (x, y)))
    off = ~np.eye(30, dtype=bool)
    assert squared_mmd(x, y) == pytest.approx(xx[off].mean() + yy[off].mean() - 2 * xy.mean(), rel=1e-12)


def test_mmd_by_hand() -> None:
    """x = (0, 1), y = (1, 2) in one dimension: k = (xy + 1)^3. xx: 1; yy: 27; xy: 1, 1, 8, 27: mean 9.25."""
    assert squared_mmd(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])) == pytest.approx(1 + 27 - 2 * 9.25)


def test_kid_is_unbiased_and_sees_a_difference() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 16))
    same, _ = kid(x, rng.normal(size=(400, 16)), subsets=20, subset_size=200)
    other, _ = kid(x, rng.normal(size=(400, 16)) + 1, subsets=20, subset_size=200)
    assert abs(same) < 0.05 < other
    assert kid(x, x + 1, subsets=3)[0] == kid(x, x + 1, subsets=3)[0]


def test_kid_and_fid_are_torch_fidelitys() -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity comes with the extra `eval`")
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_mmd

    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(120, 24)), rng.normal(size=(120, 24)) * 1.3 + 0.2
    statistics = [fid_features_to_statistics(torch.from_numpy(part)) for part in (x, y)]
    expected = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet(moments([x]), moments([y])) == pytest.approx(expected, rel=1e-9)
    assert squared_mmd(x, y) == pytest.approx(kernel_mmd(x, y), rel=1e-9)


def test_the_interval_of_a_distance_covers_the_truth_about_as_often_as_it_says() -> None:
    """Pairs of 2-d Gaussians a mean gap of (1, 0) apart, I and 4I: the true distance is 3; and the interval shrinks with n."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = frechet_interval(rng.normal([1, 0], 1, (1000, 2)), 2 * rng.normal(size=(1000, 2)))
        hits += low <= 3.0 <= high
    assert 0.92 <= hits / 200 <= 0.99
    few, many = (frechet_interval(rng.normal([1, 0], 1, (n, 2)), 2 * rng.normal(size=(n, 2))) for n in (200, 12800))
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(8, rel=0.6)
    with pytest.raises(ValueError, match="equally many pictures, at least 40"):
        frechet_interval(np.zeros((50, 2)), np.zeros((49, 2)))
