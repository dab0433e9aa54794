"""A model on a graphics card, pretended: what is made there has the bits of the CPU, and no operation mixes devices."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from pretend_gpu import PretendDevice, pretend
from test_methods import TRAINED, VARIANTS, Families, families, mask_of, run, weights  # noqa: F401
from torch import Tensor

from erase.applied_patch import AppliedPatch
from erase.config import SETTINGS, LoadConfig
from erase.data import TrainingData
from erase.patch import Patch
from erase.plan import plan
from erase.recipes import resolve
from erase.run import execute
from erase.salient import SalientWeights
from erase.terminal import Bars
from eval.attacks import tooling
from pipelines.load import device_of, load, model_hash
from pipelines.stable_diffusion import StableDiffusion

DEVICES = ("cuda:0", "mps:0")
CASES = [*((name, {}) for name in TRAINED), *((name, one) for name, own in VARIANTS.items() for one in own)]


@pytest.fixture(params=DEVICES)
def card(request: pytest.FixtureRequest) -> Iterator[PretendDevice]:
    """The card that is there while a test goes on."""
    with pretend(request.param) as device:
        yield device


def test_the_card_holds_to_a_cards_rules() -> None:
    """What torch refuses of a GPU it refuses, and what torch allows works, forward and backward, with the same values."""
    values = torch.arange(6.0).view(2, 3)
    with pretend("cuda:0"):
        there = values.to("cuda")
        assert there.device == torch.device("cuda:0") and values.device.type == "cpu" and there.cpu().device.type == "cpu"
        for mixed in (
            lambda: there + values,
            lambda: there.index_select(0, torch.tensor([1])),
            lambda: torch.cat([there, values]),
            lambda: values[torch.tensor([0]).to("cuda")],
            lambda: torch.nn.functional.linear(there, values),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        layer = torch.nn.Linear(3, 2).to("cuda")
        seen: list[torch.device] = []
        layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.device))  # type: ignore[union-attr]
        (layer(there[torch.tensor([1, 0])]) * torch.tensor(2.0)).sum().backward()
        assert seen == [torch.device("cuda:0")] and layer.bias.grad is not None and layer.bias.grad.device.type == "cuda"
        assert torch.equal(there.cpu(), values) and torch.zeros(2, device="cuda").device.type == "cuda"
    with pretend("mps:0"), pytest.raises(TypeError, match="float64"):
        values.to("mps").double()


def trains_alike(
    device: str, name: str, settings: dict[str, Any], make: Callable[[], StableDiffusion], data: TrainingData
) -> bool:
    """Two steps on the card and on the CPU, with a mask that lies on the CPU as one from a file does: the same bits."""
    method = SETTINGS[name](**settings)
    plain = make()
    mask = mask_of(plain, method, masked=True)
    records = run(plain, data, method, mask)
    with pretend(device) as card:
        moved = on(make(), card)
        same = run(moved, data, method, mask) == records and card.seen > 100
        return same and all(torch.equal(values, weights(plain)[key]) for key, values in onto_cpu(weights(moved)).items())


@pytest.mark.parametrize(("name", "settings"), [pytest.param(n, s, id=f"{n}-{k}") for k, (n, s) in enumerate(CASES)])
def test_every_method_trains_on_a_card(name: str, settings: dict[str, Any], families: Families) -> None:  # noqa: F811
    assert trains_alike("cuda:0", name, settings, *families["1.x"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [("uce", {}), ("munba", {}), ("salun", {"balance": "nash"}), ("salun", {"timesteps": "importance"})],
)
def test_what_needs_float64_is_done_without_an_apple_card(
    name: str,
    settings: dict[str, Any],
    families: Families,  # noqa: F811
) -> None:
    assert trains_alike("mps:0", name, settings, *families["1.x"])


def test_patches_on_a_card_are_those_on_the_cpu(card: PretendDevice, new_family: Callable[[], StableDiffusion]) -> None:
    """At a part of its strength a patch is computed in float64, which an Apple card does not have."""
    plain, moved = new_family(), on(new_family(), card)
    base = weights(plain)
    generator = torch.Generator().manual_seed(0)
    patches = [a_patch(plain, generator) for _ in range(2)]
    there, here = (AppliedPatch(family.denoiser, patches, (0.5, 1.0)) for family in (moved, plain))
    for strengths in ((0.5, 1.0), (1.0, 0.0), (0.3, 1.5)):
        for applied in (there, here):
            applied.dial(strengths)
        assert all(torch.equal(values, weights(plain)[key]) for key, values in onto_cpu(weights(moved)).items())
    there.undo()
    assert all(torch.equal(values, base[key]) for key, values in onto_cpu(weights(moved)).items())


def test_lean_weights_from_a_mask_file_lie_where_the_model_is(card: PretendDevice, tiny_family: StableDiffusion) -> None:
    family = on(tiny_family, card)
    mask = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in family.denoiser.named_parameters()}
    salient = SalientWeights(family.denoiser, mask, lean=True)
    assert {values.device.type for values in salient.originals.values()} == {card.place.type}
    salient.close()


SMALL = [
    *("data.num_forget=4", "data.num_retain=4", "data.num_anchor=2", "data.num_inference_steps=2", "data.batch_size=2"),
    *("train.steps=2", "train.forget_batch_size=2", "train.retain_batch_size=2", "saliency.rounds=1"),
    *("prompts.forget=[a dog]", "prompts.becomes=[a cat]", "prompts.retain=[a horse]", "method.name=salun"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run_on_a_card(
    dtype: str, tiny_pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, mask, training, export, comparison, report; again from the mask's file, as after a stop in training; an audit."""
    monkeypatch.setattr("pipelines.load.device_of", lambda name: device_of("cuda:0" if name == "auto" else name))
    model = str(tmp_path / "model")
    tiny_pipeline.save_pretrained(model)
    config = resolve({"concept": "dog", "model": model, "load.dtype": dtype}, SMALL)

    def made(out: Path) -> dict[str, Any]:
        family = load(model, config.load)
        family.vocabulary = None
        return execute(plan(config, family), family, out, Bars(), model_hash(model, config.load), cache=False)

    with pretend("cuda:0") as card:
        assert load(model).pipeline.unet.device.type == "cuda"
        assert made(tmp_path / "there")["audit"]["changed_outside_mask"] == 0 and card.seen > 1000
        patch = (tmp_path / "there" / "patch.safetensors").read_bytes()
        (tmp_path / "there" / "patch.safetensors").unlink()
        made(tmp_path / "there")
        assert (tmp_path / "there" / "patch.safetensors").read_bytes() == patch
    monkeypatch.undo()
    made(tmp_path / "here")
    assert (tmp_path / "here" / "patch.safetensors").read_bytes() == patch


@pytest.mark.parametrize("name", ["single file", "float16", "int8", "LoRA attached"])
def test_a_variant_is_where_the_model_was_and_draws_as_on_the_cpu(name: str, new_family: Callable[[], StableDiffusion]) -> None:
    """Meanwhile the given model makes room for a second one; afterwards it is back, bit for bit."""

    def made(family: StableDiffusion) -> Any:
        if name == "LoRA attached":
            return tooling.with_lora(family, 2, 0.05, 1)
        return tooling.through_single_file(family) if name == "single file" else tooling.at_precision(family, name)

    def drawn(family: StableDiffusion) -> Tensor:
        latents = family.generate(["a dog"], [3], num_inference_steps=2, guidance_scale=2.0, batch_size=1)
        return family.decode_latents(latents)

    plain = new_family()
    base = weights(plain)
    with made(plain) as variant:
        expected = drawn(variant)
    with pretend("cuda:0") as card:
        family = on(new_family(), card)
        with made(family) as variant:
            parts = {part: getattr(variant.pipeline, part).device.type for part in ("unet", *variant.encoders)}
            assert set(parts.values()) == {"cuda"}, parts
            own = {family.denoiser.device.type, variant.denoiser.device.type}  # type: ignore[union-attr]
            assert own == ({"cpu", "cuda"} if name == "single file" else {"cuda"})
            seen = card.seen
            assert torch.equal(drawn(variant), expected) and card.seen > seen + 100
        assert {getattr(family.pipeline, part).device.type for part in ("unet", *family.encoders)} == {"cuda"}
        assert all(torch.equal(values, base[key]) for key, values in onto_cpu(weights(family)).items())


def on(family: StableDiffusion, card: PretendDevice) -> StableDiffusion:
    """The family with its model on the card."""
    family.pipeline.to(str(card.place))
    return family


def onto_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.cpu() for name, values in tensors.items()}


def a_patch(family: StableDiffusion, generator: torch.Generator) -> Patch:
    """New values for some weights of every tensor."""
    values, positions, shapes = {}, {}, {}
    for name, parameter in family.denoiser.named_parameters():
        chosen = torch.rand(parameter.numel(), generator=generator) < 0.3
        chosen[0] = True
        positions[name] = chosen.nonzero()[:, 0]
        values[name] = torch.randn(len(positions[name]), generator=generator)
        shapes[name] = tuple(parameter.shape)
    return Patch(values, positions, shapes, {})


def test_a_device_by_its_name_is_found_on_a_card() -> None:
    with pretend("cuda:0"):
        assert device_of("cuda:0") == "cuda:0"
        with pytest.raises(ValueError, match="there is no device 'cuda:1' here"):
            device_of("cuda:1")
        family = load("emoji", LoadConfig(device="cuda:0"))
        assert family.denoiser.device.type == "cuda"  # type: ignore[union-attr]
