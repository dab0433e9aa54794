"""The mask against a plain sort, the saliency against torch.autograd, and the mask's file."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import erase.saliency
from erase.data import TrainingData
from erase.patch import patch_of, save_patch
from erase.run import forget_losses
from erase.saliency import Mask, Saliency, density_by_block, density_of, load_mask, num_salient, saliency, save_mask, top_mask
from erase.salient import SalientWeights
from pipelines.stable_diffusion import StableDiffusion


def sorted_mask(scores: Saliency, density: float) -> Mask:
    """The reference's double argsort, stable, with zeros left out: the rank of every weight, then a cut."""
    flat = np.concatenate([values.numpy().reshape(-1) for values in scores.values()])
    rank = np.argsort(np.argsort(-flat, kind="stable"), kind="stable")
    chosen = torch.from_numpy((rank < int(density * len(flat))) & (flat > 0))
    parts = chosen.split([values.numel() for values in scores.values()])
    return {name: part.view(values.shape) for part, (name, values) in zip(parts, scores.items(), strict=True)}


def assert_same(mask: Mask, expected: Mask) -> None:
    assert list(mask) == list(expected)
    for name, values in mask.items():
        assert values.dtype == torch.bool and torch.equal(values, expected[name]), name


SCORES: dict[str, list[tuple[int, ...]]] = {
    "one vector": [(101,)],
    "a scalar among others": [(), (3, 5), (7,)],
    "convolution": [(8, 4, 3, 3), (8,), (2, 8)],
    "an empty tensor": [(0, 4), (11,)],
}


@pytest.mark.parametrize("density", [0.01, 0.1, 0.29, 0.5, 2 / 3, 0.999, 1.0])
@pytest.mark.parametrize("shapes", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("kind", ["distinct", "tied", "half zero", "tiny"])
def test_the_mask_is_that_of_a_full_sort(shapes: list[tuple[int, ...]], density: float, kind: str) -> None:
    generator = torch.Generator().manual_seed(len(shapes))
    scores = {f"t{i}": torch.rand(shape, generator=generator) for i, shape in enumerate(shapes)}
    if kind == "tied":
        scores = {name: (values * 4).floor() / 4 + 0.25 for name, values in scores.items()}
    if kind == "half zero":
        scores = {name: values * (values > 0.5) for name, values in scores.items()}
    if kind == "tiny":  # denormal floats
        scores = {name: values * 1e-40 for name, values in scores.items()}
    if int(density * sum(v.numel() for v in scores.values())) == 0:
        with pytest.raises(ValueError, match="less than one weight"):
            top_mask(scores, density)
        return
    assert_same(top_mask(scores, density), sorted_mask(scores, density))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, width=32, allow_infinity=False), max_size=12), min_size=1, max_size=4),
    st.floats(0, 1, exclude_min=True),
)
def test_the_mask_is_that_of_a_full_sort_for_any_floats(rows: list[list[float]], density: float) -> None:
    scores = {str(i): torch.tensor(row) for i, row in enumerate(rows)}
    num_weights = sum(len(row) for row in rows)
    if int(density * num_weights) == 0 or not any(value > 0 for row in rows for value in row):
        with pytest.raises(ValueError, match=r"less than one weight|every gradient is zero"):
            top_mask(scores, density)
    else:
        assert_same(top_mask(scores, density), sorted_mask(scores, density))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.floats(0.0025, 1))
def test_exactly_int_density_times_n_weights_are_chosen(num: int, density: float) -> None:
    scores = {"a": torch.linspace(0.5, 1, num), "b": torch.full((num,), 0.75)}
    if int(density * 2 * num):
        assert num_salient(top_mask(scores, density)) == int(density * 2 * num)


def test_by_hand() -> None:
    """|g| = 3 1 .5 4 2 0, half of six is three: 3, 4 and 2."""
    gradient = torch.tensor([3, -1, 0.5, -4, 2, 0])
    mask = top_mask({"w": gradient.abs()}, 0.5)
    assert mask["w"].int().tolist() == [1, 0, 0, 1, 1, 0]
    assert density_of(mask) == 0.5


def test_ties_go_to_the_earlier_position_across_tensors() -> None:
    scores = {"b": torch.tensor([1.0, 2.0, 1.0]), "a": torch.tensor([[1.0, 1.0], [3.0, 1.0]])}
    mask = top_mask(scores, 5 / 7)
    assert mask["b"].int().tolist() == [1, 1, 1]
    assert mask["a"].int().tolist() == [[1, 0], [1, 0]]


def test_zero_is_never_chosen_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    scores = {"w": torch.tensor([0.0, 1.0, -0.0, 2.0])}
    with caplog.at_level(logging.WARNING):
        mask = top_mask(scores, 1.0)
    assert mask["w"].int().tolist() == [0, 1, 0, 1]
    assert "2 of 4" in caplog.text


def test_chunks_do_not_change_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(5000, generator=torch.Generator().manual_seed(1)).mul(50).floor()
    scores = {"a": values[:4001].view(4001, 1), "b": values[4001:]}
    whole = top_mask(scores, 0.37)
    monkeypatch.setattr(erase.saliency, "_CHUNK", 7)
    assert_same(top_mask(scores, 0.37), whole)
    assert_same(whole, sorted_mask(scores, 0.37))


def test_more_weights_than_a_chunk() -> None:
    """The real chunk size: 4.2 M weights, the threshold by torch's own partition."""
    values = torch.rand(erase.saliency._CHUNK + 5, generator=torch.Generator().manual_seed(2))
    mask = top_mask({"w": values}, 0.1)["w"]
    wanted = int(0.1 * len(values))
    threshold = values.kthvalue(len(values) - wanted + 1).values
    assert int(mask.sum()) == wanted
    assert (values[mask] >= threshold).all() and (values[~mask] <= threshold).all()


def test_the_mask_does_not_depend_on_the_memory_format() -> None:
    values = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(3)).mul(9).floor()  # with ties
    last = values.contiguous(memory_format=torch.channels_last)
    assert_same(top_mask({"w": last}, 0.4), top_mask({"w": values}, 0.4))


@pytest.mark.parametrize("density", [0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"density is .*above 0 and at most 1"):
        top_mask({"w": torch.ones(4)}, density)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_scores_that_are_negative_or_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"layer\.weight"):
        top_mask({"layer.weight": torch.tensor([1.0, value])}, 0.5)


def test_all_zero_scores_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="every gradient is zero"):
        top_mask({"w": torch.zeros(4)}, 0.5)


def toy() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional classifier, some of it frozen, with inputs and labels."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Flatten(), nn.Linear(6 * 16, 4))
    model[0].bias.requires_grad_(False)
    return model, torch.randn(10, 3, 6, 6), torch.arange(10) % 4


def sum_losses(model: nn.Module, inputs: Tensor, labels: Tensor, size: int, sign: float = 1.0) -> Iterator[Tensor]:
    for rows in torch.arange(len(inputs)).split(size):
        yield sign * nn.functional.cross_entropy(model(inputs[rows]), labels[rows], reduction="sum")


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_saliency_is_the_absolute_gradient_of_the_whole_loss(size: int) -> None:
    """Of any batch size, for the frozen bias too; and not the sum of the batches' absolute gradients."""
    model, inputs, labels = toy()
    found = saliency(model, sum_losses(model, inputs, labels, size))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert list(found) == [name for name, _ in model.named_parameters()]
    for values, gradient in zip(found.values(), gradients, strict=True):
        torch.testing.assert_close(values, gradient.abs(), rtol=1e-4, atol=1e-6)


def test_the_sign_of_the_loss_does_not_matter() -> None:
    model, inputs, labels = toy()
    up = saliency(model, sum_losses(model, inputs, labels, 5))
    down = saliency(model, sum_losses(model, inputs, labels, 5, sign=-1.0))
    assert all(torch.equal(up[name], down[name]) for name in up)
    assert all(values.any() for values in up.values())


@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_the_model_is_as_before(ends: str) -> None:
    model, inputs, labels = toy()
    model[3].bias.grad = torch.full((4,), 7.0)
    before = copy.deepcopy(model.state_dict())
    requires_grad = [p.requires_grad for p in model.parameters()]
    if ends == "well":
        saliency(model, sum_losses(model, inputs, labels, 4))
    else:
        with pytest.raises(ValueError, match="batch 1"):
            saliency(model, [next(sum_losses(model, inputs, labels, 4)), torch.tensor(float("nan"))])
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == requires_grad == [True, False, True, True]
    assert model[0].weight.grad is None and model[3].bias.grad.tolist() == [7.0] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(value: float) -> None:
    model, inputs, labels = toy()
    with pytest.raises(ValueError, match=r"the loss of batch 0 is (nan|inf)"):
        saliency(model, (loss * value for loss in sum_losses(model, inputs, labels, 10)))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model = nn.Linear(2, 1, bias=False)
    with pytest.raises(ValueError, match="the gradient of weight is not finite"):
        saliency(model, [(model.weight * 0).sqrt().sum()])  # 0, with the derivative 0 * inf


def test_no_loss_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="saliency: "):
        saliency(nn.Linear(2, 1), [])


def test_the_forget_set_of_a_diffusion_model(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    """Batches of 1, 3 and all give one saliency and, but for a few near ties, one mask."""

    def losses(size: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        latents = tiny_data.forget_latents
        timesteps = torch.tensor([900, 30, 400, 650])
        noise = torch.randn(latents.shape, generator=generator)
        noisy_latents = tiny_family.add_noise(latents, noise, timesteps)
        for rows in torch.arange(len(latents)).split(size):
            conditioning = tiny_data.conditioning(tiny_data.forget_prompt[rows])
            yield (tiny_family.predict(noisy_latents[rows], timesteps[rows], conditioning) - noise[rows]).square().sum()

    whole = saliency(tiny_family.denoiser, losses(4))
    mask = top_mask(whole, 0.3)
    for size in (1, 3):
        found = saliency(tiny_family.denoiser, losses(size))
        for name, values in found.items():
            torch.testing.assert_close(values, whole[name], rtol=1e-3, atol=1e-2)
        other = top_mask(found, 0.3)
        assert sum(int((mask[name] != other[name]).sum()) for name in mask) < 0.001 * num_salient(mask)


def test_the_same_seed_gives_the_same_mask_and_another_seed_another(
    tiny_family: StableDiffusion, tiny_data: TrainingData
) -> None:
    masks = [
        top_mask(saliency(tiny_family.denoiser, forget_losses(tiny_family, tiny_data, 2, 3, seed)), 0.3) for seed in (0, 0, 1)
    ]
    assert_same(masks[0], masks[1])
    assert any(not torch.equal(masks[0][name], masks[2][name]) for name in masks[0])


def test_density_by_block_by_hand() -> None:
    mask = {
        "conv_in.weight": torch.tensor([True, False]),
        "down_blocks.0.a": torch.tensor([True, True, True]),
        "down_blocks.0.b": torch.tensor([False]),
        "down_blocks.1.a": torch.tensor([[False, True]]),
        "mid_block.resnets.0.weight": torch.tensor([False, False]),
    }
    shares = density_by_block(mask)
    assert shares == {"conv_in": 1 / 2, "down_blocks.0": 3 / 4, "down_blocks.1": 1 / 2, "mid_block": 0}
    assert list(shares) == ["conv_in", "down_blocks.0", "down_blocks.1", "mid_block"]


def test_blocks_add_up_to_the_whole(tiny_family: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(4)
    named = dict(tiny_family.denoiser.named_parameters())
    mask = top_mask({name: torch.rand(p.shape, generator=generator) for name, p in named.items()}, 0.2)
    sizes: dict[str, int] = {}
    for block, name in ((b, n) for b in density_by_block(mask) for n in named if f"{n}.".startswith(f"{b}.")):
        sizes[block] = sizes.get(block, 0) + named[name].numel()
    assert sum(sizes.values()) == sum(p.numel() for p in named.values())
    assert sum(share * sizes[block] for block, share in density_by_block(mask).items()) == pytest.approx(num_salient(mask))


@pytest.fixture
def mask() -> Mask:
    generator = torch.Generator().manual_seed(6)
    shapes = {"b.weight": (5, 3, 3, 3), "a": (), "c.bias": (17,), "d": (0, 3)}
    return {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()}


PROVENANCE = {"base": "abc", "concept": "dog — 犬", "density": "0.5", "seed": "0", "model": "emoji", "erase": "0.1.0"}


def test_a_saved_mask_is_loaded_as_it_was(mask: Mask, tmp_path: Path) -> None:
    save_mask(mask, tmp_path / "mask.safetensors", PROVENANCE)
    loaded, provenance = load_mask(tmp_path / "mask.safetensors")
    assert provenance == PROVENANCE
    assert loaded.keys() == mask.keys()
    assert_same({name: loaded[name] for name in mask}, mask)


def test_the_file_has_eight_weights_a_byte(tmp_path: Path) -> None:
    save_mask({"w": torch.ones(80_000, dtype=torch.bool)}, tmp_path / "mask", {})
    assert 10_000 <= (tmp_path / "mask").stat().st_size < 10_500


def test_the_same_mask_gives_the_same_bytes(mask: Mask, tmp_path: Path) -> None:
    files = set()
    for _ in range(8):
        save_mask(mask, tmp_path / "mask", PROVENANCE)
        files.add((tmp_path / "mask").read_bytes())
    assert len(files) == 1


def foreign_files(folder: Path, mask: Mask) -> dict[str, Path]:
    """Files that are no mask."""
    model = nn.Linear(3, 2)
    good = folder / "good"
    save_mask(mask, good, PROVENANCE)
    files = {name: folder / name for name in ("a patch", "a truncated mask", "text", "empty")}
    salient = SalientWeights(model, {"weight": torch.ones(2, 3, dtype=torch.bool)})
    save_patch(patch_of(salient, model, {}), files["a patch"])
    files["a truncated mask"].write_bytes(good.read_bytes()[:-1])
    files["text"].write_text("concept: dog\n" * 20)
    files["empty"].write_bytes(b"")
    return files | {"missing": folder / "missing"}


@pytest.mark.parametrize("kind", ["a patch", "a truncated mask", "text", "empty", "missing"])
def test_another_file_is_refused(kind: str, mask: Mask, tmp_path: Path) -> None:
    path = foreign_files(tmp_path, mask)[kind]
    with pytest.raises(ValueError, match="is not a saliency mask"):
        load_mask(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_refused_or_does_no_harm(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any byte of the header changed: a ValueError, or a mask of the shapes it names; never another error."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    save_mask({"ab": torch.ones(3, 4, dtype=torch.bool)}, path, {"base": "x"})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 3))
    content[place] = data.draw(st.one_of(st.sampled_from(list(b'0123456789"[]{},:eE.-')), st.integers(0, 255)))
    path.write_bytes(content)
    try:
        loaded = load_mask(path)[0]
    except ValueError as error:
        loaded, message = None, str(error)
    if loaded is None:
        assert "is not a saliency mask" in message
    else:
        assert all(values.dtype == torch.bool for values in loaded.values())
