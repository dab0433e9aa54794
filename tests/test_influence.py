"""Influence unlearning against dense linear algebra, and on a convex loss against retraining."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from erase.classification.methods import unlearn
from erase.classification.methods.influence import FlatWeights, Influence, conjugate_gradients, hessian_product
from erase.classification.split import Batches
from erase.salient import SalientWeights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def rows(num: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, 4, generator=generator, dtype=torch.float64), torch.arange(num) % 3


def dense_hessian(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    names = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in names.values()]

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = {name: part.view(p.shape) for (name, p), part in zip(names.items(), vector.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(model, parts, (x,)), y)

    return hessian(loss)(torch.cat([p.reshape(-1) for p in names.values()]))


def test_the_hessian_product_is_the_dense_hessians_whatever_the_batches() -> None:
    model, (x, y) = network(), rows()
    vector = torch.randn(43, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = dense_hessian(model, x, y) @ vector
    for size in (30, 7):
        found = hessian_product(model, FlatWeights(model, None), Batches(x, y, size), vector)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_on_a_mask_it_is_the_hessians_block() -> None:
    model, (x, y) = network(), rows()
    generator = torch.Generator().manual_seed(3)
    mask = {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in model.named_parameters()}
    chosen = torch.cat([values.reshape(-1) for values in mask.values()]).nonzero()[:, 0]
    block = dense_hessian(model, x, y)[chosen][:, chosen]
    salient = SalientWeights(model, mask)
    vector = torch.randn(len(chosen), generator=generator, dtype=torch.float64)
    found = hessian_product(model, FlatWeights(model, salient), Batches(x, y, 7), vector)
    torch.testing.assert_close(found, block @ vector, atol=1e-12, rtol=0)


def test_conjugate_gradients_solve_and_stop_at_negative_curvature(caplog: pytest.LogCaptureFixture) -> None:
    root = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 8)))
    matrix, vector = root @ root.T + torch.eye(8), torch.arange(8.0, dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, vector, 50, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, vector))
    assert torch.equal(conjugate_gradients(lambda v: -v, vector, 50), vector)
    assert "negative curvature after 0 iterations" in caplog.text


def test_the_vector_by_hand() -> None:
    """Where damping drowns the Hessian the step is alpha / damping times v = (g_f - n_f / n_r g_r) / (n_f + n_r).

    All weights are zero, so each row's gradient is half the row: down for its own class, up for the other. By hand for class 0:
    g_f = -((2, 0) + (4, 2)) / 2 = (-3, -1), g_r = ((2, 2) - (0, 2) + (4, 0)) / 2 = (3, 0), v = ((-3, -1) - 2/3 (3, 0)) / 5.
    """
    x = torch.tensor([[2.0, 0.0], [4.0, 2.0], [2.0, 2.0], [0.0, 2.0], [4.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 0, 1])
    model = nn.Linear(2, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    forget, retain = Batches(x[:2], y[:2], 1), Batches(x[2:], y[2:], 2)
    unlearn(model, Influence(alpha=3.0, damping=1e7), forget=forget, retain=retain)
    expected = torch.tensor([[-1.0, -0.2], [1.0, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(model.weight.detach() * 1e7 / 3, expected, rtol=1e-5, atol=0)


def test_on_a_convex_loss_the_step_leads_to_the_retrained_weights() -> None:
    """Multinomial regression without 3 of 300 rows: the step is that of retraining up to 2 %, which is of the second order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + 0.7 * torch.randn(300, generator=generator, dtype=torch.float64) > 0).long()

    def minimum(inputs: torch.Tensor, labels: torch.Tensor) -> nn.Linear:
        model = nn.Linear(5, 2).double()
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        return model

    def flat(model: nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    model, retrained = minimum(x, y), minimum(x[3:], y[3:])
    before = flat(model)
    forget, retain = Batches(x[:3], y[:3], 2), Batches(x[3:], y[3:], 64)
    unlearn(model, Influence(damping=1e-6, num_iterations=50), forget=forget, retain=retain)
    step, wanted = flat(model) - before, flat(retrained) - before
    assert float((step - wanted).norm()) < 0.02 * float(wanted.norm())  # staying put would be 1
