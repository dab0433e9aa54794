"""What a run at full size holds: patches, the training state while it is written, and what is foretold of both memories."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from pretend_gpu import pretend
from torch import Tensor, nn

import erase.applied_patch
import erase.estimate
import erase.patch
import erase.run
from erase.activations import activation_bytes, saved_bytes
from erase.applied_patch import AppliedPatch
from erase.config import TrainConfig
from erase.data import TrainingData
from erase.estimate import _memory, estimate, short_of_memory, training_bytes
from erase.files import Coming, write_in_turn, write_safetensors
from erase.methods.salun import SalUn
from erase.patch import Patch, load_patch, put, save_patch
from erase.plan import plan
from erase.recipes import resolve
from erase.run import execute
from erase.salient import LeanOptimizer, SalientWeights
from erase.terminal import Bars
from erase.train import train
from pipelines.load import load, model_hash
from pipelines.sdxl import StableDiffusionXL
from pipelines.stable_diffusion import StableDiffusion

# ---- patches


def convolutions() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 16, 3), nn.Linear(10, 10))
    return layers.to(memory_format=torch.channels_last)


def half(model: nn.Module, seed: int) -> Patch:
    """New values for half of the weights, with positions as int64."""
    generator = torch.Generator().manual_seed(seed)
    positions = {
        name: (torch.rand(p.numel(), generator=generator) < 0.5).nonzero()[:, 0] for name, p in model.named_parameters()
    }
    values = {name: torch.randn(len(chosen), generator=generator) for name, chosen in positions.items()}
    return Patch(values, positions, {name: tuple(p.shape) for name, p in model.named_parameters()}, {"base": "x"})


def saved(patch: Patch, path: Path) -> Patch:
    save_patch(patch, path)
    return load_patch(path)


def remembered(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a patch and what it is applied by hold positions of at most so many bytes."""
    for module in (erase.patch, erase.applied_patch):
        monkeypatch.setattr(module, "KEEP", keep)


def bytes_held(applied: AppliedPatch) -> int:
    """Every tensor and array that the object reaches, each storage once."""
    found: dict[int, int] = {}
    waiting: list[Any] = [applied.patches, [vars(one) | {"parameter": None} for one in applied._weights.values()]]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif hasattr(one, "nbytes"):
            found[one.ctypes.data] = one.nbytes
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, Patch | erase.patch.PackedPositions):
            waiting.append(vars(one))
        elif callable(one) and getattr(one, "__closure__", None):
            waiting += [cell.cell_contents for cell in one.__closure__]
    return sum(found.values())


@pytest.mark.parametrize(("keep", "most"), [(0, 8.3), (1 << 30, 16.1)])
def test_a_patch_on_a_model_holds_few_bytes_a_weight(
    keep: int, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many weights: a value, the base's (4 bytes each), and a bit for each of the tensor's, 0.25; of few 4 + 4 for where."""
    remembered(keep, monkeypatch)
    model = convolutions()
    patch = saved(half(model, 2), tmp_path / "patch")
    applied = AppliedPatch(model, patch)
    num = sum(len(values) for values in patch.values.values())
    assert 8 * num < bytes_held(applied) <= most * num
    applied.close()
    assert bytes_held(applied) == 0


def test_of_many_weights_nothing_comes_out_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch, a stack, dialled, undone, as a file and as one that undoes: with bits as with positions."""
    outcomes = []
    for keep in (1 << 30, 0):
        remembered(keep, monkeypatch)
        model, out = convolutions(), tmp_path / str(keep)
        patches = [saved(half(model, seed), out / f"{seed}.safetensors") for seed in (2, 3)]
        single = AppliedPatch(model, patches[0], 0.5)
        found = [copy.deepcopy(model.state_dict())]
        single.undo()
        stack = AppliedPatch(model, patches, [1.0, 0.25])
        found.append(copy.deepcopy(model.state_dict()))
        save_patch(stack.undo_patch({}), out / "undo.safetensors", None)
        stack.close()
        put(patches[1], model)
        found.append(copy.deepcopy(model.state_dict()))
        outcomes.append((found, {path.name: path.read_bytes() for path in out.iterdir()}))
    (plain, files), (packed, same) = outcomes
    assert files == same
    for one, other in zip(plain, packed, strict=True):
        assert all(torch.equal(values, other[name]) for name, values in one.items())
    model = convolutions()
    AppliedPatch(model, half(model, 3))
    assert all(torch.equal(values, packed[2][name]) for name, values in model.state_dict().items()), "put is strength 1"


SMALL = [
    *("data.num_forget=2", "data.num_retain=2", "data.num_anchor=2", "data.num_inference_steps=2", "data.batch_size=2"),
    *("train.steps=1", "train.forget_batch_size=2", "train.retain_batch_size=2", "saliency.rounds=1"),
    *("prompts.forget=[a dog]", "prompts.becomes=[a cat]", "prompts.retain=[a horse]", "method.name=salun"),
]


def test_a_run_of_16_bits_holds_one_patch_and_lets_go_of_it(
    tiny_pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export reads no second one; the evaluation, which loads the exported model, begins without any."""
    tiny_pipeline.save_pretrained(tmp_path / "model")
    config = resolve({"concept": "dog", "model": str(tmp_path / "model"), "load.dtype": "bfloat16"}, SMALL)
    family = load(config.model, config.load)
    family.vocabulary = None
    read: list[weakref.ref[Patch]] = []
    alive: list[bool] = []

    def reading(path: Path) -> Patch:
        patch = load_patch(path)
        read.append(weakref.ref(patch))
        return patch

    def loading(model: str, *more: Any) -> Any:
        if model == str(tmp_path / "run" / "model"):
            gc.collect()
            alive.extend(one() is not None for one in read)
        return load(model, *more)

    monkeypatch.setattr(erase.run, "load_patch", reading)
    monkeypatch.setattr("pipelines.load.load", loading)
    done = execute(plan(config, family), family, tmp_path / "run", Bars(), model_hash(config.model, config.load), cache=False)
    assert alive == [False] and done["patch"] and done["audit"]["changed_outside_mask"] == 0


# ---- the training state


@pytest.mark.parametrize("lazily", [False, True])
def test_tensors_written_in_turn_give_the_librarys_bytes(lazily: bool, tmp_path: Path) -> None:
    """Of every dtype that a state has; a number alone, an empty one, one that is not contiguous, odd names."""
    dtypes = (torch.int64, torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)
    tensors = {f"{kind}/{dtype}": torch.arange(5).to(dtype) for dtype in dtypes for kind in ("b", "a", 'ä "犬"\\')}
    tensors |= {"one": torch.tensor(3), "none": torch.zeros(0), "turned": torch.arange(6.0).view(2, 3).T}
    metadata = {"format": "erase-state-1", "records": '[{"step": 1, "ü": "\\"}]'}
    write_safetensors(tensors, tmp_path / "library", metadata)
    given: dict[str, Any] = dict(tensors)
    if lazily:
        given = {name: Coming(tuple(one.shape), one.dtype, lambda one=one: one) for name, one in tensors.items()}  # type: ignore[misc]
    write_in_turn(given, tmp_path / "in-turn", metadata)
    assert (tmp_path / "in-turn").read_bytes() == (tmp_path / "library").read_bytes()


def test_a_state_is_written_with_one_master_at_a_time(
    tiny_family: StableDiffusion, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bfloat16 model, whose masters are made anew from two halves; the file is the library's own of the same tensors."""
    tiny_family.denoiser.to(torch.bfloat16)
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in tiny_family.denoiser.named_parameters()}
    salient = SalientWeights(tiny_family.denoiser, mask, lean=True)
    alive: list[weakref.ref[Tensor]] = []
    most: list[int] = []

    def watched(make: Callable[[], Tensor]) -> Tensor:
        values = make()
        alive.append(weakref.ref(values))
        most.append(sum(one() is not None for one in alive))
        return values

    written: dict[str, Any] = {}

    def writing(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
        seen = {
            name: replace(one, make=partial(watched, one.make)) if isinstance(one, Coming) else one
            for name, one in tensors.items()
        }
        write_in_turn(seen, path, metadata)
        whole = {name: one.make() if isinstance(one, Coming) else one for name, one in tensors.items()}
        write_safetensors(whole, path.with_suffix(".library"), metadata)
        written.update(whole)

    monkeypatch.setattr("erase.train.write_in_turn", writing)
    config = TrainConfig(steps=2, forget_batch_size=2, retain_batch_size=2, checkpoint_every=1)
    list(train(tiny_family, salient, tiny_data, SalUn(), config, seed=0, state=tmp_path / "state"))
    assert len(most) == len(salient.values) > 20 and max(most) == 1
    assert (tmp_path / "state").read_bytes() == (tmp_path / "state.library").read_bytes()
    assert {name.split("/")[0] for name in written} >= {"value", "exp_avg", "exp_avg_sq"}


# ---- what is foretold


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_of_several_parts_are_float32(accumulate: int) -> None:
    """Of a bfloat16 model, counted while they are held: 2 bytes a weight of one part, 4 of two."""
    model = nn.Linear(200, 300).bfloat16()
    salient = SalientWeights(model, {"weight": torch.ones(300, 200, dtype=torch.bool)}, lean=True)
    LeanOptimizer(salient, torch.optim.Adam)
    for _ in range(accumulate):
        model(torch.randn(3, 200, dtype=torch.bfloat16)).float().square().sum().backward()
    held = sum(gradient.nbytes for gradient in salient.gradients.values())
    assert held == 60_000 * 2 * accumulate
    assert training_bytes(model, 1.0, in_parts=accumulate > 1)["gradients"] == pytest.approx(held, rel=0.01)
    planned = plan(resolve({"concept": "dog"}, [f"train.accumulate={accumulate}", "saliency.method=none"]), load("emoji"))
    assert _memory(planned, model, 0.0, 0)["gradients"] == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["1.x", "xl"])
def test_activations_are_counted_without_computing(
    kind: str,
    checkpointed: bool,
    tiny_pipeline: StableDiffusionPipeline,
    tiny_xl_pipeline: StableDiffusionXLPipeline,
) -> None:
    """What autograd really saves on the CPU is the reference; the denoiser is neither run nor changed."""
    family = StableDiffusion(tiny_pipeline) if kind == "1.x" else StableDiffusionXL(tiny_xl_pipeline)
    counted = activation_bytes(family, "a dog", checkpointed)
    unet = family.pipeline.unet
    assert unet.device.type == "cpu" and not any(p.requires_grad for p in unet.parameters())
    own = type(family)(type(family.pipeline)(**family.pipeline.components | {"unet": copy.deepcopy(unet)}, **options(kind)))
    own.denoiser.requires_grad_(True)
    own.checkpoint_gradients(checkpointed)
    conditioning = own.encode_prompts(["a dog"])

    def step() -> None:
        own.predict(torch.zeros(1, 4, 8, 8), torch.zeros(1).long(), conditioning).square().mean().backward()

    real = saved_bytes(step, own.denoiser)
    assert counted == pytest.approx(real, rel=0.05)


def options(kind: str) -> dict[str, Any]:
    return {"requires_safety_checker": False} if kind == "1.x" else {"add_watermarker": False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_hosts_memory_is_foretold_beside_a_card(
    dtype: str, new_family: Callable[[], StableDiffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask (a byte a weight) and, in float32, the exported model and the base's weights; of 16 bits two models.

    The patch of a tenth of the weights is smaller.
    """
    config = resolve({"concept": "dog", "load.dtype": dtype}, [*SMALL, "saliency.density=0.1"])
    with pretend("cuda:0") as card:
        family = new_family()
        family.pipeline.to(str(card.place))
        planned = plan(config, family)
        num_weights = sum(p.numel() for p in family.denoiser.parameters())
        parts = [getattr(family.pipeline, part) for part in ("unet", "vae", "text_encoder")]
        whole = sum(p.numel() * 4 for part in parts for p in part.parameters())
        monkeypatch.setattr(erase.estimate, "present_rss", lambda: 7000)
        host = erase.estimate._host(planned, family, 0.0, 0)
        both = whole + 4 * num_weights if dtype == "float32" else 2 * whole
        assert host == 7000 + num_weights + both
        assert estimate(planned, family)["memory_gb"]["host"] > 0
    here = new_family()
    memory = estimate(plan(config, here), here)["memory_gb"]
    assert memory["host"] >= memory["peak"], "on the CPU all is in one memory"


class Told:
    """Progress that remembers what was said and begun, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator["Told"]:
        self.events.append(name)
        yield self

    def advance(self, num: int = 1, **figures: float) -> None:
        """Nothing to count."""

    def note(self, text: str) -> None:
        self.events.append(text)


def test_a_card_that_is_too_small_is_told_before_anything_is_drawn(
    new_family: Callable[[], StableDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with what is not set yet; none where it is large enough, is not known, or training was done before."""
    config = resolve({"concept": "dog"}, SMALL)
    with pretend("cuda:0") as card:
        family = new_family()
        family.pipeline.to(str(card.place))
        family.vocabulary = None
        planned = plan(config, family)
        assert short_of_memory(planned, family) == "", "there is no such card"
        needs = _memory(planned, family.denoiser, activation_bytes(family, "a dog", False), 0)["peak"]
        for has, short in ((needs + 1, False), (needs - 1, True)):
            monkeypatch.setattr(erase.estimate, "card_bytes", lambda _: int(has))  # noqa: B023
            assert bool(short_of_memory(planned, family)) is short
        frugal = config.model_copy(
            update={
                "train": config.train.model_copy(update={"gradient_checkpointing": True}),
                "load": config.load.model_copy(update={"dtype": "bfloat16"}),
            }
        )
        monkeypatch.setattr(erase.estimate, "card_bytes", lambda _: 1000)
        told = short_of_memory(replace(planned, config=frugal), family)
        assert "gradient_checkpointing" not in told and "bfloat16" not in told and "train.accumulate (now 1)" in told
        closed = replace(planned, config=resolve({"concept": "dog", "method.name": "uce"}, ["saliency.method=none"]))
        assert not any(word in short_of_memory(closed, family) for word in ("accumulate", "saliency"))
        for again in (False, True):
            progress = Told()
            execute(planned, family, tmp_path / "run", progress, "sha", cache=False)  # type: ignore[arg-type]
            warnings = [k for k, text in enumerate(progress.events) if text.startswith("mask and training need up to about")]
            assert len(warnings) == (0 if again else 1)
            if not again:
                sentence = progress.events[warnings[0]]
                assert warnings[0] < progress.events.index("generate") and "cuda:0 has 0.0 GB" in sentence
                assert all(word in sentence for word in ("gradient_checkpointing=true", "accumulate", "density", "bfloat16"))
