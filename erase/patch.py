"""The erasure as a small file: the salient weights' new values, to apply, dial and undo."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from erase.files import metadata_of, write_safetensors
from erase.salient import SalientWeights

FORMAT = "erase-patch-1"


@dataclass(frozen=True)
class Patch:
    """New values (K,) at sorted positions (K,) int64 of each flattened tensor, and where they come from.

    Values and not differences are kept, so that strength 1 is the erased model bit for bit.
    """

    values: dict[str, Tensor]
    positions: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    provenance: dict[str, str]


def patch_of(salient: SalientWeights, model: nn.Module, provenance: dict[str, str]) -> Patch:
    """The patch that a training run made."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in salient.values}
    values = {name: salient.master(name).cpu().clone() for name in salient.values}
    return Patch(values, {name: salient.index(name).cpu() for name in values}, shapes, provenance)


def save_patch(patch: Patch, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write values in the dtype and positions as packed bits; float32 keeps the erased model bit for bit."""
    tensors = {}
    for name, shape in patch.shapes.items():
        chosen = np.zeros(math.prod(shape), bool)
        chosen[patch.positions[name].numpy()] = True
        tensors[f"mask.{name}"] = torch.from_numpy(np.packbits(chosen))
        tensors[f"values.{name}"] = patch.values[name].to(dtype)
    shapes = json.dumps({name: list(shape) for name, shape in patch.shapes.items()})
    write_safetensors(tensors, path, {**patch.provenance, "format": FORMAT, "shapes": shapes})


def load_patch(path: Path) -> Patch:
    """The patch in a file; raises ValueError on any other file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = metadata_of(file)
            if metadata.pop("format", None) != FORMAT:
                raise ValueError(f"its header does not say {FORMAT}")
            shapes = {name: tuple(shape) for name, shape in json.loads(metadata.pop("shapes")).items()}
            values, positions = {}, {}
            for name, shape in shapes.items():
                packed = file.get_tensor(f"mask.{name}").numpy()
                if packed.size != (math.prod(shape) + 7) // 8:
                    raise ValueError(f"the mask of {name} does not fit its shape {shape}")
                bits = np.unpackbits(packed, count=math.prod(shape))
                positions[name] = torch.from_numpy(np.flatnonzero(bits))
                values[name] = file.get_tensor(f"values.{name}").float()
                if len(values[name]) != len(positions[name]) or not torch.isfinite(values[name]).all():
                    raise ValueError(f"the values of {name} do not fit its mask or are not finite")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{path} is not an erasure patch: {error}.") from error
    return Patch(values, positions, shapes, metadata)


class AppliedPatch:
    """A patch on a model in memory: `dial` its strength live, `undo` it bit for bit.

    Raises ValueError if the patch names a tensor that the model lacks or has in another shape.
    """

    def __init__(self, model: nn.Module, patch: Patch, strength: float = 1.0) -> None:
        parameters = dict(model.named_parameters())
        for name, shape in patch.shapes.items():
            if name not in parameters or tuple(parameters[name].shape) != shape:
                raise ValueError(f"the patch is for another model: it changes {name} {shape}, which this model lacks.")
        self._parameters = {name: parameters[name] for name in patch.shapes}
        self._patch = patch
        self._originals = {
            name: p.detach().reshape(-1)[patch.positions[name].to(p.device)] for name, p in self._parameters.items()
        }
        self.strength = 0.0
        self.dial(strength)

    @torch.no_grad()
    def dial(self, strength: float) -> None:
        """Original + strength * (erased - original): 0 is the base bit for bit, 1 the erased model bit for bit."""
        if not 0 <= strength <= 1.5:  # also refuses nan
            raise ValueError(f"strength is {strength}; it must be between 0 and 1.5.")
        for name, parameter in self._parameters.items():
            original = self._originals[name]
            erased = self._patch.values[name].to(parameter.device)
            values = {0.0: original, 1.0: erased}.get(strength)
            if values is None:
                values = torch.lerp(original.float(), erased, strength)
            positions = self._patch.positions[name].to(parameter.device)
            flat = parameter.detach().reshape(-1).index_copy(0, positions, values.to(parameter.dtype))
            parameter.copy_(flat.view(parameter.shape))
        self.strength = strength

    def undo(self) -> None:
        """Put the original weights back."""
        self.dial(0.0)
