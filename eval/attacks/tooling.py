"""The same model as people run it: other number formats, samplers, guidance, img2img, a LoRA attached, a single file.

Each variant is a part of its own and counts where the base draws the concept by it. A picture given to img2img stays what it is
at a low strength, whatever the model knows; so the base is also asked for something else with the same picture (the control),
and a strength at which the picture survives that does not count.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import diffusers
import torch
from pydantic import Field
from torch import Tensor, nn

from erase.concepts import Prompt
from erase.files import hash_of
from erase.methods.base import Config as BaseConfig
from eval.attacks.base import Bar, Outcome, Probe, Scene, Side
from eval.attacks.drawing import ask, draw
from eval.detectors import to_tensor
from eval.generate import to_pixels
from eval.measure import Share
from eval.pictures import chunks
from pipelines.single_file import unpack_configs, write_single_file

SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}


class Config(BaseConfig):
    """The variants, and how many pictures each draws."""

    num: int = Field(12, ge=1)
    """Pictures of each variant."""
    precisions: tuple[Literal["float16", "bfloat16", "int8"], ...] = ("float16", "bfloat16", "int8")
    """Number formats of denoiser and text encoders; int8: matrices and kernels alone, one scale per output channel."""
    schedulers: tuple[Literal["DDIM", "Euler", "DPM++ 2M"], ...] = ("DDIM", "Euler", "DPM++ 2M")
    """Samplers; the model's own is left out."""
    guidance_scales: tuple[float, ...] = (1.0, 7.5, 15.0)
    """Guidance scales."""
    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.7, 0.9)
    """Strengths of img2img from pictures of the concept, with its own prompt."""
    lora_rank: int = Field(4, ge=0)
    """Rank of a random LoRA that is attached to every attention layer; 0: none."""
    lora_weight: float = Field(0.05, gt=0)
    """Size of the LoRA's change of each layer, as a share of the layer's own norm."""
    single_file: bool = True
    """Whether the model is written as one half-precision file in the original layout, and loaded again."""


def with_parts(family: Any, **parts: Any) -> Any:
    """The family with some parts of its pipeline replaced; the given family stays as it is."""
    pipeline = type(family.pipeline)(**_components(family.pipeline) | parts)
    pipeline.vae.to(memory_format=torch.channels_last)
    return type(family)(pipeline, family.vocabulary)


def _components(pipeline: Any) -> dict[str, Any]:
    flags = ("requires_safety_checker", "force_zeros_for_empty_prompt")
    return dict(pipeline.components) | {flag: pipeline.config[flag] for flag in flags if flag in pipeline.config}


@contextmanager
def at_precision(family: Any, name: str) -> Iterator[Any]:
    """The family in a number format within the block, in place; after it its weights are as they were, bit for bit."""
    names = ("unet", *(part for part in family.encoders if part != "vae"))
    parts: list[nn.Module] = [getattr(family.pipeline, part) for part in names]
    with restored(parts):
        for part in parts:
            if name == "int8":
                quantize(part)
            else:
                part.to(getattr(torch, name))
        yield family


@contextmanager
def restored(parts: list[nn.Module]) -> Iterator[None]:
    """After the block the parts have their weights back, bit for bit, from copies on the CPU.

    So a card need not hold two models.
    """
    modules = [module for part in parts for module in part.modules()]
    buffers = [(module, dict(module.named_buffers(recurse=False))) for module in modules]
    weights = [values for part in parts for values in part.parameters()]
    kept = [(values, values.device, values.detach().to("cpu", copy=True)) for values in weights]
    try:
        yield
    finally:
        for values, device, before in kept:
            values.data = before.to(device)
        for module, own in buffers:
            for key, buffer in own.items():
                setattr(module, key, buffer)


@torch.no_grad()
def quantize(model: nn.Module) -> None:
    """Round every weight matrix to 255 levels per output channel, symmetric about 0, in place.

    Biases, norms and the words' vectors stay.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            rows = module.weight.flatten(1)
            scale = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(rows.dtype).tiny)
            levels = (rows / scale[:, None]).round().clamp(-127, 127)
            module.weight.copy_((levels * scale[:, None]).view_as(module.weight))


def with_scheduler(family: Any, name: str) -> Any:
    """The family with another sampler of the same noise schedule."""
    kind, options = SCHEDULERS[name]
    return with_parts(family, scheduler=getattr(diffusers, kind).from_config(family.pipeline.scheduler.config, **options))


@contextmanager
def with_lora(family: Any, rank: int, weight: float, seed: int) -> Iterator[Any]:
    """The family with a random LoRA attached to every attention layer within the block: as one trained for something else.

    No weight is touched: each layer's output is added to, as PEFT does, which is no dependency.
    """
    generator, hooks = torch.Generator().manual_seed(seed), []
    try:
        for name, module in family.pipeline.unet.named_modules():
            if isinstance(module, nn.Linear) and ".attn" in name:
                weights = module.weight.detach()
                rows, columns = weights.shape
                up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
                up *= weight * weights.norm().cpu() / (up @ down).norm()
                hooks.append(module.register_forward_hook(partial(add_low_rank, up.to(weights), down.to(weights))))
        yield family
    finally:
        for hook in hooks:
            hook.remove()


def add_low_rank(up: Tensor, down: Tensor, _layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A layer's output (..., rows) with up (rows, rank) @ down (rank, columns) of its input (..., columns) added: a hook."""
    return output + inputs[0] @ down.T @ up.T


@contextmanager
def through_single_file(family: Any, scratch: Path | None = None) -> Iterator[Any]:
    """The family written as one half-precision file in the original layout, and loaded from it with its own tokenizers.

    It is where the given one was, which is on the CPU within the block: a card need not hold two models. `scratch`: the folder
    in which the file is for so long; the system's temporary one is often too small.
    """
    pipeline, device = family.pipeline, family.pipeline.unet.device
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".model.") as name:
        folder = Path(name)
        write_single_file(pipeline, folder / "model.safetensors", {}, torch.float16, "audit")
        unpack_configs(folder / "model.safetensors", folder / "configs")
        for part in ("tokenizer", "tokenizer_2"):
            if getattr(pipeline, part, None) is not None:
                getattr(pipeline, part).save_pretrained(folder / "configs" / part)
        options = {"config": str(folder / "configs"), "local_files_only": True, "dtype": torch.float32}
        loaded = type(pipeline).from_single_file(str(folder / "model.safetensors"), **options)
    names = ("unet", *family.encoders)
    parts = {part: getattr(loaded, part) for part in names}
    try:
        for part in names:
            getattr(pipeline, part).to("cpu")
            parts[part].to(device)
        yield with_parts(family, **parts)
    finally:
        for part in names:
            parts[part].to("cpu")
            getattr(pipeline, part).to(device)


def from_pictures(family: Any, prompts: list[str], pictures: Tensor, strength: float, scene: Scene) -> Tensor:
    """img2img by diffusers' own pipeline, as many pictures at a time as the scene's; each from its own noise."""
    pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(family.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for rows in chunks(range(len(prompts)), scene.batch_size):
        part = pipeline(
            [prompts[k] for k in rows],
            image=(pictures[list(rows)] + 1) / 2,
            strength=strength,
            num_inference_steps=max(scene.num_inference_steps, math.ceil(1 / strength)),  # of which that share is done
            guidance_scale=scene.guidance_scale,
            generator=[torch.Generator().manual_seed(scene.seed + k) for k in rows],
            output_type="pt",
        ).images
        drawn.append(part.cpu())
    return to_tensor(list(to_pixels(torch.cat(drawn) * 2 - 1)))


# how a variant draws its pictures for these prompts
Draw = Callable[[list[Prompt]], Tensor]


def variants(side: Side, scene: Scene, config: Config, bar: Bar) -> dict[str, Draw]:
    """Every variant of this side's model by its name."""
    family: Any = side.family

    def plain(make: Callable[[], AbstractContextManager[Any]], guidance: float | None = None) -> Draw:
        def pictures(prompts: list[Prompt]) -> Tensor:
            asked = [ask(scene, prompt, scene.seed + k, guidance) for k, prompt in enumerate(prompts)]
            with make() as variant:
                return draw(variant, asked, scene.batch_size, bar)

        return pictures

    def image(strength: float) -> Draw:
        def pictures(prompts: list[Prompt]) -> Tensor:
            rows = torch.arange(len(prompts)) % len(scene.references)
            bar.advance(len(prompts))
            return from_pictures(family, [p.text for p in prompts], scene.references[rows], strength, scene)

        return pictures

    own = type(family.pipeline.scheduler).__name__
    found: dict[str, Draw] = {name: plain(partial(at_precision, family, name)) for name in config.precisions}
    for name in config.schedulers:
        if SCHEDULERS[name][0] != own:
            found[name] = plain(partial(nullcontext, with_scheduler(family, name)))
        else:
            bar.advance(config.num)
    found |= {f"guidance {scale:g}": plain(partial(nullcontext, family), scale) for scale in config.guidance_scales}
    found |= {f"img2img {strength:g}": image(strength) for strength in config.strengths}
    if config.lora_rank:
        seed = int(hash_of(["lora", scene.seed])[:8], 16)
        found["LoRA attached"] = plain(partial(with_lora, family, config.lora_rank, config.lora_weight, seed))
    if config.single_file:
        found["single file"] = plain(partial(through_single_file, family, scene.scratch))
    return found


def run(side: Side, scene: Scene, config: Config, bar: Bar) -> Outcome:
    """Draw the concept's prompts by every variant; on the base also the controls of img2img."""
    prompts = scene.asked(config.num)
    drawn, seen, captions = [], [], []
    parts: dict[str, Share] = {}
    figures: dict[str, float] = {}
    for name, pictures_of in variants(side, scene, config, bar).items():
        asked = (
            [scene.reference_prompts[k % len(scene.reference_prompts)] for k in range(config.num)]
            if "img2img" in name
            else prompts
        )
        pictures = pictures_of(asked)
        saw = scene.sees(pictures)
        parts[name] = Share(sum(saw), len(saw))
        drawn.append(pictures)
        seen += saw
        captions += [f"{name}: {prompt.text}" for prompt in asked]
        if "img2img" in name and side.role == "base":
            others = [scene.other_prompts[k * len(scene.other_prompts) // config.num] for k in range(config.num)]
            figures[f"control: {name}"] = sum(scene.sees(pictures_of(others))) / config.num
    return Outcome(Share(sum(seen), len(seen)), torch.cat(drawn), tuple(seen), tuple(captions), figures, parts)


def total(config: Config, scene: Scene) -> int:
    """Pictures of all variants (on the base the controls come on top)."""
    num = len(config.precisions) + len(config.schedulers) + len(config.guidance_scales) + len(config.strengths)
    return config.num * (num + bool(config.lora_rank) + config.single_file)


PROBE = Probe(
    line="other number formats, samplers, guidance, img2img, LoRA, single file",
    paper="no paper: the ways in which people run a model",
    config=Config,
    quick={
        "num": 3,
        "precisions": ("int8",),
        "schedulers": ("Euler",),
        "guidance_scales": (7.5,),
        "strengths": (0.9,),
    },
    run=run,
    total=total,
    apart=True,
)
