"""What a run will cost, measured on the machine at hand before it begins: seconds, memory, disk."""

import os
import time
from typing import Any, cast

import torch
from torch import Tensor, nn

from erase.activations import activation_bytes, saved_bytes
from erase.config import RunConfig
from erase.evaluation import is_measured
from erase.export import num_bytes
from erase.methods import METHODS
from erase.methods.retrain import Retrain
from erase.plan import Plan
from erase.processes import num_processes, peak_rss, present_rss
from erase.reading import read_json
from erase.salient import GROUP, KEEP
from erase.telling import has_mask
from pipelines.family import Family
from pipelines.load import EMOJI_WEIGHTS

# bytes a weight that training from scratch holds in each process: value, gradient, Adam's two moments, moving average
RETRAINED = {"weights": 4, "gradients": 4, "optimizer": 8, "average": 4}


def estimate(plan: Plan, family: Family) -> dict[str, Any]:
    """Seconds by stage that the run does, memory at its largest, and disk space, from timed batches of the denoiser."""
    config, present = plan.config, peak_rss()
    family.checkpoint_gradients(config.train.gradient_checkpointing)
    probe = _Probe(family, plan.data.forget[0].text)
    parameters = list(family.denoiser.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    backward_s = min(probe.seconds(backward=True) for _ in range(2))
    forward_s = min(probe.seconds(backward=False) for _ in range(3))
    activations = saved_bytes(lambda: probe.loss().backward(), family.denoiser) / probe.rows
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.grad = None
        parameter.requires_grad_(flag)
    family.checkpoint_gradients(False)
    num_weights = sum(p.numel() for p in parameters)
    if isinstance(config.method, Retrain):
        on_cpu = parameters[0].device.type == "cpu"  # as the training is, wherever the model is loaded
        seconds = {"train_s": retraining_s(config.method, backward_s * torch.get_num_threads() if on_cpu else None)}
        memory = _retraining_memory(config.method, num_weights, activations, present)
        disk = num_weights * 2 / 1e9
    else:
        seconds = _seconds(plan, forward_s, backward_s)
        memory = _memory(plan, family.denoiser, activations, present)
        memory["host"] = _host(plan, family, memory["peak"], present)
        disk = num_weights * 4 * (1 + density_of(config)) / 1e9
    seconds["evaluate_s"] = _evaluate_s(plan, forward_s) if is_measured(plan, family) else 0.0
    return (
        {key: round(value, 1) for key, value in seconds.items()}
        | {"total_s": round(sum(seconds.values()), 1), "denoiser_disk_gb": round(disk, 3)}
        | {"memory_gb": {key: round(value / 1e9, 3) for key, value in memory.items()}}
    )


class _Probe:
    """A few rows of the denoiser's work, forward and backward."""

    def __init__(self, family: Family, prompt: str) -> None:
        self.family = family
        num_weights = sum(p.numel() for p in family.denoiser.parameters())
        self.rows = max(1, min(16, 150_000_000 // max(1, num_weights)))  # a small model needs many rows to be busy
        self.latents = family.generate(
            [""] * self.rows, list(range(self.rows)), num_inference_steps=1, guidance_scale=1.0, batch_size=self.rows
        )
        self.conditioning = family.encode_prompts([prompt] * self.rows)
        self.timesteps = torch.full((self.rows,), family.num_train_timesteps // 2)

    def loss(self) -> Tensor:
        return self.family.predict(self.latents, self.timesteps, self.conditioning).float().square().mean()

    def seconds(self, *, backward: bool) -> float:
        """Seconds a row."""
        began = time.monotonic()
        with torch.set_grad_enabled(backward):
            loss = self.loss()
            if backward:
                loss.backward()
            loss.item()
        return (time.monotonic() - began) / self.rows


def _sampling_s(num: int, steps: int, guidance: float, forward_s: float) -> float:
    return num * steps * forward_s * (2 if guidance > 1 else 1)


def _evaluate_s(plan: Plan, forward_s: float) -> float:
    """Of both models' pictures."""
    config, num = plan.config.evaluation, len(plan.forget_evaluation) + len(plan.retain_evaluation)
    return 2 * _sampling_s(num, config.num_inference_steps, config.guidance_scale, forward_s)


def _seconds(plan: Plan, forward_s: float, backward_s: float) -> dict[str, float]:
    """Of the stages that change weights."""
    data, train, saliency = plan.config.data, plan.config.train, plan.config.saliency
    num_forget, num_retain = len(plan.data.forget), len(plan.data.retain)
    drawn = (num_forget - len(plan.data.forget_images), num_retain - len(plan.data.retain_images))
    generate = _sampling_s(drawn[0], data.num_inference_steps, data.forget_guidance_scale, forward_s)
    generate += _sampling_s(drawn[1], data.num_inference_steps, data.retain_guidance_scale, forward_s)
    step = (train.forget_batch_size + train.retain_batch_size) * (backward_s + forward_s)
    if lookahead_share(
        plan
    ):  # the relearner's rows, the forget rows where it leads; here these have no backward pass if all is there
        step += 1.5 * train.forget_batch_size * backward_s
        if lookahead_share(plan) == 1:
            step -= train.forget_batch_size * (backward_s - forward_s)
    return {
        "generate_s": generate,
        "saliency_s": saliency.rounds * num_forget * backward_s if saliency.method == "gradient" else 0.0,
        "train_s": train.steps * step if METHODS[plan.config.method.name].rows else 0.0,  # else a closed form
    }


def retraining_s(method: Retrain, thread_s: float | None) -> float:
    """Seconds of training the embedded model anew: its UNet's samples, and the text encoder and autoencoder before.

    `thread_s`: what one CPU thread needs for a sample forward and backward; None: what it did when the embedded model was
    trained. The parts before take the share of the UNet's time that they took then.
    """
    record = read_json(EMOJI_WEIGHTS / "training.json")
    hours, usual = record["hours"], record["samples"]["unet"]
    if thread_s is None:
        thread_s = 3600 * hours["unet"] / usual * record["processes"] * record["threads"]
    before = hours["text"] + (0 if method.autoencoder else hours["autoencoder"])
    at_once = min(method.processes * method.threads, os.cpu_count() or 1)
    return thread_s / at_once * ((method.samples or usual) + usual * before / hours["unet"])


def density_of(config: RunConfig) -> float:
    """Share of the denoiser's weights that may change, where the method has no narrower scope."""
    return config.saliency.density if has_mask(config) else 1.0


def lookahead_share(plan: Plan) -> float:
    """Share of the forget loss that is taken where a relearner leads (erase.methods.lookahead)."""
    return float(getattr(plan.config.method, "lookahead_share", 0.0))


def training_bytes(denoiser: nn.Module, density: float, relearner: bool = False, in_parts: bool = False) -> dict[str, int]:
    """Bytes that training holds beside activations: weights, and what belongs to the salient ones.

    `in_parts`: whether a step's gradients are added up, of several parts or processes, which is done in float32.
    """
    sizes = [(p.numel(), p.element_size(), p.dtype) for p in denoiser.parameters()]
    num_weights, width = sum(n for n, _, _ in sizes), sizes[0][1]
    salient = int(density * num_weights)
    masters = {torch.float32: 0, torch.bfloat16: 2}.get(sizes[0][2], 4)
    return {
        "weights": sum(n * size for n, size, _ in sizes),
        "originals": salient * width,
        "masters": salient * masters + 16 * min(GROUP, salient),
        "gradients": salient * (4 if in_parts else width),
        "optimizer": salient * 8,
        "relearner": salient * (16 + 2 * width) if relearner else 0,  # its state; the gradients and weights it stands for
        "positions": salient * 4 if salient * 4 <= KEEP else num_weights // 8,
    }


def _memory(plan: Plan, denoiser: nn.Module, activations: float, present: int) -> dict[str, float]:
    """Bytes by what holds them, and the largest sum over the stages (on the CPU with all that the process held before)."""
    config = plan.config
    in_parts = config.train.accumulate > 1 or num_processes() > 1
    held = training_bytes(denoiser, density_of(config), bool(lookahead_share(plan)), in_parts)
    num_weights = sum(p.numel() for p in denoiser.parameters())
    rows = -(-(config.train.forget_batch_size + config.train.retain_batch_size) // config.train.accumulate)
    if not METHODS[config.method.name].rows:  # a closed form: no backward pass
        held |= {"gradients": 0, "optimizer": 0}
        rows = 0
    training = sum(held.values()) + rows * activations
    ranking = held["weights"] + 5 * num_weights + config.saliency.batch_size * activations if has_mask(config) else 0
    on_cpu = next(denoiser.parameters()).device.type == "cpu"
    # a mask of a byte a weight stays in the host's memory from its making to the audit
    host = present - held["weights"] + num_weights if on_cpu else 0
    return {**held, "activations": rows * activations, "peak": host + max(training, ranking)}


def _host(plan: Plan, family: Family, peak: float, present: int) -> float:
    """The most bytes of the host's memory over the stages: beside a card what training leaves, exports and compares.

    There are the mask (a byte a weight), the patch (values, the base's, where they are), and whole pipelines in float32: of a
    16-bit run its exact base at the end of training and at the export; then the exported model and the base's weights.
    """
    weights = [(p.numel(), p.element_size()) for p in family.denoiser.parameters()]
    num_weights, width = sum(n for n, _ in weights), weights[0][1]
    salient = int(density_of(plan.config) * num_weights)
    exact = num_bytes(cast(Any, family).pipeline, torch.float32)
    patch = salient * 4 + (salient * 8 if salient * 4 <= KEEP else num_weights // 8)
    on_cpu = next(family.denoiser.parameters()).device.type == "cpu"
    copied = 0 if on_cpu else 4 * num_weights  # brought from the card to be written, or compared
    if plan.config.load.dtype == "float32":
        stages = [patch, patch + 4 * salient + copied, exact + copied]
    else:
        stages = [patch + (4 + width) * salient + exact, patch + width * salient + exact, 2 * exact]
    after = num_weights + max(stages)
    return max(peak, present + after) if on_cpu else present_rss() + max(after, 5 * num_weights)


def card_bytes(device: torch.device) -> int | None:
    """Bytes of a card's memory that this process has or can get; None where that is not known."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    if device.type == "mps" and torch.backends.mps.is_available():
        return int(torch.mps.recommended_max_memory())
    return None


def short_of_memory(plan: Plan, family: Family) -> str:
    """A sentence where the card has less memory than mask or training need, as far as that is known; else empty."""
    config, device = plan.config, next(family.denoiser.parameters()).device
    has = card_bytes(device)
    if has is None:
        return ""
    activations = activation_bytes(family, plan.data.forget[0].text, config.train.gradient_checkpointing)
    needs = _memory(plan, family.denoiser, activations, 0)["peak"]
    if needs <= has:
        return ""
    trains = METHODS[config.method.name].rows is not None
    less = {
        "train.gradient_checkpointing=true": not config.train.gradient_checkpointing,
        f"a larger train.accumulate (now {config.train.accumulate})": trains,
        f"a smaller saliency.batch_size (now {config.saliency.batch_size})": has_mask(config),
        f"a smaller saliency.density (now {config.saliency.density:g})": has_mask(config),
        "load.dtype=bfloat16": config.load.dtype == "float32",
    }
    told = ", ".join(text for text, helps in less.items() if helps)
    return (
        f"mask and training need up to about {needs / 1e9:.1f} GB and {device} has {has / 1e9:.1f} GB: after the pictures are "
        f"drawn, the run will probably have too little memory; to need less, set {told}."
    )


def _retraining_memory(method: Retrain, num_weights: int, activations: float, present: int) -> dict[str, float]:
    """Bytes that the training's processes hold of the UNet, and the largest sum; each has the libraries as this one has."""
    from pipelines.emoji.denoiser import BATCH_SIZE

    held = {key: float(method.processes * num_weights * size) for key, size in RETRAINED.items()}
    held["activations"] = BATCH_SIZE * activations
    peak = (1 + method.processes) * present + sum(held.values())
    return held | {"peak": peak, "host": peak}
