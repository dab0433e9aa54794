"""The erasure as a small file: the salient weights' new values, to write into a model or move to another base."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from erase.files import metadata_of, write_safetensors
from erase.reading import check_safetensors, shapes_in
from erase.salient import KEEP, SalientWeights, scatter

VALUES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMATS = ("erase-patch-1", "erase-patch-2")
"""1: mask and values. 2: the base's values at the same positions as well."""


class PackedPositions(Mapping[str, Tensor]):
    """Sorted positions (K,) of each flattened tensor: kept as int32 where all are few, else the mask's bits, read at each use.

    `bits`: each tensor's mask, packed; `sizes`: how many weights it has; `num`: how many positions there are in all.
    """

    def __init__(self, bits: Mapping[str, np.ndarray[Any, Any]], sizes: Mapping[str, int], num: int) -> None:
        self._bits, self._sizes = dict(bits), dict(sizes)
        self._few: dict[str, Tensor] = {}
        if 4 * num <= KEEP and max(self._sizes.values(), default=0) < 1 << 31:
            self._few = {name: self._read(name).int() for name in self._bits}
            self._bits = {}

    def _read(self, name: str) -> Tensor:
        chosen = np.unpackbits(self._bits[name], count=self._sizes[name]).view(np.bool_)
        return torch.from_numpy(np.flatnonzero(chosen))

    def __getitem__(self, name: str) -> Tensor:
        return self._few[name] if name in self._few else self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def positions_of(
    of: Callable[[str], Tensor], shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Tensor]
) -> PackedPositions:
    """The positions that `of` a tensor's name gives, one tensor at a time."""
    sizes = {name: math.prod(shapes[name]) for name in values}
    return PackedPositions({n: packed(of(n), sizes[n]) for n in values}, sizes, sum(map(len, values.values())))


def packed(positions: Tensor, size: int) -> np.ndarray[Any, Any]:
    """A tensor's mask as bits."""
    chosen = np.zeros(size, bool)
    chosen[positions.cpu().numpy()] = True
    return np.packbits(chosen)


@dataclass(frozen=True)
class Patch:
    """New values (K,) at sorted positions (K,) int of each flattened tensor, and where they come from.

    Values and not differences are kept, so that strength 1 is the erased model bit for bit.
    """

    values: dict[str, Tensor]
    positions: Mapping[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    provenance: dict[str, str]
    originals: dict[str, Tensor] | None = None
    """The base's values (K,) at the positions, in the base's dtype; needed only to move the patch to another base."""


def patch_of(salient: SalientWeights, model: nn.Module, provenance: dict[str, str]) -> Patch:
    """The patch that a training run made."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in salient.values}
    values = {name: salient.master(name).cpu().clone() for name in salient.values}
    return Patch(values, positions_of(salient.index, shapes, values), shapes, provenance)


def save_patch(patch: Patch, path: Path, dtype: torch.dtype | None = torch.float32) -> None:
    """Write values in the dtype (None: their own) and positions as packed bits; float32 keeps the erased model bit for bit.

    Raises ValueError if a value does not fit the dtype.
    """
    tensors = {}
    for name, shape in patch.shapes.items():
        tensors[f"mask.{name}"] = torch.from_numpy(packed(patch.positions[name], math.prod(shape)))
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
            values, masks, originals = {}, {}, {}
            for name, shape in shapes.items():
                masks[name] = _bits(file.get_tensor(f"mask.{name}").numpy(), name, shape)
                num = int(np.unpackbits(masks[name], count=math.prod(shape)).sum(dtype=np.int64))
                values[name] = _checked(file.get_tensor(f"values.{name}"), name, num).float()
                if version == FORMATS[1]:
                    originals[name] = _checked(file.get_tensor(f"originals.{name}"), name, num)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{path} is not an erasure patch: {error}.") from error
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    positions = PackedPositions(masks, sizes, sum(map(len, values.values())))
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
    if metadata_of(file).get("format") == "erase-mask-1":
        return "it is a run's mask; give the patch.safetensors beside it"
    if any("lora" in name.lower() for name in names):
        return "it is a LoRA, which goes into an interface's own LoRA folder"
    if any(name.startswith(("model.diffusion_model.", "down_blocks.", "unet.")) for name in names):
        return "it is a whole model; give the patch.safetensors of a run"
    return f"its header says neither {' nor '.join(FORMATS)}"


def _bits(mask: np.ndarray[Any, Any], name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if mask.size != (math.prod(shape) + 7) // 8:
        raise ValueError(f"the mask of {name} does not fit its shape {shape}")
    return mask


def _checked(values: Tensor, name: str, num: int) -> Tensor:
    if values.dtype not in VALUES or values.shape != (num,) or not torch.isfinite(values).all():
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


@torch.no_grad()
def put(patch: Patch, model: nn.Module) -> None:
    """Write the patch into the model for good, at strength 1: unlike of an `AppliedPatch`, nothing is kept to undo it by."""
    for name, parameter in targets(patch, model).items():
        here = parameter.device
        scatter(parameter.detach(), patch.positions[name].long().to(here), patch.values[name].to(here))
