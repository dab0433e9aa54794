"""The theorem of SalientWeights (outside the mask nothing moves, inside everything does) and what follows from it."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from erase.data import TrainingData
from erase.saliency import Mask, density_of
from erase.salient import LeanOptimizer, Positions, SalientWeights
from pipelines.stable_diffusion import StableDiffusion

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1),
}
MODELS = ["contiguous", "channels_last", "bfloat16"]


def toy(kind: str = "contiguous") -> nn.Module:
    """Convolutions and a linear layer whose every weight has a gradient."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.SiLU(), nn.Flatten(), nn.Linear(24, 5))
    if kind == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        assert not model[0].weight.is_contiguous()
    return model.to(getattr(torch, kind)) if "float" in kind else model


def batch(model: nn.Module, num: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    dtype = next(model.parameters()).dtype
    return torch.randn(num, 3, 6, 6, generator=generator).to(dtype), torch.randn(num, 5, generator=generator).to(dtype)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return (model(inputs) - targets).square().sum() / 4


def random_mask(model: nn.Module, density: float, seed: int = 9) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters()}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def step(model: nn.Module, salient: SalientWeights, optimizer: torch.optim.Optimizer) -> None:
    loss_of(model, *batch(model)).backward()
    optimizer.step()
    optimizer.zero_grad()
    salient.write()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_outside_the_mask_bit_identical_inside_all_changed(optimizer: Optimizer, kind: str) -> None:
    """Under momentum and weight decay, that move a weight whose gradient was only set to zero.

    A bfloat16 weight may round back to what it was: there the float32 masters all change, and the model is their rounding.
    """
    model = toy(kind)
    mask = random_mask(model, 0.3)
    mask["0.bias"] = torch.zeros(8, dtype=torch.bool)  # a tensor of which nothing is chosen
    before = snapshot(model)
    salient = SalientWeights(model, mask)
    rule = optimizer(salient.parameters())
    for _ in range(3):
        step(model, salient, rule)
    for name, after in snapshot(model).items():
        changed = before[name] != after
        assert not changed[~mask[name]].any(), f"{name}: a weight outside the mask moved"
        if mask[name].any():
            values = salient.values[name]
            assert torch.equal(after[mask[name]], values.to(after.dtype))
            moved = values != salient.originals[name] if kind == "bfloat16" else changed[mask[name]]
            assert moved.all(), f"{name}: a weight inside the mask did not"


def test_masking_the_gradient_alone_would_leak() -> None:
    """Why the theorem needs SalientWeights: AdamW with the gradient times the mask moves weights outside it."""
    model = toy()
    mask = random_mask(model, 0.3)
    before = snapshot(model)
    rule = OPTIMIZERS["AdamW"](list(model.parameters()))
    loss_of(model, *batch(model)).backward()
    for name, parameter in model.named_parameters():
        parameter.grad *= mask[name]
    rule.step()
    assert any((before[name] != after)[~mask[name]].any() for name, after in snapshot(model).items())


def test_a_diffusion_model(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    """The theorem on a UNet, one tensor at a time: every tensor is trained, none of its neighbours is."""
    unet = tiny_family.denoiser
    mask = random_mask(unet, 0.4)
    before = snapshot(unet)
    salient = SalientWeights(unet, mask)
    rule = torch.optim.Adam(salient.parameters(), 1e-3)
    noise = torch.randn(tiny_data.forget_latents.shape, generator=torch.Generator().manual_seed(0))
    conditioning = tiny_data.conditioning(tiny_data.forget_prompt)
    for _ in range(2):
        prediction = tiny_family.predict(tiny_data.forget_latents, torch.tensor([100, 300, 500, 900]), conditioning)
        (prediction - noise).square().mean().backward()
        rule.step()
        rule.zero_grad()
        salient.write()
    for name, after in snapshot(unet).items():
        changed = before[name] != after
        assert not changed[~mask[name]].any(), f"{name}: a weight outside the mask moved"
        assert changed[mask[name]].any() or not mask[name].any(), f"{name}: nothing inside the mask moved"


@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_density_one_is_plain_fine_tuning(optimizer: Optimizer, kind: str) -> None:
    model, plain = toy(kind), toy(kind)
    salient = SalientWeights(model, {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})
    rule, plain_rule = optimizer(salient.parameters()), optimizer(list(plain.parameters()))
    for _ in range(3):
        step(model, salient, rule)
        loss_of(plain, *batch(plain)).backward()
        plain_rule.step()
        plain_rule.zero_grad()
    for name, values in snapshot(plain).items():
        torch.testing.assert_close(model.get_parameter(name).detach(), values, rtol=1e-6, atol=1e-7)


def test_a_sparse_mask_takes_the_same_sgd_step_as_plain_fine_tuning_inside_it() -> None:
    """One step of SGD without momentum: inside the mask theta - lr * gradient, by hand from autograd."""
    model = toy()
    mask = random_mask(model, 0.3)
    before = snapshot(model)
    gradients = torch.autograd.grad(loss_of(model, *batch(model)), list(model.parameters()))
    salient = SalientWeights(model, mask)
    step(model, salient, torch.optim.SGD(salient.parameters(), 0.5))
    for (name, start), gradient in zip(before.items(), gradients, strict=True):
        torch.testing.assert_close(model.get_parameter(name).detach(), start - 0.5 * gradient * mask[name])


def test_four_batches_of_one_accumulate_to_one_batch_of_four() -> None:
    results = []
    for size in (1, 4):
        model = toy()
        salient = SalientWeights(model, random_mask(model, 0.3))
        rule = torch.optim.Adam(salient.parameters(), 0.01)
        for _ in range(2):
            inputs, targets = batch(model)
            for rows in torch.arange(4).split(size):
                loss_of(model, inputs[rows], targets[rows]).backward()
            rule.step()
            rule.zero_grad()
            salient.write()
        results.append(snapshot(model))
    for name, values in results[0].items():
        torch.testing.assert_close(values, results[1][name], rtol=1e-4, atol=1e-5)


def test_dense_gradients_are_freed() -> None:
    model = toy()
    salient = SalientWeights(model, random_mask(model, 0.3))
    loss_of(model, *batch(model)).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None and p.grad.shape == p.shape for p in salient.parameters())


def test_optimizer_memory_is_proportional_to_the_density() -> None:
    """Bytes of Adam's state at density 0.1 are a fifth of those at 0.5."""

    def state_bytes(density: float) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(100, 200), nn.SiLU(), nn.Linear(200, 5))
        mask = random_mask(model, density)
        assert density_of(mask) == pytest.approx(density, rel=0.02)
        salient = SalientWeights(model, mask)
        rule = torch.optim.Adam(salient.parameters())
        model(torch.randn(3, 100)).square().sum().backward()
        rule.step()
        return sum(t.numel() * t.element_size() for state in rule.state.values() for t in state.values())

    assert state_bytes(0.1) <= 0.21 * state_bytes(0.5)


def test_masters_are_float32_under_a_bfloat16_model() -> None:
    """Ten steps of 1/1000 of a weight's size: each alone rounds to nothing in bfloat16, together they arrive."""
    model = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    salient = SalientWeights(model, {"weight": torch.tensor([[True, True, False, False]])})
    rule = torch.optim.SGD(salient.parameters(), 1e-3)
    for _ in range(10):
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        rule.step()
        rule.zero_grad()
        salient.write()
    assert salient.values["weight"].dtype == torch.float32
    assert salient.values["weight"].tolist() == pytest.approx([0.99, 0.99])
    assert model.weight.tolist() == [[torch.tensor(0.99).to(torch.bfloat16).item()] * 2 + [1.0, 1.0]]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_original_shows_the_original_inside_and_the_trained_after(ends: str, kind: str) -> None:
    model = toy(kind)
    before = snapshot(model)
    salient = SalientWeights(model, random_mask(model, 0.3))
    rule = torch.optim.Adam(salient.parameters(), 0.1)
    for _ in range(2):
        step(model, salient, rule)
    trained = snapshot(model)
    assert any(not torch.equal(trained[name], before[name]) for name in before)

    def look() -> None:
        with salient.original():
            assert torch.is_grad_enabled(), "the block's own gradient mode is the caller's"
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
            if ends != "well":
                raise KeyboardInterrupt

    if ends == "well":
        look()
    else:
        with pytest.raises(KeyboardInterrupt):
            look()
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_displaced_weights_are_moved_inside_and_bit_for_bit_back_after_an_error(dtype: torch.dtype, kind: str) -> None:
    """By less than half of what bfloat16 tells apart, twice: the displacement is added to the float32 master."""
    model = toy(kind).to(dtype)
    salient = SalientWeights(model, random_mask(model, 0.3), lean=True)
    for name, values in salient.originals.items():
        salient.set_master(name, torch.full_like(values, 1 + 3 * 2**-10, dtype=torch.float32))
    before = snapshot(model)
    moved = {name: torch.full_like(values, 2**-9, dtype=torch.float32) for name, values in salient.originals.items()}

    def look() -> None:
        with salient.displaced(moved):
            assert torch.is_grad_enabled()
            for name, p in model.named_parameters():
                inside = torch.zeros(p.numel(), dtype=torch.bool)
                if name in moved:
                    inside[salient.index(name)] = True
                expected = torch.where(inside, torch.tensor(1 + 5 * 2**-10).to(dtype), before[name].reshape(-1))
                assert torch.equal(p.detach().reshape(-1), expected)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(salient.master(name), torch.full_like(values, 1 + 3 * 2**-10)) for name, values in moved.items())


def test_index_points_at_the_values() -> None:
    model = toy("channels_last")
    mask = random_mask(model, 0.3)
    salient = SalientWeights(model, mask)
    for name, value in salient.values.items():
        assert torch.equal(model.get_parameter(name).detach()[mask[name]], value)
        assert torch.equal(model.get_parameter(name).detach().reshape(-1)[salient.index(name)], value)


def test_close_gives_everything_back() -> None:
    model = toy()
    model[2].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    mask = random_mask(model, 0.3)
    mask["0.weight"] = torch.zeros_like(mask["0.weight"])
    mask["2.bias"][0] = True
    salient = SalientWeights(model, mask)
    assert not model[0].weight.requires_grad and model[2].bias.requires_grad
    step(model, salient, torch.optim.Adam(salient.parameters(), 0.1))
    trained = snapshot(model)
    salient.close()
    assert [p.requires_grad for p in model.parameters()] == flags
    loss_of(model, *batch(model)).backward()
    assert model[5].weight.grad is not None, "a hook still takes the gradients away"
    assert all(p.grad is None for p in salient.parameters())
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())


def test_a_mask_of_some_tensors_freezes_the_others() -> None:
    model = toy()
    before = copy.deepcopy(model.state_dict())
    salient = SalientWeights(model, {"5.weight": torch.ones(5, 24, dtype=torch.bool)})
    step(model, salient, torch.optim.AdamW(salient.parameters(), 0.1))
    assert [n for n, values in model.state_dict().items() if not torch.equal(values, before[n])] == ["5.weight"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"6.weight": torch.ones(2, dtype=torch.bool)}, "the mask's 6.weight is (2,), the model has no such weight"),
        ({"5.bias": torch.ones(4, dtype=torch.bool)}, "the mask's 5.bias is (4,), the model has (5,)"),
        ({"5.weight": torch.ones(24, 5, dtype=torch.bool)}, "the mask's 5.weight is (24, 5), the model has (5, 24)"),
        ({"5.bias": torch.zeros(5, dtype=torch.bool)}, "the mask chooses no weight at all"),
        ({}, "the mask chooses no weight at all"),
    ],
)
def test_a_mask_for_another_model_or_an_empty_one_is_refused(mask: Mask, message: str) -> None:
    model = toy()
    with pytest.raises(ValueError, match=re.escape(message)):
        SalientWeights(model, mask)
    assert all(p.requires_grad for p in model.parameters())


def lean_run(kind: str, mask: Mask, lean: bool, steps: int = 4) -> tuple[nn.Module, dict[str, Tensor]]:
    model = toy(kind)
    salient = SalientWeights(model, mask, lean=lean)
    if lean:
        optimizer = LeanOptimizer(salient, lambda values: torch.optim.Adam(values, 0.01))
    else:
        optimizer = torch.optim.Adam(salient.parameters(), 0.01)
    for _ in range(steps):
        loss_of(model, *batch(model)).backward()
        if lean:
            optimizer.step(0.01)
        else:
            optimizer.step()
            optimizer.zero_grad()
            salient.write()
    return model, {name: salient.master(name).clone() for name in salient.values}


@pytest.mark.parametrize("kind", [*MODELS, "float16"])
def test_lean_is_the_same_training_bit_for_bit(kind: str) -> None:
    """No float32 copy between the steps, and the same weights and masters after them, in every dtype and memory format."""
    mask = random_mask(toy(), 0.3)
    lean, masters = lean_run(kind, mask, lean=True)
    plain, expected = lean_run(kind, mask, lean=False)
    assert all(torch.equal(p, plain.get_parameter(name)) for name, p in lean.named_parameters())
    for name, values in expected.items():  # a tie rounded down leaves a low half of 2^15, kept as 2^15 - 1
        torch.testing.assert_close(masters[name], values, rtol=2**-22, atol=0)


def test_lean_holds_no_float32_copy_between_steps() -> None:
    model = toy()
    salient = SalientWeights(model, random_mask(model, 0.3), lean=True)
    optimizer = LeanOptimizer(salient, lambda values: torch.optim.Adam(values, 0.01))
    for _ in range(2):
        loss_of(model, *batch(model)).backward()
        optimizer.step(0.01)
        assert not salient.gradients and not salient._masters
        assert all(value.numel() == 0 and value.grad is None for value in salient.values.values())


def test_positions_from_bits_are_the_kept_ones() -> None:
    mask = random_mask(toy(), 0.3)
    kept, packed = Positions(mask, True), Positions(mask, False)
    for name, chosen in mask.items():
        assert torch.equal(kept.of(name), chosen.reshape(-1).nonzero()[:, 0])
        assert torch.equal(packed.of(name), kept.of(name))


@pytest.mark.parametrize("kind", MODELS)
def test_restore_gives_the_originals_back(kind: str) -> None:
    model = toy(kind)
    before = snapshot(model)
    salient = SalientWeights(model, random_mask(model, 0.3), lean=True)
    optimizer = LeanOptimizer(salient, lambda values: torch.optim.Adam(values, 0.1))
    loss_of(model, *batch(model)).backward()
    optimizer.step(0.1)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    salient.restore()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
