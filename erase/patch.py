"""The erasure as a small file: the salient weights' new values, to apply, stack, dial, move to another base, and undo."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from erase.files import metadata_of, write_safetensors
from erase.precision import exact_device
from erase.reading import check_safetensors, shapes_in
from erase.salient import SalientWeights

VALUES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMATS = ("erase-patch-1", "erase-patch-2")
"""1: mask and values. 2: the base's values at the same positions as well."""


@dataclass(frozen=True)
class Patch:
    """New values (K,) at sorted positions (K,) int64 of each flattened tensor, and where they come from.

    Values and not differences are kept, so that strength 1 is the erased model bit for bit.
    """

    values: dict[str, Tensor]
    positions: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    provenance: dict[str, str]
    originals: dict[str, Tensor] | None = None
    """The base's values (K,) at the positions, in the base's dtype; needed only to move the patch to another base."""


def patch_of(salient: SalientWeights, model: nn.Module, provenance: dict[str, str]) -> Patch:
    """The patch that a training run made."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in salient.values}
    values = {name: salient.master(name).cpu().clone() for name in salient.values}
    return Patch(values, {name: salient.index(name).cpu() for name in values}, shapes, provenance)


def save_patch(patch: Patch, path: Path, dtype: torch.dtype | None = torch.float32) -> None:
    """Write values in the dtype (None: their own) and positions as packed bits; float32 keeps the erased model bit for bit.

    Raises ValueError if a value does not fit the dtype.
    """
    tensors = {}
    for name, shape in patch.shapes.items():
        chosen = np.zeros(math.prod(shape), bool)
        chosen[patch.positions[name].numpy()] = True
        tensors[f"mask.{name}"] = torch.from_numpy(np.packbits(chosen))
        values = patch.values[name].to(dtype or patch.values[name].dtype)
        if torch.isinf(values).any() and not torch.isinf(patch.values[name]).any():
            raise ValueError(f"{name} has values too large for {str(values.dtype)[6:]}; give --dtype bfloat16 or float32.")
        tensors[f"values.{name}"] = values
        if patch.originals is not None:
            tensors[f"originals.{name}"] = patch.originals[name]
    shapes = json.dumps({name: list(shape) for name, shape in patch.shapes.items()})
    header = {"format": FORMATS[patch.originals is not None], "shapes": shapes}
    write_safetensors(tensors, path, {**patch.provenance, **header})


def load_patch(path: Path) -> Patch:
    """The patch in a file; raises ValueError on any other file."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            metadata = metadata_of(file)
            if (version := metadata.pop("format", None)) not in FORMATS:
                raise ValueError(_other(file))
            shapes = shapes_in(metadata.pop("shapes"))
            values, positions, originals = {}, {}, {}
            for name, shape in shapes.items():
                positions[name] = _unpacked(file.get_tensor(f"mask.{name}").numpy(), name, shape)
                values[name] = _checked(file.get_tensor(f"values.{name}"), name, positions[name]).float()
                if version == FORMATS[1]:
                    originals[name] = _checked(file.get_tensor(f"originals.{name}"), name, positions[name])
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{path} is not an erasure patch: {error}.") from error
    return Patch(values, positions, shapes, metadata, originals if version == FORMATS[1] else None)


def patch_provenance(path: Path) -> dict[str, str]:
    """What a patch's header says of where it comes from, without reading its weights; raises ValueError on any other file."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            metadata = metadata_of(file)
            if metadata.pop("format", None) not in FORMATS:
                raise ValueError(_other(file))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not an erasure patch: {error}.") from error
    return {key: value for key, value in metadata.items() if key != "shapes"}


def _other(file: Any) -> str:
    names = list(file.keys())
    if any("lora" in name.lower() for name in names):
        return "it is a LoRA, which goes into an interface's own LoRA folder"
    if any(name.startswith(("model.diffusion_model.", "down_blocks.", "unet.")) for name in names):
        return "it is a whole model; give the patch.safetensors of a run"
    return f"its header says neither {' nor '.join(FORMATS)}"


def _unpacked(packed: np.ndarray[Any, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    if packed.size != (math.prod(shape) + 7) // 8:
        raise ValueError(f"the mask of {name} does not fit its shape {shape}")
    return torch.from_numpy(np.flatnonzero(np.unpackbits(packed, count=math.prod(shape))))


def _checked(values: Tensor, name: str, positions: Tensor) -> Tensor:
    if values.dtype not in VALUES or values.shape != positions.shape or not torch.isfinite(values).all():
        raise ValueError(f"the values of {name} do not fit its mask or are not finite")
    return values


def targets(patch: Patch, model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters that the patch changes; raises ValueError if one is not there or has another shape."""
    parameters = dict(model.named_parameters())
    for name, shape in patch.shapes.items():
        if name not in parameters or tuple(parameters[name].shape) != shape:
            raise ValueError(f"the patch is for another model: it changes {name} {shape}, which this model lacks.")
    return {name: parameters[name] for name in patch.shapes}


def with_originals(patch: Patch, base: nn.Module) -> Patch:
    """The patch with its base's values at the same positions."""
    found = {name: _gather(parameter, patch.positions[name]) for name, parameter in targets(patch, base).items()}
    return replace(patch, originals=found)


def _gather(parameter: Tensor, positions: Tensor) -> Tensor:
    return parameter.detach().reshape(-1).index_select(0, positions.to(parameter.device)).cpu()


def rebased(patch: Patch, base: nn.Module) -> tuple[Patch, dict[str, float]]:
    """(the patch for another base: that base's values + (values - originals); how far the two bases are apart).

    Where the two bases are equal the values stay bit for bit. The report is over the patch's weights: `num_weights`,
    `different` (share in which the bases differ), `distance` (RMS between the bases over the RMS that the patch moves).
    Raises ValueError if the patch holds no originals or does not fit.
    """
    if patch.originals is None:
        raise ValueError(
            "the patch does not contain the values of its own base, so its differences are unknown; give the base as "
            "--patch-base, or make the patch with `erase export RUN --to patch --with-originals`."
        )
    values, num_weights, num_different, apart, moved = {}, 0, 0, 0.0, 0.0
    for name, parameter in targets(patch, base).items():
        here, there = _gather(parameter, patch.positions[name]).double(), patch.originals[name].double()
        change = patch.values[name].double() - there
        values[name] = torch.where(here == there, patch.values[name], (here + change).float())
        num_weights += len(here)
        num_different += int((here != there).sum())
        apart += float((here - there).square().sum())
        moved += float(change.square().sum())
    report = {
        "num_weights": num_weights,
        "different": num_different / max(1, num_weights),
        "distance": math.sqrt(apart / moved) if moved else math.inf,
    }
    return replace(patch, values=values, originals=None), report


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over every parameter's name, dtype, shape and bits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class AppliedPatch:
    """One patch or a stack of them on a model in memory: `dial` their strengths live, `undo` them bit for bit.

    A weight becomes base + sum over the patches of strength * (value - base), computed in float64 from the base's value and
    rounded to float32 and then to the model's dtype. A weight that one patch of strength 1 changes alone is that patch's value
    bit for bit; one that no patch of strength above 0 changes is the base's. Where three or more patches meet, their order may
    change the last bit of the float64 sum, hence now and then the last bit of the weight; otherwise order does not matter.

    Raises ValueError if a patch names a tensor that the model lacks or has in another shape, or a strength is out of range.
    """

    def __init__(self, model: nn.Module, patches: Patch | Sequence[Patch], strengths: float | Sequence[float] = 1.0) -> None:
        self._patches = [patches] if isinstance(patches, Patch) else list(patches)
        self._weights: dict[str, _PatchedTensor] = {}
        parameters = {name: p for patch in self._patches for name, p in targets(patch, model).items()}
        for name, parameter in parameters.items():
            layers = [
                (k, patch.positions[name], patch.values[name]) for k, patch in enumerate(self._patches) if name in patch.shapes
            ]
            self._weights[name] = _PatchedTensor(parameter, layers)
        self.strengths = (0.0,) * len(self._patches)
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

    def undo_patch(self, provenance: dict[str, str]) -> Patch:
        """A patch that, at strength 1, turns the model as it is now into its base: the originals as values, in its dtype."""
        values = {name: weights.originals.cpu() for name, weights in self._weights.items()}
        positions = {name: weights.positions.cpu() for name, weights in self._weights.items()}
        return Patch(values, positions, {n: tuple(w.parameter.shape) for n, w in self._weights.items()}, provenance)


class _PatchedTensor:
    """A tensor's patched weights: their positions, what they were, and which rows of them each patch changes to what.

    All of it stays on the CPU, and goes to the tensor's device for the time of a `write`: a card full of a model has no room
    for the base of all its salient weights.
    """

    def __init__(self, parameter: nn.Parameter, layers: list[tuple[int, Tensor, Tensor]]) -> None:
        self.parameter = parameter
        if len(layers) == 1:
            self.positions = layers[0][1]
            self._layers: list[tuple[int, Tensor | None, Tensor]] = [(layers[0][0], None, layers[0][2])]
        else:
            row_of = torch.full((parameter.numel(),), -1, dtype=torch.int32)
            for _, positions, _ in layers:
                row_of[positions] = 0
            self.positions = (row_of == 0).nonzero()[:, 0]
            row_of[self.positions] = torch.arange(len(self.positions), dtype=torch.int32)
            self._layers = [(k, row_of[positions].long(), values) for k, positions, values in layers]
        self._settle()
        self.originals = self._flat().index_select(0, self._places.to(parameter.device)).cpu()

    def _settle(self) -> None:
        """Find where the positions lie in memory, which depends on the device and the memory format."""
        parameter = self.parameter
        self._layout = (parameter.device, parameter.stride())
        self._places = _places(self.positions, parameter)

    def _flat(self) -> Tensor:
        """The tensor's memory as one row, whatever its format: writing to it needs no copy of the tensor."""
        parameter = self.parameter.detach()
        extent = 1 + sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
        return parameter.as_strided((extent,), (1,))

    def write(self, strengths: Sequence[float]) -> None:
        """Put the stack's weights into the tensor."""
        if self._layout != (self.parameter.device, self.parameter.stride()):
            self._settle()
        here = self.parameter.device
        exact = exact_device(here)
        active = [(strengths[k], rows, values) for k, rows, values in self._layers if strengths[k] != 0]
        stacked = _stacked(self.originals.to(exact), [(s, r if r is None else r.to(exact), v.to(exact)) for s, r, v in active])
        self._flat().index_copy_(0, self._places.to(here), stacked.to(here, self.parameter.dtype))


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
    """Where each position of the flattened tensor lies in its memory."""
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
    return torch.from_numpy(places + rest * runs[-1][1]).long()
