"""Patches on a model in memory: stacked, dialled while it draws, and undone bit for bit."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erase.patch import Patch, positions_of, targets
from erase.precision import exact_device
from erase.salient import KEEP


class AppliedPatch:
    """One patch or a stack of them on a model in memory: `dial` their strengths live, `undo` them bit for bit.

    A weight becomes base + sum over the patches of strength * (value - base), computed in float64 from the base's value and
    rounded to float32 and then to the model's dtype. A weight that one patch of strength 1 changes alone is that patch's value
    bit for bit; one that no patch of strength above 0 changes is the base's. Where three or more patches meet, their order may
    change the last bit of the float64 sum, hence now and then the last bit of the weight; otherwise order does not matter.

    Raises ValueError if a patch names a tensor that the model lacks or has in another shape, or a strength is out of range.
    """

    def __init__(self, model: nn.Module, patches: Patch | Sequence[Patch], strengths: float | Sequence[float] = 1.0) -> None:
        self.patches = [patches] if isinstance(patches, Patch) else list(patches)
        self._weights: dict[str, _PatchedTensor] = {}
        parameters = {name: p for patch in self.patches for name, p in targets(patch, model).items()}
        few = 4 * sum(len(values) for patch in self.patches for values in patch.values.values()) <= KEEP
        for name, parameter in parameters.items():
            layers = [
                (k, partial(patch.positions.__getitem__, name), patch.values[name])
                for k, patch in enumerate(self.patches)
                if name in patch.shapes
            ]
            self._weights[name] = _PatchedTensor(parameter, layers, few)
        self.strengths = (0.0,) * len(self.patches)
        self.dial(strengths)

    @torch.no_grad()
    def dial(self, strengths: float | Sequence[float], which: int | None = None) -> None:
        """Set the strength of every patch (one number for all, or one each), or of patch number `which` alone."""
        wanted = list(self.strengths)
        if isinstance(strengths, Sequence):
            if len(strengths) != len(wanted):
                raise ValueError(f"there are {len(strengths)} strengths for {len(wanted)} patches; give one for each.")
            wanted = list(strengths)
        else:
            for k in range(len(wanted)) if which is None else (which,):
                wanted[k] = strengths
        for strength in wanted:
            if not 0 <= strength <= 1.5:  # also refuses nan
                raise ValueError(f"strength is {strength}; it must be between 0 and 1.5.")
        for weights in self._weights.values():
            weights.write(wanted)
        self.strengths = tuple(float(strength) for strength in wanted)

    def undo(self) -> None:
        """Put the original weights back."""
        self.dial(0.0)

    def close(self) -> None:
        """Put the original weights back for good, and hold nothing more."""
        self.undo()
        self.patches, self._weights, self.strengths = [], {}, ()

    def undo_patch(self, provenance: dict[str, str]) -> Patch:
        """A patch that, at strength 1, turns the model as it is now into its base: the originals as values, in its dtype."""
        values = {name: weights.originals.cpu() for name, weights in self._weights.items()}
        shapes = {name: tuple(weights.parameter.shape) for name, weights in self._weights.items()}
        return Patch(values, positions_of(lambda name: self._weights[name].positions(), shapes, values), shapes, provenance)


class _PatchedTensor:
    """A tensor's patched weights: their positions, what they were, and which rows of them each patch changes to what.

    All of it stays on the CPU, and goes to the tensor's device for the time of a `write`: a card full of a model has no room
    for the base of all its salient weights. Each layer: a patch's number, its positions on request, its values. `few`: whether
    where they lie in memory is remembered; else it is found at each use.
    """

    def __init__(
        self, parameter: nn.Parameter, layers: Sequence[tuple[int, Callable[[], Tensor], Tensor]], few: bool = True
    ) -> None:
        self.parameter, self._few = parameter, few
        self._found: tuple[Any, Tensor] | None = None
        if len(layers) == 1:
            self.positions = layers[0][1]
            self._layers: list[tuple[int, Tensor | None, Tensor]] = [(layers[0][0], None, layers[0][2])]
        else:
            row_of = torch.full((parameter.numel(),), -1, dtype=torch.int32)
            for _, positions, _ in layers:
                row_of[positions().long()] = 0
            union = (row_of == 0).nonzero()[:, 0]
            row_of[union] = torch.arange(len(union), dtype=torch.int32)
            union = union.int() if parameter.numel() < 1 << 31 else union
            self.positions = lambda: union
            self._layers = [(k, row_of[positions().long()], values) for k, positions, values in layers]
        self.originals = self._flat().index_select(0, self._places().to(parameter.device)).cpu()

    def _places(self) -> Tensor:
        """Where the positions lie in memory (K,) int64, which depends on the memory format."""
        layout = self.parameter.stride()
        if self._found is None or self._found[0] != layout:
            places = _places(self.positions(), self.parameter)
            if not self._few or self.parameter.is_contiguous():  # then they are the positions
                return places.long()
            self._found = layout, places
        return self._found[1].long()

    def _flat(self) -> Tensor:
        """The tensor's memory as one row, whatever its format: writing to it needs no copy of the tensor."""
        parameter = self.parameter.detach()
        extent = 1 + sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
        return parameter.as_strided((extent,), (1,))

    def write(self, strengths: Sequence[float]) -> None:
        """Put the stack's weights into the tensor."""
        here = self.parameter.device
        exact = exact_device(here)
        active = [(strengths[k], rows, values) for k, rows, values in self._layers if strengths[k] != 0]
        there = [(s, None if rows is None else rows.long().to(exact), values.to(exact)) for s, rows, values in active]
        stacked = _stacked(self.originals.to(exact), there)
        self._flat().index_copy_(0, self._places().to(here), stacked.to(here, self.parameter.dtype))


def _stacked(originals: Tensor, active: list[tuple[float, Tensor | None, Tensor]]) -> Tensor:
    """The weights (K,) under the patches (strength, rows, values) that are on; rows None: all of them."""
    if not active:
        return originals
    if active[0][0] == 1 and active[0][1] is None and len(active) == 1:
        return active[0][2]
    base = originals.double()
    if len(active) == 1 and active[0][1] is None:  # the only patch here: no rows to look up, nothing to add up
        strength, _, values = active[0]
        return (values.double() - base).mul_(strength).add_(base).float()
    change, layers = torch.zeros_like(base), torch.zeros(len(base), dtype=torch.int8, device=base.device)
    rows_of = [torch.arange(len(base), device=base.device) if rows is None else rows for _, rows, _ in active]
    for (strength, _, values), rows in zip(active, rows_of, strict=True):
        change.index_add_(0, rows, (values.double() - base[rows]).mul_(strength))
        layers[rows] += 1
    result = (base + change).float().to(originals.dtype)
    for (strength, _, values), rows in zip(active, rows_of, strict=True):
        if strength == 1:
            alone = layers[rows] == 1
            result[rows[alone]] = values[alone].to(result.dtype)
    return torch.where(layers == 0, originals, result)


def _places(positions: Tensor, parameter: Tensor) -> Tensor:
    """Where each position of the flattened tensor lies in its memory; int32 where that is enough."""
    if parameter.is_contiguous():
        return positions
    runs: list[tuple[int, int]] = []  # (size, stride) from the last dimension on; dimensions that follow one another are one
    for size, stride in zip(reversed(parameter.shape), reversed(parameter.stride()), strict=True):
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    rest: Any = positions.numpy().astype(np.int32 if parameter.numel() < 2**31 else np.int64)  # numpy divides 4 times as fast
    places: Any = np.zeros_like(rest)
    for size, stride in runs[:-1]:
        quotient = rest // size
        places += (rest - quotient * size) * stride
        rest = quotient
    return torch.from_numpy(places + rest * runs[-1][1])
