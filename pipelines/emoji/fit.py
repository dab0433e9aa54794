"""The loop that trains every part of the embedded model: AdamW, warm-up and final decay, EMA, exact resume."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn


def world() -> tuple[int, int]:
    """Rank and number of processes; (0, 1) when training is not distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_of(batch_size: int) -> int:
    """How many of a batch's samples this process draws."""
    return batch_size // world()[1]


LossFn = Callable[[torch.Generator, int], tuple[torch.Tensor, dict[str, float]]]


def fit(
    modules: dict[str, nn.Module],
    loss_fn: LossFn,
    *,
    out: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    ema: float = 0.999,
    decay_from: float = 0.8,
    log_every: int = 100,
    checkpoint_every_s: float = 300.0,
) -> None:
    """Train the modules in place for `steps` steps and leave their exponential moving average in them.

    Step k draws everything from a generator seeded by (seed, k): a run resumed from `out`'s checkpoint ends with the
    same weights as an uninterrupted one. With several processes each draws its own
    share of the batch and gradients are averaged; rank 0 writes. `out`.jsonl gets a line every `log_every` steps. The
    learning rate is flat after 100 steps of warm-up and falls linearly to 2 % from `decay_from * steps` on.
    """
    params = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}
    values: list[torch.Tensor] = list(params.values())
    optimizer = torch.optim.AdamW(values, learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    averages = [p.detach().clone() for p in values]
    rank, processes = world()
    start, elapsed_s = _resume(out, params, averages, optimizer)
    generator = torch.Generator()
    totals: defaultdict[str, list[float]] = defaultdict(list)
    began = saved = time.monotonic()
    for step in range(start, steps):
        generator.manual_seed(seed * 1_000_003 + step + rank * 500_009)
        tail = max(0.0, (step / steps - decay_from) / (1 - decay_from))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * (1 - 0.98 * tail)
        loss, record = loss_fn(generator, step)
        if not math.isfinite(loss.item()):
            raise ValueError(f"{out.name}: the loss is {loss.item()} at step {step}; the last checkpoint is kept.")
        loss.backward()
        if processes > 1:
            _average_gradients(values, processes)
        nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, values, 1 - min(ema, (step + 1) / (step + 11)))
        for key, value in record.items():
            totals[key].append(value)
        now = time.monotonic()
        if rank == 0 and ((step + 1) % log_every == 0 or step + 1 == steps):
            seconds = elapsed_s + now - began
            means = {key: round(sum(items) / len(items), 5) for key, items in totals.items()}
            line = {"step": step + 1, "samples": (step + 1) * batch_size, "seconds": round(seconds), **means}
            with out.with_suffix(".jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(out.name, json.dumps(line), flush=True)
            totals.clear()
        if rank == 0 and (now - saved > checkpoint_every_s or step + 1 == steps):
            _save(out, params, averages, optimizer, step + 1, elapsed_s + now - began)
            saved = now
    with torch.no_grad():
        for parameter, average in zip(values, averages, strict=True):
            parameter.copy_(average)


def _average_gradients(values: list[torch.Tensor], processes: int) -> None:
    gradients = [value.grad for value in values if value.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def _save(
    out: Path,
    params: dict[str, nn.Parameter],
    averages: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for (name, parameter), average in zip(params.items(), averages, strict=True):
        state = optimizer.state[parameter]
        rows = {"value": parameter, "ema": average, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        tensors |= {f"{key}/{name}": tensor.detach().contiguous() for key, tensor in rows.items()}
    temporary = out.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
    temporary.replace(out.with_suffix(".safetensors"))


def _resume(
    out: Path, params: dict[str, nn.Parameter], averages: list[torch.Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """(first step to do, seconds spent before), with the checkpoint's values put in place if there is one."""
    from safetensors import safe_open

    path = out.with_suffix(".safetensors")
    if not path.is_file():
        return 0, 0.0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    with torch.no_grad():
        for (name, parameter), average in zip(params.items(), averages, strict=True):
            parameter.copy_(tensors[f"value/{name}"])
            average.copy_(tensors[f"ema/{name}"])
            like = parameter.detach()
            optimizer.state[parameter] = {
                "step": torch.tensor(float(metadata["step"])),
                "exp_avg": torch.empty_like(like).copy_(tensors[f"exp_avg/{name}"]),
                "exp_avg_sq": torch.empty_like(like).copy_(tensors[f"exp_avg_sq/{name}"]),
            }
    return int(metadata["step"]), float(metadata["seconds"])
