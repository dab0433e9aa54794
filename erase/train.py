"""The only training loop: a generator that yields one record per step, and resumes exactly."""

import json
import math
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from erase.best import Best, best_of
from erase.config import TrainConfig
from erase.data import TrainingData
from erase.files import Coming, metadata_of, write_in_turn
from erase.methods import METHODS
from erase.methods.base import Config, Dealt, Gradients, Method, Step, Teacher
from erase.processes import num_processes, rank, sum_counts, sum_over_processes
from erase.salient import LeanOptimizer, SalientWeights
from pipelines.family import Family

Record = dict[str, Any]
AHEAD = 8  # steps whose targets are computed while the teacher's weights are in the model


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
    """Train the (lean) salient weights in place and yield `{step, loss, ..., learning_rate, seconds}` for each step.

    Step k draws everything from a generator seeded by (seed, k), and `state` (a safetensors file written every
    `config.checkpoint_every` steps and when the generator is closed) holds values, optimizer moments and the method's memory: a
    run that was stopped and resumed ends with the same weights, and yields the records from before the stop first. Under
    several processes each takes its share of every batch, and rank 0 writes. Raises ValueError when a loss is not finite,
    before the step is taken.
    """
    functions = METHODS[method.name]  # type: ignore[attr-defined]
    optimizer = LeanOptimizer(salient, partial(torch.optim.Adam, lr=config.learning_rate, betas=(0.9, 0.99), foreach=True))
    best = best_of(salient, functions, config)
    view = _view(family, data, config)
    scaler = _LossScale(family.denoiser)
    records = _resume(state, salient, optimizer, scaler, view.memory, best) if state else []
    view = functions.prepare(method, view, salient)
    yield from records
    if functions.start and not records:
        records.append(_start(functions, method, view, salient, seed))
        yield records[-1]
    steps = config.steps if functions.rows else 0
    first, settled = _taken(records), True
    coming = _dealt_ahead(functions, method, view, salient, seed, range(first, steps), config.accumulate)
    try:
        for index in range(first, steps):
            began = time.monotonic()
            dealt = next(coming)
            record = _backward(functions, method, view, salient, dealt, scaler.value)
            _require_finite(record["loss"], "loss", index + 1, config)
            learning_rate = config.learning_rate * schedule(index, config.steps, config.warmup_steps)
            settled = False  # until the step is taken and written, a stop must not save it
            if functions.extra_gradients:
                number = (seed + 1) * 1_000_003 + 800_000 + index
                extra = functions.extra_gradients(method, view, salient, dealt, scaler.value, number)
                for key, value in sum_counts(Counter(extra)).items():
                    record[key] = record.get(key, 0.0) + value
                _require_finite(record["loss"], "loss", index + 1, config)
            _update(optimizer, scaler, learning_rate, config, index + 1)
            if best and best.due(index + 1):
                record |= best.measure(functions, method, view, seed, index + 1)
            record |= {"learning_rate": learning_rate, "seconds": round(time.monotonic() - began, 4)}
            records.append({"step": index + 1, **record})
            settled = True
            if state and (index + 1) % config.checkpoint_every == 0 and index + 1 < steps:
                _save(state, salient, optimizer, scaler, view.memory, records, best)
            yield records[-1]
        if best:
            best.put_back()
    finally:
        if state and settled and first < _taken(records) < steps:
            _save(state, salient, optimizer, scaler, view.memory, records, best)


def _view(family: Family, data: TrainingData, config: TrainConfig) -> Step:
    """What a method sees of the run; its generator is seeded for each step."""
    teacher: Teacher = torch.no_grad()(family.predict)
    return Step(family, teacher, data, config.forget_batch_size, config.retain_batch_size, torch.Generator())


def _start(functions: Method, method: Config, view: Step, salient: SalientWeights, seed: int) -> Record:
    """Do what the method does to the weights before the first step; its record."""
    assert functions.start
    began = time.monotonic()
    view.generator.manual_seed((seed + 1) * 1_000_003 + 600_000)
    figures = functions.start(method, view, salient)
    return {"step": 0, **figures, "learning_rate": 0.0, "seconds": round(time.monotonic() - began, 4)}


def _update(optimizer: LeanOptimizer, scaler: "_LossScale", learning_rate: float, config: TrainConfig, step: int) -> None:
    """One clipped optimizer step, left out where a float16 gradient overflowed."""
    norm = optimizer.gradient_norm() / scaler.value
    if scaler.overflowed(norm):
        optimizer.salient.gradients.clear()
        return
    _require_gradient(norm.item(), step, config)
    optimizer.step(learning_rate, (config.max_grad_norm / (norm + 1e-6)).clamp(max=1) / scaler.value)


def _taken(records: list[Record]) -> int:
    """How many steps the records are of."""
    return int(records[-1]["step"]) if records else 0


def _require_finite(value: float, what: str, step: int, config: TrainConfig) -> None:
    if not math.isfinite(value):
        raise ValueError(
            f"the {what} became {value} at step {step}; the state before it is kept. "
            f"Try a smaller train.learning_rate (now {config.learning_rate}). Its batch: {config.forget_batch_size} forget and "
            f"{config.retain_batch_size} retain pictures, drawn by the run's seed and the step's number."
        )


def _require_gradient(norm: float, step: int, config: TrainConfig) -> None:
    _require_finite(norm, "gradient's norm", step, config)
    if norm == 0 and step == 1:
        raise ValueError(
            "every gradient is zero at step 1, so nothing can be learned: do the forget prompts and what they become mean "
            "different things to the model, and does the loss depend on the weights of the mask?"
        )


def _dealt_ahead(
    functions: Method, method: Config, view: Step, salient: SalientWeights, seed: int, steps: range, accumulate: int
) -> Iterator[Dealt]:
    """What each of the steps is to do; the targets of a few together, so that the teacher's weights are seldom swapped in."""
    moving = getattr(method, "teacher", "frozen") == "moving"
    at_once = 1 if moving else AHEAD
    for begin in steps[::at_once]:
        coming = range(begin, min(steps.stop, begin + at_once))
        with nullcontext() if moving else salient.original():
            dealt = [_deal(functions, method, view, seed, index, accumulate) for index in coming]
        while dealt:
            yield dealt.pop(0)  # and nothing of it is held here


def _deal(functions: Method, method: Config, view: Step, seed: int, index: int, accumulate: int) -> Dealt:
    """What of a step's rows is this process's to do, in parts, with targets from the weights that are in the model now."""
    assert functions.rows
    view.generator.manual_seed((seed + 1) * 1_000_003 + 700_000 + index)
    dealt = functions.rows(method, view).split(accumulate * num_processes())[rank() :: num_processes()]
    return [(part, functions.targets(method, view, part)) for part in dealt if len(part)]


def _backward(functions: Method, method: Config, view: Step, salient: SalientWeights, dealt: Dealt, scale: float) -> Record:
    """Gradients of one step's loss, part by part; the loss and its terms over all parts of all processes."""
    assert functions.loss
    totals: Counter[str] = Counter()
    apart: tuple[Gradients, Gradients] = ({}, {})  # of forget and retain, where the method combines them itself
    several = False
    for part, target in dealt:
        loss, record = functions.loss(method, view, part, target)
        totals.update({"loss": loss.sum().item(), **record})
        if not math.isfinite(totals["loss"]):
            continue
        if loss.dim() == 0:
            (loss * scale).backward()
            continue
        several = True
        for objective, gradients in zip(loss.unbind(), apart, strict=True):
            (objective * scale).backward(retain_graph=gradients is apart[0])
            for name, gradient in salient.gradients.items():
                gradients[name] = gradient.float() + gradients.get(name, 0.0)
            salient.gradients.clear()
    if functions.combine and num_processes() > 1:  # a process without rows must take part in the sums
        several = bool(sum_counts(Counter(several=int(several)))["several"])
    if several:
        salient.gradients.update(_combined(functions, method, salient, apart, scale))
    return dict(sum_counts(totals))


def _combined(
    functions: Method, method: Config, salient: SalientWeights, apart: tuple[Gradients, Gradients], scale: float
) -> Gradients:
    """The method's own mixture of the two gradients over all processes; each process holds its even share of it."""
    assert functions.combine
    whole: list[Gradients] = []
    for part in apart:
        found = {n: part.get(n, torch.zeros_like(o, dtype=torch.float32)) for n, o in salient.originals.items()}
        whole.append({name: sum_over_processes(gradient) / scale for name, gradient in found.items()})
    mixed = functions.combine(method, *whole)
    return {name: gradient * (scale / num_processes()) for name, gradient in mixed.items()}


FIRST_SCALE = 2.0**12


class _LossScale:
    """Dynamic loss scaling of a float16 denoiser, whose small gradients would vanish; 1 for other dtypes.

    Halved when a gradient overflows (that step is not taken), doubled after 200 steps without.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.half = next(denoiser.parameters()).dtype == torch.float16
        self.value = FIRST_SCALE if self.half else 1.0
        self.since = 0

    def overflowed(self, norm: Tensor) -> bool:
        """Whether the step must be left out; adapts the scale."""
        if not self.half or self.value < 2.0**-10:
            return False
        bad = not bool(torch.isfinite(norm))
        self.since = 0 if bad else self.since + 1
        if bad or self.since == 200:
            self.value, self.since = self.value * (0.5 if bad else 2.0), 0
        return bad


def schedule(index: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, flat, then a linear fall to a tenth over the last third."""
    warm = min(1.0, (index + 1) / max(1, warmup_steps))
    tail = max(0.0, (index / steps - 2 / 3) * 3)
    return warm * (1 - 0.9 * tail)


def _save(
    path: Path,
    salient: SalientWeights,
    optimizer: LeanOptimizer,
    scaler: _LossScale,
    memory: dict[str, Tensor],
    records: list[Record],
    best: Best | None,
) -> None:
    if rank():
        return
    tensors: dict[str, Tensor | Coming] = {f"memory/{name}": values for name, values in memory.items()}
    for name, value in salient.values.items():
        moments = optimizer.state[name].get(value)
        if moments is None:
            return  # no step was taken yet: every one overflowed
        shape = tuple(salient.originals[name].shape)
        tensors[f"value/{name}"] = Coming(shape, torch.float32, partial(salient.master, name))  # one at a time on the card
        tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
    taken = str(int(next(iter(optimizer.state[name].values()))["step"]))
    header = {"format": "erase-state-1", "records": json.dumps(records), "taken": taken}
    header["loss_scale"] = json.dumps([scaler.value, scaler.since])
    if best and best.facts:
        tensors |= {f"best/{name}": values for name, values in best.values.items()}
        header["best"] = json.dumps(best.facts)
    write_in_turn(tensors, path, header)


def _resume(
    path: Path,
    salient: SalientWeights,
    optimizer: LeanOptimizer,
    scaler: _LossScale,
    memory: dict[str, Tensor],
    best: Best | None,
) -> list[Record]:
    """Records of the steps already done, with values, moments, loss scale and memory put in place if there is a state file."""
    if not path.is_file():
        return []
    with safe_open(path, "pt") as file:
        metadata = metadata_of(file)
        if "loss_scale" in metadata:
            scaler.value, scaler.since = json.loads(metadata["loss_scale"])
        with torch.no_grad():
            for name, value in salient.values.items():
                master = salient.master(name)
                salient.set_master(name, file.get_tensor(f"value/{name}").to(master))
                optimizer.state[name][value] = {
                    "step": torch.tensor(float(metadata["taken"])),
                    "exp_avg": file.get_tensor(f"exp_avg/{name}").to(master),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}").to(master),
                }
        for key in file.keys():  # noqa: SIM118
            if key.startswith("memory/"):
                memory[key.removeprefix("memory/")] = file.get_tensor(key).to(master.device)
        if best and "best" in metadata:
            best.facts = json.loads(metadata["best"])
            best.values = {
                name: file.get_tensor(f"best/{name}").to(values.device) for name, values in salient.originals.items()
            }
    records: list[Record] = json.loads(metadata["records"])
    return records
