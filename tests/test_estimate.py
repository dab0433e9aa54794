"""The estimate against what is really held: tensors of a training step, saved activations, and a run's own peak."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from erase.activations import saved_bytes
from erase.estimate import _evaluate_s, _memory, _seconds, density_of, estimate, retraining_s, training_bytes
from erase.methods.lookahead import _begin
from erase.methods.retrain import Retrain
from erase.plan import Plan, plan
from erase.recipes import resolve
from erase.saliency import num_salient
from erase.salient import LeanOptimizer, SalientWeights
from pipelines.load import EMOJI_VOCABULARY, EMOJI_WEIGHTS, load
from pipelines.stable_diffusion import StableDiffusion

EMOJI_UNET = EMOJI_WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors"


def plan_of(settings: list[str]) -> Plan:
    known: Any = SimpleNamespace(vocabulary=EMOJI_VOCABULARY)
    return plan(resolve({"concept": "dog"}, settings), known)


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

    If all is taken there, 16 rows have no backward pass here. 0.1 s a row forward, 0.3 s with backward, 120 steps.
    """
    seconds = [_seconds(plan_of([f"method.lookahead_share={share}"]), 0.1, 0.3)["train_s"] for share in (0, 0.5, 1)]
    assert seconds == pytest.approx([120 * 16.0, 120 * 23.2, 120 * 20.0])
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


def test_a_stage_that_does_nothing_costs_nothing() -> None:
    """0.1 s a row forward, 0.3 s with backward: 3 rounds over 48 pictures; no mask; a closed form; one's own pictures."""
    plain, unmasked, closed = (
        _seconds(plan_of(more), 0.1, 0.3) for more in ([], ["saliency.method=none"], ["method.name=uce"])
    )
    assert plain["saliency_s"] == pytest.approx(3 * 48 * 0.3) and unmasked["saliency_s"] == closed["train_s"] == 0
    assert unmasked["train_s"] == plain["train_s"] > 0
    assert density_of(plan_of([]).config) == 0.5 and density_of(plan_of(["saliency.method=none"]).config) == 1
    drawn = plan_of([])
    given = replace(drawn, data=replace(drawn.data, forget_images=(Path("dog.png"),) * 48))
    assert plain["generate_s"] - _seconds(given, 0.1, 0.3)["generate_s"] == pytest.approx(48 * 15 * 2 * 0.1)


def test_retained_pictures_are_drawn_too_and_parts_cost_memory_alone() -> None:
    """144 retained pictures more, without guidance: 15 steps of 0.1 s each. A batch of 40 in 2 or 7 parts: 20 or 6 rows are
    held at a time, and the seconds are the same, since every row is done all the same."""
    plain, twice, parted = (_seconds(plan_of(more), 0.1, 0.3) for more in ([], ["data.num_retain=288"], ["train.accumulate=2"]))
    assert plain["generate_s"] == pytest.approx(48 * 15 * 2 * 0.1 + (144 + 24) * 15 * 0.1)
    assert twice["generate_s"] - plain["generate_s"] == pytest.approx(144 * 15 * 0.1)
    assert parted == plain
    held = [_memory(plan_of([f"train.accumulate={parts}"]), toy(), 1000.0, 0)["activations"] for parts in (1, 2, 7)]
    assert held == [40_000, 20_000, 6_000]


@pytest.mark.parametrize(
    ("settings", "seconds", "share"),
    [
        ([], {"generate_s": 396.0, "saliency_s": 43.2, "train_s": 1920.0, "evaluate_s": 1872.0}, 4 * 1.5),
        (["saliency.method=none"], {"generate_s": 396.0, "saliency_s": 0.0, "train_s": 1920.0, "evaluate_s": 1872.0}, 4 * 2),
        (["method.name=retrain"], {"train_s": 26951.4, "evaluate_s": 1872.0}, 2),
    ],
)
def test_an_estimate_is_the_sum_of_its_stages_and_has_room_for_model_and_patch(
    settings: list[str], seconds: dict[str, float], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.1 s a row forward, 0.3 s with backward. On the disk float32 weights and the patch's share of them once more; or, for
    21,600 s of the UNet and 0.303 / 1.223 of that for the other parts, a new model in float16."""

    class Timed:
        rows = 1

        def __init__(self, family: StableDiffusion, prompt: str) -> None:
            self.weight = family.denoiser.conv_out.bias

        def loss(self) -> torch.Tensor:
            return self.weight.square().sum()

        def seconds(self, *, backward: bool) -> float:
            return 0.3 if backward else 0.1

    monkeypatch.setattr("erase.estimate._Probe", Timed)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    family = load("emoji")
    found = estimate(plan(resolve({"concept": "dog"}, settings), family), family)
    told = {key: value for key, value in found.items() if key.endswith("_s")}
    assert told == pytest.approx(seconds | {"total_s": sum(seconds.values())}, abs=0.06)
    num_weights = sum(values.numel() for values in load_file(EMOJI_UNET).values())
    assert found["denoiser_disk_gb"] == round(share * num_weights / 1e9, 3) > 0.01


def test_a_closed_form_holds_no_gradients() -> None:
    """Of the weights, what they were and what they become; neither gradients nor moments nor a batch's activations."""
    trained, closed = (_memory(plan_of(more), toy(), 1000.0, 0) for more in ([], ["method.name=uce"]))
    gone = ("gradients", "optimizer", "activations")
    assert min(trained[key] for key in gone) > 0 and [closed[key] for key in gone] == [0, 0, 0]
    assert {key: closed[key] for key in ("weights", "originals")} == {key: trained[key] for key in ("weights", "originals")}


def test_pictures_that_nobody_judges_are_not_drawn(tiny_family: StableDiffusion) -> None:
    """The evaluation draws where the judge knows the concept, and not for a model of no vocabulary or prompts by hand."""
    planned = plan(resolve({"concept": "dog"}, []), tiny_family)
    assert _evaluate_s(planned, 0.1) == pytest.approx(2 * (96 + 138) * 20 * 2 * 0.1)
    assert estimate(planned, tiny_family)["evaluate_s"] > 0
    by_hand = ["prompts.forget=[a dog]", "prompts.becomes=[a cat]", "prompts.retain=[a horse]"]
    assert estimate(plan(resolve({"concept": "dog"}, by_hand), tiny_family), tiny_family)["evaluate_s"] == 0
    tiny_family.vocabulary = None
    assert estimate(planned, tiny_family)["evaluate_s"] == 0


def test_retraining_costs_its_own_samples(tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread does a sample in 0.06 s, two processes of one each in 0.03: 144,000 in 4,320 s, as the record's 4,403 s are.

    The text encoder and the autoencoder took 0.303 of the record's 1.223 hours beside it; an autoencoder taken over, none.
    No other stage is done but the evaluation.
    """
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    others = (0.027 + 0.276) / 1.223
    assert retraining_s(Retrain(), 0.06) == pytest.approx(4320 * (1 + others), rel=1e-6)
    assert retraining_s(Retrain(samples=14_400), 0.06) == pytest.approx(432 + 4320 * others, rel=1e-6)
    assert retraining_s(Retrain(processes=1, autoencoder="vae"), 0.06) == pytest.approx(8640 * (1 + 0.027 / 1.223), rel=1e-6)
    assert retraining_s(Retrain(processes=8), 0.06) == retraining_s(Retrain(), 0.06), "there are two cores"
    assert retraining_s(Retrain(), None) == pytest.approx(3600 * (1.223 + 0.303), rel=1e-6)
    found = estimate(plan(resolve({"concept": "dog", "method.name": "retrain"}, []), tiny_family), tiny_family)
    assert {key for key in found if key.endswith("_s")} == {"train_s", "evaluate_s", "total_s"}
    assert found["train_s"] > 0 and found["total_s"] == pytest.approx(found["train_s"] + found["evaluate_s"], abs=0.2)
    num_weights = sum(p.numel() for p in tiny_family.denoiser.parameters())
    assert found["memory_gb"]["optimizer"] == round(2 * 8 * num_weights / 1e9, 3)
