"""Features of an extractor under a removable head; the private one where opacus is installed."""

import numpy as np
import pytest
import torch
from torch import nn

from erase.classification.certified import RemovableLinear
from erase.classification.guarantee import LinearConfig, composed
from erase.classification.private import PrivateConfig, extract, train_private
from erase.classification.rows import load_rows, rows_of


def test_features_are_the_extractors_cut_to_norm_1_row_by_row() -> None:
    extractor = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        extractor.weight.copy_(2 * torch.eye(2))
    rows = rows_of([[3.0, 4.0], [0.1, 0.2], [0.0, 0.0]], [0, 1, 1], [7, 8, 9])
    found = extract(extractor, rows, batch_size=2)
    np.testing.assert_allclose(found.features, [[0.6, 0.8], [0.2, 0.4], [0, 0]], atol=1e-6)
    assert found.ids.tolist() == [7, 8, 9]
    alone = extract(extractor, rows.take(np.array([1])))
    np.testing.assert_array_equal(alone.features[0], found.features[1])


def test_a_private_extractor_under_a_certified_head() -> None:
    pytest.importorskip("opacus", reason="needs the extra `private`")
    rows = load_rows("digits:3,8")
    torch.manual_seed(0)
    extractor = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
    before = [parameter.clone() for parameter in extractor.parameters()]
    config = PrivateConfig(epsilon=2, epochs=5)
    spent = train_private(extractor, 32, rows, config, seed=0)
    assert 1.8 < spent <= 2.0 + 1e-2
    assert all(not torch.equal(one, other) for one, other in zip(before, extractor.parameters(), strict=True))
    features = extract(extractor, rows)
    model = RemovableLinear(LinearConfig(), np.random.default_rng(0)).fit(features)
    assert (model.predict(features.features) == rows.labels).mean() > 0.9
    removal = model.remove([5])
    assert not removal.retrained and removal.residual <= removal.spent
    epsilon, delta = composed((spent, config.delta), (model.config.epsilon, model.config.delta))
    assert (epsilon, delta) == (spent + 1, pytest.approx(1.1e-4))


def test_the_seed_decides_everything_whatever_was_drawn_before() -> None:
    pytest.importorskip("opacus", reason="needs the extra `private`")
    rows, trained = load_rows("digits:3,8"), []
    for drawn, seed in ((0, 5), (1, 5), (0, 6)):
        extractor = nn.Linear(64, 4)
        with torch.no_grad():
            extractor.weight.fill_(0.1), extractor.bias.zero_()
        torch.manual_seed(drawn)
        train_private(extractor, 4, rows, PrivateConfig(epochs=1), seed=seed)
        trained.append(extractor.weight)
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])


def test_modules_that_mix_rows_are_refused() -> None:
    pytest.importorskip("opacus", reason="needs the extra `private`")
    rows = load_rows("digits:3,8")
    with pytest.raises(ValueError, match="cannot be trained privately"):
        train_private(nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8)), 8, rows, PrivateConfig())
    with pytest.raises(ValueError, match="more than the 357 rows"):
        train_private(nn.Linear(64, 8), 8, rows, PrivateConfig(batch_size=1000))


def test_without_opacus_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opacus", None)
    with pytest.raises(ValueError, match=r"pip install 'erase-concepts\[private\]'"):
        train_private(nn.Linear(64, 8), 8, load_rows("digits:3,8"), PrivateConfig())
