"""Which weights carry a concept: gradient saliency and the mask of the most salient weights (SalUn, Fan et al. 2024, eq. 4).

Everything here works on any `nn.Module`. A mask is `dict[str, BoolTensor]` over `named_parameters()`; True = may change.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from erase.files import metadata_of, write_safetensors
from erase.processes import by_rank, num_processes
from erase.reading import check_safetensors, shapes_in

logger = logging.getLogger(__name__)

Saliency = dict[str, Tensor]
Mask = dict[str, Tensor]

_CHUNK = 1 << 22  # weights looked at at a time: 4 M, so that selection needs a few MB beside the saliency


def saliency(model: nn.Module, losses: Iterable[Tensor | None]) -> Saliency:
    """`|sum of gradients|` of every parameter over the losses, at the model's present weights (float32, on its device).

    `losses` is consumed lazily, one graph at a time; the model is never stepped. Each loss should be a sum over samples (or
    batches equally large), else batches of different size weigh differently. The sign of the loss does not matter. Gradients
    that the model held before, and which parameters require them, are as before on return. Raises ValueError on a loss or
    gradient that is not finite, and when no gradient at all came back.

    Under several processes each gives its own of every `num_processes` losses (None where it has none left); they are added
    in the order in which one process would, so that the sum has the same bits.
    """
    with _gradient_sums(model) as sums:
        step = -1
        for step, loss in enumerate(losses):
            if loss is not None:
                if not torch.isfinite(loss):
                    raise ValueError(f"saliency: the loss of batch {step} is {loss.item()}; is the model sound?")
                if not loss.requires_grad:
                    raise ValueError("saliency: the loss depends on no weight; is the model frozen, or run without gradients?")
                loss.backward()
            if num_processes() > 1:
                sums.exchange()
    if step < 0:
        raise ValueError("saliency: there is no loss to measure; is the forget set empty?")
    found = {name: sums.of(name).abs_() for name in sums.parameters}
    for name, values in found.items():
        if not torch.isfinite(values).all():
            raise ValueError(f"saliency: the gradient of {name} is not finite; try --set load.dtype=float32.")
    largest = max(float(values.max()) for values in found.values() if values.numel())
    if 0 < largest < torch.finfo(torch.float32).tiny:
        raise ValueError(
            f"every gradient is all but zero (at most {largest:.1e}, below the smallest normal float): their order is noise. "
            "Do the prompts reach the model? In 16 bits gradients can vanish: try --set load.dtype=float32."
        )
    return found


class _GradientSums:
    """Float32 sums of a model's gradients; in a single process each dense gradient is freed as soon as it is complete."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, gradient: Tensor) -> None:
        have = self._sums.get(name)
        self._sums[name] = gradient.float().clone() if have is None else have.add_(gradient.float())

    def pull(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, parameter.grad = parameter.grad, None
            self.add(name, gradient)

        return hook

    def exchange(self) -> None:
        """Add every process's gradients, by rank; a process without a batch gives zeros."""
        for name, parameter in self.parameters.items():
            gradient, parameter.grad = parameter.grad, None
            for one in by_rank(torch.zeros_like(parameter) if gradient is None else gradient):
                self.add(name, one)

    def of(self, name: str) -> Tensor:
        """The sum; zeros where no gradient came back."""
        return self._sums.get(name, torch.zeros_like(self.parameters[name], dtype=torch.float32))


@contextmanager
def _gradient_sums(model: nn.Module) -> Iterator[_GradientSums]:
    """Sums of the gradients of the block's backward passes; the model's own gradients are as before afterwards."""
    sums = _GradientSums(model)
    before = {name: (p.grad, p.requires_grad) for name, p in sums.parameters.items()}
    hooks = []
    try:
        for name, parameter in sums.parameters.items():
            parameter.grad = None
            parameter.requires_grad_(True)
            if num_processes() == 1:
                hooks.append(parameter.register_post_accumulate_grad_hook(sums.pull(name)))
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in sums.parameters.items():
            parameter.grad, requires_grad = before[name]
            parameter.requires_grad_(requires_grad)


def top_mask(scores: Saliency, density: float) -> Mask:
    """The mask of the `int(density * n)` largest scores, ranked over all tensors together.

    Ties go to the earlier position, a score of zero is never chosen (then the mask has fewer, and says so in the log). Found
    by a histogram of the float bits in two passes: the same mask as a full sort at a few MB of extra memory.
    Scores must be finite and not negative; raises ValueError if they are not, or if all are zero.
    """
    if not 0 < density <= 1:  # also refuses nan
        raise ValueError(f"density is {density}; it must be above 0 and at most 1.")
    num_weights = sum(values.numel() for values in scores.values())
    wanted = int(density * num_weights)
    if wanted == 0:
        raise ValueError(f"density {density} of {num_weights} weights is less than one weight.")
    for name, values in scores.items():
        if values.numel() and not 0 <= float(values.min()) <= float(values.max()) < math.inf:  # also refuses nan
            raise ValueError(f"saliency of {name} has values that are negative or not finite.")
    num_positive = sum(int(torch.count_nonzero(values)) for values in scores.values())
    if num_positive == 0:
        raise ValueError("every gradient is zero: do the prompts reach the model, and is any of its weights trainable?")
    if num_positive < wanted:
        logger.warning("only %d of %d weights have a gradient: the mask has those.", num_positive, num_weights)
        wanted = num_positive
    threshold, num_ties = _threshold(scores, wanted)
    mask = {}
    for name, values in scores.items():
        chosen = torch.empty(values.numel(), dtype=torch.bool, device=values.device)
        for part, chunk in zip(chosen.split(_CHUNK), values.contiguous().view(-1).split(_CHUNK), strict=True):
            bits = _bits(chunk)
            torch.gt(bits, threshold, out=part)
            ties = (bits == threshold).nonzero()[:num_ties, 0]
            part[ties] = True
            num_ties -= len(ties)
        mask[name] = chosen.view(values.shape)
    return mask


def _bits(values: Tensor) -> Tensor:
    """The floats' bits as int32 (N,): for values >= 0 they sort as the floats do."""
    return (values.float() + 0.0).contiguous().view(torch.int32).view(-1)  # + 0.0 makes -0.0 a plain zero


def _threshold(scores: Saliency, wanted: int) -> tuple[int, int]:
    """(bits of the smallest chosen score, how many scores equal to it are chosen)."""

    def histogram(shift: int, keep: int | None) -> Tensor:
        counts = torch.zeros(1 << 16, dtype=torch.int64)
        for values in scores.values():
            for chunk in values.contiguous().view(-1).split(_CHUNK):
                bits = _bits(chunk)
                bits = bits if keep is None else bits[bits >> 15 == keep] & 0x7FFF
                counts += torch.bincount(bits >> shift, minlength=1 << 16).cpu()
        return counts

    def crossing(counts: Tensor, wanted: int) -> tuple[int, int]:
        above = counts.flip(0).cumsum(0).flip(0)  # above[b] = how many are in bin b or higher
        bin_index = int((above >= wanted).nonzero()[-1])
        return bin_index, wanted - int(above[bin_index] - counts[bin_index])

    high, wanted = crossing(histogram(15, None), wanted)
    low, wanted = crossing(histogram(0, high), wanted)
    return (high << 15) | low, wanted


def density_of(mask: Mask) -> float:
    """Share of True."""
    return num_salient(mask) / sum(values.numel() for values in mask.values())


def num_salient(mask: Mask) -> int:
    """Number of True."""
    return sum(int(values.sum()) for values in mask.values())


def density_by_block(mask: Mask) -> dict[str, float]:
    """Share of True per block: `down_blocks.0`, `mid_block`, ..., in the model's order."""
    totals: dict[str, list[int]] = {}
    for name, values in mask.items():
        parts = name.split(".")
        block = ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]
        entry = totals.setdefault(block, [0, 0])
        entry[0] += int(values.sum())
        entry[1] += values.numel()
    return {block: chosen / total for block, (chosen, total) in totals.items()}


def save_mask(mask: Mask, path: Path, provenance: dict[str, str]) -> None:
    """Write the mask, eight weights a byte; shapes and provenance stand in the header."""
    packed = {name: torch.from_numpy(np.packbits(values.cpu().numpy().reshape(-1))) for name, values in mask.items()}
    shapes = json.dumps({name: list(values.shape) for name, values in mask.items()})
    write_safetensors(packed, path, {**provenance, "format": "erase-mask-1", "shapes": shapes})


def load_mask(path: Path) -> tuple[Mask, dict[str, str]]:
    """(mask, provenance) as `save_mask` wrote them; raises ValueError on any other file."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            metadata = metadata_of(file)
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.pop("format", None) != "erase-mask-1":
            raise ValueError("its header does not say erase-mask-1")
        shapes = shapes_in(metadata.pop("shapes"))
        if shapes.keys() != packed.keys():
            raise ValueError("its header names other tensors than it holds")
        mask = {}
        for name, shape in shapes.items():
            count = math.prod(shape)
            if packed[name].dtype != torch.uint8 or packed[name].shape != ((count + 7) // 8,):
                raise ValueError(f"{name} does not fit its shape {shape}")
            bits = np.unpackbits(packed[name].numpy(), count=count)
            mask[name] = torch.from_numpy(bits.astype(bool)).view(shape)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a saliency mask: {error}.") from error
    return mask, metadata
