"""What a run will cost, measured on the machine at hand before it begins: seconds, memory, disk."""

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from erase.methods import METHODS
from erase.plan import Plan
from erase.processes import peak_rss
from erase.salient import GROUP, KEEP
from pipelines.family import Family


def estimate(plan: Plan, family: Family) -> dict[str, Any]:
    """Seconds by stage, memory at its largest, and disk space, extrapolated from timed batches of the denoiser."""
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
    seconds = _seconds(plan, forward_s, backward_s)
    if not METHODS[plan.config.method.name].rows:
        seconds["train_s"] = 0.0  # a closed form; what retraining takes its own script tells
    num_weights = sum(p.numel() for p in parameters)
    memory = _memory(plan, family.denoiser, activations, present)
    disk = num_weights * 4 * (1 + config.saliency.density) / 1e9
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


def _seconds(plan: Plan, forward_s: float, backward_s: float) -> dict[str, float]:
    data, train, evaluation = plan.config.data, plan.config.train, plan.config.evaluation

    def sampling(num: int, steps: int, guidance: float) -> float:
        return num * steps * forward_s * (2 if guidance > 1 else 1)

    generate = sampling(len(plan.data.forget), data.num_inference_steps, data.forget_guidance_scale)
    generate += sampling(len(plan.data.retain), data.num_inference_steps, data.retain_guidance_scale)
    step = (train.forget_batch_size + train.retain_batch_size) * (backward_s + forward_s)
    if lookahead_share(
        plan
    ):  # the relearner's rows, the forget rows where it leads; here these have no backward pass if all is there
        step += 1.5 * train.forget_batch_size * backward_s
        if lookahead_share(plan) == 1:
            step -= train.forget_batch_size * (backward_s - forward_s)
    pictures = len(plan.forget_evaluation) + len(plan.retain_evaluation)
    return {
        "generate_s": generate,
        "saliency_s": plan.config.saliency.rounds * len(plan.data.forget) * backward_s,
        "train_s": train.steps * step,
        "evaluate_s": 2 * sampling(pictures, evaluation.num_inference_steps, evaluation.guidance_scale),
    }


def lookahead_share(plan: Plan) -> float:
    """Share of the forget loss that is taken where a relearner leads (erase.methods.lookahead)."""
    return float(getattr(plan.config.method, "lookahead_share", 0.0))


def saved_bytes(work: Callable[[], object], model: nn.Module) -> int:
    """The most bytes that autograd held at a time for the backward pass while the work ran; weights do not count.

    With gradient checkpointing this sees what is recomputed, too.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    holders: dict[int, int] = {}
    live = largest = 0

    class Holder:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def drop(pointer: int, size: int) -> None:
        nonlocal live
        holders[pointer] -= 1
        if not holders[pointer]:
            del holders[pointer]
            live -= size

    def pack(tensor: Tensor) -> Holder:
        nonlocal live, largest
        holder, storage = Holder(tensor), tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer not in own:
            live += 0 if pointer in holders else size
            holders[pointer] = holders.get(pointer, 0) + 1
            largest = max(largest, live)
            weakref.finalize(holder, drop, pointer, size)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        work()
    return largest


def training_bytes(denoiser: nn.Module, density: float, relearner: bool = False) -> dict[str, int]:
    """Bytes that training holds beside activations: weights, and what belongs to the salient ones."""
    sizes = [(p.numel(), p.element_size(), p.dtype) for p in denoiser.parameters()]
    num_weights, width = sum(n for n, _, _ in sizes), sizes[0][1]
    salient = int(density * num_weights)
    masters = {torch.float32: 0, torch.bfloat16: 2}.get(sizes[0][2], 4)
    return {
        "weights": sum(n * size for n, size, _ in sizes),
        "originals": salient * width,
        "masters": salient * masters + 16 * min(GROUP, salient),
        "gradients": salient * width,
        "optimizer": salient * 8,
        "relearner": salient * (16 + 2 * width) if relearner else 0,  # its state; the gradients and weights it stands for
        "positions": salient * 4 if salient * 4 <= KEEP else num_weights // 8,
    }


def _memory(plan: Plan, denoiser: nn.Module, activations: float, present: int) -> dict[str, float]:
    """Bytes by what holds them, and the largest sum over the stages (on the CPU with all that the process held before)."""
    config = plan.config
    density = config.saliency.density if config.saliency.method == "gradient" else 1.0
    held = training_bytes(denoiser, density, bool(lookahead_share(plan)))
    num_weights = sum(p.numel() for p in denoiser.parameters())
    rows = -(-(config.train.forget_batch_size + config.train.retain_batch_size) // config.train.accumulate)
    training = sum(held.values()) + rows * activations
    ranking = held["weights"] + 5 * num_weights + config.saliency.batch_size * activations
    on_cpu = next(denoiser.parameters()).device.type == "cpu"
    # a mask of a byte a weight stays in the host's memory from its making to the audit
    host = present - held["weights"] + num_weights if on_cpu else 0
    return {**held, "activations": rows * activations, "peak": host + max(training, ranking)}
