"""The estimate against what is really held: tensors of a training step, saved activations, and a run's own peak."""

import copy

import pytest
import torch
from torch import nn

from erase.estimate import _seconds, saved_bytes, training_bytes
from erase.methods.lookahead import _begin
from erase.plan import Plan, plan
from erase.recipes import resolve
from erase.saliency import num_salient
from erase.salient import LeanOptimizer, SalientWeights
from pipelines.load import load


def plan_of(settings: list[str]) -> Plan:
    return plan(resolve({"concept": "dog"}, settings), load("emoji"))


def toy(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 300), nn.SiLU(), nn.Linear(300, 50)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.5, 0.1])
def test_training_bytes_are_those_of_the_tensors(dtype: torch.dtype, density: float) -> None:
    """Weights, originals, what completes the masters, gradients, Adam's two moments and positions, counted tensor by tensor."""
    model = toy(dtype)
    generator = torch.Generator().manual_seed(1)
    mask = {name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters()}
    salient = SalientWeights(model, mask, lean=True)
    optimizer = LeanOptimizer(salient, torch.optim.Adam)
    for _ in range(2):
        model(torch.randn(3, 200, dtype=dtype)).float().square().sum().backward()
        gradients = sum(g.nbytes for g in salient.gradients.values())
        optimizer.gradient_norm()
        optimizer.step(1e-3)
    held = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "originals": sum(values.nbytes for values in salient.originals.values()),
        "masters": sum(values.nbytes for values in salient._masters.values()),
        "gradients": gradients,
        "optimizer": sum(optimizer.state[n][v][m].nbytes for n, v in salient.values.items() for m in ("exp_avg", "exp_avg_sq")),
        "positions": sum(values.nbytes for values in salient._positions._kept.values()),
    }
    expected = training_bytes(model, density)
    salient_share = num_salient(mask) / int(density * sum(p.numel() for p in model.parameters()))
    assert salient_share == pytest.approx(1, abs=0.02)
    expected["masters"] -= 16 * int(density * sum(p.numel() for p in model.parameters()))  # while a group steps
    for key, size in held.items():
        assert size == pytest.approx(expected[key], rel=0.02), key


def test_a_relearner_costs_its_rows_and_its_state() -> None:
    """A step of 16 and 24 rows is 40 rows with their teacher's; it adds 8 rows of its own and 16 where it leads, without one.

    If all is taken there, 16 rows have no backward pass here. 0.1 s a row forward, 0.3 s with backward, 60 steps.
    """
    seconds = [_seconds(plan_of([f"method.lookahead_share={share}"]), 0.1, 0.3)["train_s"] for share in (0, 0.5, 1)]
    assert seconds == pytest.approx([60 * 16.0, 60 * 23.2, 60 * 20.0])
    model = toy()
    every = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    salient = SalientWeights(model, every, lean=True)
    memory: dict[str, torch.Tensor] = {}
    _begin(memory, salient)
    state = sum(values.nbytes for values in memory.values()) - memory["taken"].nbytes
    held = 3 * sum(values.nbytes for values in salient.originals.values())  # the step's gradients, its own, the weights moved
    assert training_bytes(model, 1.0, relearner=True)["relearner"] == state + held
    assert training_bytes(model, 1.0)["relearner"] == 0


def test_saved_bytes_by_hand() -> None:
    """Of Linear(8, 16), SiLU, Linear(16, 4) with a batch of 10: the input (320 bytes), SiLU's input and output (640 each)."""
    model = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))
    inputs = torch.randn(10, 8)
    assert saved_bytes(lambda: model(inputs).sum().backward(), model) == 320 + 640 + 640


def test_saved_bytes_sees_what_checkpointing_recomputes() -> None:
    """Eight layers: without checkpoints all are held, with them one at a time beside each layer's input."""
    layers = [nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU()) for _ in range(8)]
    model = nn.Sequential(*copy.deepcopy(layers))
    inputs = torch.randn(100, 32, requires_grad=True)

    def checkpointed() -> None:
        hidden = inputs
        for layer in model:
            hidden = torch.utils.checkpoint.checkpoint(layer, hidden, use_reentrant=False)
        hidden.sum().backward()

    plain = saved_bytes(lambda: model(inputs).sum().backward(), model)
    assert 0.2 * plain < saved_bytes(checkpointed, model) < 0.6 * plain
