"""The only training loop: a generator that yields one record per step, and resumes exactly."""

import json
import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor

from erase.config import TrainConfig
from erase.data import TrainingData
from erase.files import metadata_of, write_safetensors
from erase.methods import LOSSES
from erase.methods.base import Config, Step
from erase.salient import SalientWeights
from pipelines.family import Conditioning, Family

Record = dict[str, Any]


def train(
    family: Family,
    salient: SalientWeights,
    data: TrainingData,
    method: Config,
    config: TrainConfig,
    *,
    seed: int,
    state: Path | None = None,
) -> Generator[Record, None, None]:
    """Train the salient weights in place and yield `{step, loss, ..., learning_rate, seconds}` for each step.

    Step k draws everything from a generator seeded by (seed, k), and `state` (a safetensors file written every
    `config.checkpoint_every` steps and when the generator is closed) holds values and optimizer moments: a run that was
    stopped and resumed ends with the same weights, and yields the records from before the stop first. Raises ValueError
    when a loss is not finite, before the step is taken.
    """
    accelerator = Accelerator(cpu=next(family.denoiser.parameters()).device.type == "cpu")
    optimizer = torch.optim.Adam(salient.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), foreach=True)
    loss_fn = LOSSES[method.name]  # type: ignore[attr-defined]
    generator = torch.Generator()
    records = _resume(state, salient, optimizer) if state else []
    moving = getattr(method, "teacher", "frozen") == "moving"

    @torch.no_grad()
    def teacher(noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if moving:
            return family.predict(noisy_latents, timesteps, conditioning)
        with salient.original():
            return family.predict(noisy_latents, timesteps, conditioning)

    view = Step(family, teacher, data, config.forget_batch_size, config.retain_batch_size, generator)
    yield from records
    first, settled = len(records), True
    try:
        for index in range(first, config.steps):
            began = time.monotonic()
            generator.manual_seed((seed + 1) * 1_000_003 + 700_000 + index)
            learning_rate = config.learning_rate * schedule(index, config.steps, config.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            loss, record = loss_fn(method, view)
            if not math.isfinite(loss.item()):
                raise ValueError(
                    f"the loss became {loss.item()} at step {index + 1}; the state before it is kept. "
                    f"Try a smaller train.learning_rate (now {config.learning_rate})."
                )
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(salient.parameters(), config.max_grad_norm)
            if not torch.isfinite(norm):
                raise ValueError(f"the gradient is not finite at step {index + 1}; the state before it is kept.")
            settled = False  # until the step is taken and written, a stop must not save it
            optimizer.step()
            optimizer.zero_grad()
            salient.write()
            seconds = round(time.monotonic() - began, 4)
            records.append(
                {"step": index + 1, "loss": loss.item(), **record, "learning_rate": learning_rate, "seconds": seconds}
            )
            settled = True
            if state and len(records) % config.checkpoint_every == 0 and len(records) < config.steps:
                _save(state, salient, optimizer, records)
            yield records[-1]
    finally:
        if state and settled and first < len(records) < config.steps:
            _save(state, salient, optimizer, records)


def schedule(index: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, flat, then a linear fall to a tenth over the last third."""
    warm = min(1.0, (index + 1) / max(1, warmup_steps))
    tail = max(0.0, (index / steps - 2 / 3) * 3)
    return warm * (1 - 0.9 * tail)


def _save(path: Path, salient: SalientWeights, optimizer: torch.optim.Optimizer, records: list[Record]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, value in salient.values.items():
        moments = optimizer.state[value]
        rows = {"value": value.detach(), "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
        tensors |= {f"{key}/{name}": tensor for key, tensor in rows.items()}
    write_safetensors(tensors, path, {"format": "erase-state-1", "records": json.dumps(records)})


def _resume(path: Path, salient: SalientWeights, optimizer: torch.optim.Optimizer) -> list[Record]:
    """Records of the steps already done, with values and moments put in place if there is a state file."""
    if not path.is_file():
        return []
    with safe_open(path, "pt") as file:
        records: list[Record] = json.loads(metadata_of(file)["records"])
        with torch.no_grad():
            for name, value in salient.values.items():
                value.copy_(file.get_tensor(f"value/{name}"))
                optimizer.state[value] = {
                    "step": torch.tensor(float(len(records))),
                    "exp_avg": file.get_tensor(f"exp_avg/{name}"),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}"),
                }
    salient.write()
    return records
