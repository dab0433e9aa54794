"""The erased model as files, and the proof of what moved."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erase.saliency import Mask
from pipelines.family import Family


def save_model(family: Family, folder: Path) -> None:
    """Write the whole pipeline as a diffusers folder; the folder appears only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        family.save(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


@dataclass(frozen=True)
class Audit:
    """Which weights differ from the base, compared bit for bit."""

    changed_outside_mask: int
    changed_inside_mask_share: float
    num_salient: int
    num_weights: int


def audit(base: dict[str, Tensor], erased: dict[str, Tensor], mask: Mask) -> Audit:
    """Compare two denoisers' weights; raises ValueError if a tensor was added, removed, reshaped or re-typed."""
    if base.keys() != erased.keys():
        raise ValueError(f"tensors differ: {sorted(base.keys() ^ erased.keys())[:3]} are in one model only.")
    outside = inside = num_salient = num_weights = 0
    for name, before in base.items():
        after = erased[name]
        if before.shape != after.shape or before.dtype != after.dtype:
            raise ValueError(f"{name} was {tuple(before.shape)} {before.dtype}, now {tuple(after.shape)} {after.dtype}.")
        changed = _bits(before) != _bits(after)
        chosen = mask.get(name, torch.zeros(before.shape, dtype=torch.bool))
        outside += int((changed & ~chosen).sum())
        inside += int((changed & chosen).sum())
        num_salient += int(chosen.sum())
        num_weights += before.numel()
    return Audit(outside, inside / max(1, num_salient), num_salient, num_weights)


def _bits(values: Tensor) -> Tensor:
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    return values.contiguous().view(integers[values.element_size()])
