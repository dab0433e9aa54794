"""The erased model as files, and the proof of what moved."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erase import __version__
from erase.config import LoadConfig
from erase.files import disk_errors, hash_of, require_space, sync, write_json
from erase.folder import config_of, load_of, require_intact
from erase.patch import load_patch, patch_provenance, save_patch, weights_hash
from erase.patch import with_originals as add_originals
from erase.reading import read_json
from erase.saliency import Mask
from erase.telling import base_name
from pipelines.download import PARTS
from pipelines.family import Family


def save_model(family: Family, folder: Path, more: Callable[[Path], None] | None = None) -> None:
    """Write the whole pipeline as a diffusers folder, and what `more` adds; the folder appears only when it is complete."""
    with whole_folder(folder) as temporary:
        with disk_errors(folder):
            family.save(temporary)
            for file in (temporary / "model_index.json", *temporary.glob("*/*config.json")):
                _without_origin(file)
        if more:
            more(temporary)


def _without_origin(file: Path) -> None:
    """Take out of a config where it was read from: the folder of the one who made the model is nobody's business."""
    values = read_json(file)
    kept = {key: value for key, value in values.items() if key not in ("_name_or_path", "name_or_path")}
    if kept != values:
        write_json(kept, file)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside it that becomes `folder` when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        _put(temporary, folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _put(temporary: Path, folder: Path) -> None:
    """Give the complete folder its name; what had it before steps aside whole, for a half-deleted model would look like one."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        folder.replace(old)
        temporary.replace(folder)
        shutil.rmtree(old)
    else:
        temporary.replace(folder)
    sync(folder.parent)


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """The parts of a pipeline that hold weights."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def pipeline_hash(pipeline: Any) -> str:
    """SHA-256 over the weights that make the pictures, however they are packed: the same for a folder and a single file."""
    parts = {name: module for name, module in modules_of(pipeline).items() if name in PARTS}
    return hash_of({name: weights_hash(module) for name, module in parts.items()})


def num_bytes(pipeline: Any, dtype: torch.dtype | None = None) -> int:
    """Bytes of a pipeline's weights in a dtype (None: as they are), as a file holds them."""
    weights = [values for module in modules_of(pipeline).values() for values in module.state_dict().values()]
    return sum(values.numel() * (dtype or values.dtype).itemsize for values in weights)


def cast(pipeline: Any, dtype: torch.dtype) -> None:
    """Bring a pipeline's weights to a dtype, in place; raises ValueError if a value is broken or does not fit."""
    for part, module in modules_of(pipeline).items():
        module.to(dtype)
        for name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(
                    f"{part} {name} has values that are broken (nan or inf) or too large for {str(dtype)[6:]}; "
                    "give --dtype bfloat16 or float32."
                )


def require_finished(run: Path) -> bool:
    """Whether a run made a patch (retrain makes none); raises ValueError for one that has not come to its model."""
    made, results = (run / "patch.safetensors").is_file(), run / "results.json"
    without = not made and results.is_file() and read_json(results).get("patch") is False
    if not (run / "model").is_dir() or not (made or without):
        raise ValueError(f"{run} is a run that is not finished: run its command again first.")
    return made


def told_by(run: Path) -> dict[str, str]:
    """What a header says of a model without a patch, from its run's results."""
    results = read_json(run / "results.json")
    told = {"base": results["base_sha256"], "model": base_name(results["model"]), "erase": __version__}
    return told | {key: str(results[key]) for key in ("concept", "method", "seed")}


def write_export(
    source: str,
    run: Path | None,
    to: str,
    out: Path,
    *,
    dtype: str,
    with_originals: bool = False,
    given: LoadConfig | None = None,
) -> None:
    """Write a run's erased model, or any model, as `single-file`, `diffusers` or `patch`; raises ValueError if it cannot be.

    `given` sets how the model is loaded, or a run's base, of which the run knows the rest.
    """
    from pipelines.load import load, model_hash
    from pipelines.single_file import write_single_file

    made = run is not None and require_finished(run)
    if run is not None:
        if to == "patch" and not made:
            raise ValueError(f"{run} was trained from scratch and made no patch: give --to diffusers or --to single-file.")
        require_intact(run / ("patch.safetensors" if to == "patch" else "model"))
    weight_dtype = getattr(torch, dtype)
    if to == "patch":
        assert run is not None, "a patch is what a run changed"
        _export_patch(run, out, weight_dtype, with_originals, given)
        return
    model = str(run / "model") if run else source
    settings = load_of([], source, given) if run is None else LoadConfig(device=given.device if given else "auto")
    family = load(model, settings)
    pipeline: Any = family.pipeline
    require_space(out, num_bytes(pipeline, weight_dtype))
    if to == "diffusers":
        cast(pipeline, weight_dtype)
        save_model(family, out)
        return
    if run is None:
        name = Path(source).name
        provenance, title = {"base": model_hash(source, settings), "model": name, "erase": __version__}, name
    else:
        provenance = patch_provenance(run / "patch.safetensors") if made else told_by(run)
        title = f"{provenance.get('model')} without {provenance.get('concept')}"
    write_single_file(pipeline, out, provenance, weight_dtype, title)


def patch_bytes(shapes: dict[str, tuple[int, ...]], num_values: int, bytes_per_value: int) -> int:
    """Bytes of a patch's file without its header; with 0 bytes a value, of a mask's."""
    return sum((math.prod(shape) + 7) // 8 for shape in shapes.values()) + num_values * bytes_per_value


def _export_patch(run: Path, out: Path, dtype: torch.dtype, originals: bool, given: LoadConfig | None) -> None:
    from pipelines.load import load, model_hash

    patch = load_patch(run / "patch.safetensors")
    num_values = sum(len(values) for values in patch.values.values())
    require_space(out, patch_bytes(patch.shapes, num_values, dtype.itemsize + 4 * originals))
    if originals:
        base = config_of(run).model
        settings = load_of([run], base, given)
        if model_hash(base, settings) != patch.provenance.get("base"):
            raise ValueError(f"{base} has changed since {run} was made (its hash differs), so its original values are unknown.")
        patch = add_originals(patch, load(base, settings).denoiser)
    save_patch(patch, out, dtype)


@dataclass(frozen=True)
class WeightDifference:
    """Which weights differ from the base, compared bit for bit."""

    changed_outside_mask: int
    changed_inside_mask_share: float
    num_salient: int
    num_weights: int


def compare_weights(base: dict[str, Tensor], erased: dict[str, Tensor], mask: Mask) -> WeightDifference:
    """Compare two denoisers' weights, on the CPU a tensor at a time, wherever they are.

    Raises ValueError if a tensor was added, removed, reshaped or re-typed.
    """
    if base.keys() != erased.keys():
        raise ValueError(f"tensors differ: {sorted(base.keys() ^ erased.keys())[:3]} are in one model only.")
    outside = inside = num_salient = num_weights = 0
    for name, before in base.items():
        after = erased[name]
        if before.shape != after.shape or before.dtype != after.dtype:
            raise ValueError(f"{name} was {tuple(before.shape)} {before.dtype}, now {tuple(after.shape)} {after.dtype}.")
        changed = bits(before.cpu()) != bits(after.cpu())
        chosen = mask[name].cpu() if name in mask else torch.zeros(before.shape, dtype=torch.bool)
        outside += int((changed & ~chosen).sum())
        inside += int((changed & chosen).sum())
        num_salient += int(chosen.sum())
        num_weights += before.numel()
    return WeightDifference(outside, inside / max(1, num_salient), num_salient, num_weights)


def bits(values: Tensor) -> Tensor:
    """The values' bits as integers: what differs in them differs, also -0 from 0, and equal nans are equal."""
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    return values.contiguous().view(integers[values.element_size()])
