"""Patches put on a model that is on disk, and taken off again bit for bit.

Beside a patched model lies `undo.safetensors` (for a single file, `NAME.undo.safetensors`): the base's values at the changed
positions, in the written dtype, and the hash of the base's weights. It lies there and not in the patch because it belongs to
this model: a stack or another base changes what must be put back, and the patch stays small enough to send.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erase import __version__
from erase.applied_patch import AppliedPatch
from erase.config import LoadConfig
from erase.export import cast, num_bytes, pipeline_hash, save_model
from erase.files import require_new, require_space, sha256
from erase.folder import load_of, require_intact
from erase.patch import Patch, load_patch, rebased, save_patch, weights_hash, with_originals
from pipelines.load import load, model_hash
from pipelines.single_file import write_single_file


def apply_patches(
    paths: Sequence[Path],
    strengths: Sequence[float],
    to: str | None,
    out: Path,
    *,
    dtype: str = "float32",
    onto_other_base: bool = False,
    patch_base: str | None = None,
    given: LoadConfig | None = None,
) -> dict[str, Any]:
    """Write the model with the patches on it (a single file if `out` ends in .safetensors) and what undoes them; what was done.

    `to` None is the embedded model. Bases are loaded as `given` sets, else as the run loaded them in whose folder a patch lies.
    Raises ValueError, with nothing written, if a patch was made on another base (unless that is allowed), does not fit, or the
    disk is too full.
    """
    for path in paths:
        require_intact(path)
    onto = to or "emoji"
    loads = {model: load_of([path.parent for path in paths], model, given) for model in (onto, patch_base) if model}
    patches, base = [load_patch(path) for path in paths], model_hash(onto, loads[onto])
    digests = [sha256(path) for path in paths]
    if twice := [path for path, digest in zip(paths, digests, strict=True) if digests.count(digest) > 1]:
        raise ValueError(f"{twice[-1]} is given more than once: give it once, with the strength that it is to have.")
    family = load(onto, loads[onto])
    pipeline: Any = family.pipeline
    patches = of_known_base(patches, base, pipeline)
    for path, patch in zip(paths, patches, strict=True):
        _check_base(path, patch, base, to, onto_other_base, patch_base)
    cast(pipeline, getattr(torch, dtype))
    require_space(out, num_bytes(pipeline) + sum(8 * len(v) + v.numel() for p in patches for v in p.values.values()))
    patches = _with_base(patches, base, patch_base, loads)
    reports = _move_to_base(paths, patches, base, family.denoiser)
    base_weights = weights_hash(family.denoiser)
    applied = AppliedPatch(family.denoiser, patches, strengths)
    done = [
        {"patch": path.name, "concept": patch.provenance.get("concept"), "strength": strength}
        for path, patch, strength in zip(paths, patches, strengths, strict=True)
    ]
    origin = {"base": base, "model": Path(onto).name, "patches": json.dumps(done), "erase": __version__}
    hashes = {"undo": base_weights, "patched": weights_hash(family.denoiser), "dtype": dtype}
    undo = _write(family, out, origin, applied.undo_patch(origin | hashes))
    facts = {"out": str(out), "undo": str(undo), "model": origin["model"], "base": base, "patches": done, "dtype": dtype}
    return facts | {"other_base": reports}


def patch_in(path: Path) -> Path:
    """The patch of a run's folder; any other path as it is. Raises ValueError for a folder without one."""
    if not path.is_dir():
        return path
    if not (path / "patch.safetensors").is_file():
        raise ValueError(f"{path} has no patch.safetensors: give a patch, or a finished run's folder (retrain makes none).")
    return path / "patch.safetensors"


def undo_patches(patched: Path, out: Path | None = None, given: LoadConfig | None = None) -> dict[str, Any]:
    """Write the base of a model that `apply_patches` wrote, bit for bit; what was done.

    Raises ValueError, with nothing written, if what undoes it is missing or the model has been changed since.
    """
    out = out or patched.with_name(f"{patched.stem}-undone.safetensors" if patched.is_file() else f"{patched.name}-undone")
    require_new(out)
    if not patched.exists():
        raise ValueError(f"there is no folder or file {patched} to undo.")
    file = undo_file(patched)
    if not file.is_file():
        raise ValueError(
            f"{patched} has no {file.name} beside its weights: only a model that `erase apply` wrote can be undone."
        )
    patch = load_patch(file)
    if not {"undo", "patched", "dtype"} <= patch.provenance.keys():
        raise ValueError(f"{file} undoes nothing: it is the patch of a run.")
    family = load(str(patched), given)
    pipeline: Any = family.pipeline
    cast(pipeline, getattr(torch, patch.provenance["dtype"]))
    if weights_hash(family.denoiser) != patch.provenance["patched"]:
        raise ValueError(
            f"{patched} was changed after `erase apply` wrote it, so its base cannot be restored from {file.name}."
        )
    require_space(out, num_bytes(pipeline))
    AppliedPatch(family.denoiser, patch)
    found = weights_hash(family.denoiser)
    if found != patch.provenance["undo"]:
        raise ValueError(f"{file} does not restore the base (its weights would have the hash {found[:12]}): it is damaged.")
    origin = {key: patch.provenance[key] for key in ("base", "model", "erase")}
    _write(family, out, origin, None)
    return {"out": str(out), "base": origin["base"], "weights_sha256": found, "dtype": patch.provenance["dtype"]}


def undo_file(model: Path) -> Path:
    """Where the file that undoes a patched model lies."""
    return model.with_suffix(".undo.safetensors") if model.suffix == ".safetensors" else model / "undo.safetensors"


def of_known_base(patches: Sequence[Patch], base: str, pipeline: Any) -> list[Patch]:
    """The patches; those made on the same weights in another form (as a single file) as ones of the base with that hash."""
    strange = any(patch.provenance.get("base") != base and "weights" in patch.provenance for patch in patches)
    weights = pipeline_hash(pipeline) if strange else None  # one pass over all weights, however many patches there are
    return [
        replace(patch, provenance=patch.provenance | {"base": base})
        if patch.provenance.get("weights", "") == weights
        else patch
        for patch in patches
    ]


def _check_base(path: Path, patch: Patch, base: str, to: str | None, onto_other_base: bool, patch_base: str | None) -> None:
    named, model = patch.provenance.get("base", "?"), patch.provenance.get("model", "emoji")
    if "undo" in patch.provenance:
        raise ValueError(f"{path} undoes a patch; give the model beside it as --undo.")
    if named == base:
        return
    if to is None and model != "emoji" and not onto_other_base:
        raise ValueError(f"{path} was made on {model}: give that model as --to.")
    if not onto_other_base:
        raise ValueError(
            f"{path} was made on another base (it names {model}, {named[:12]}; {Path(to or 'emoji').name} is {base[:12]}): "
            "give that base as --to, or add the patch's differences to this one with --onto-other-base."
        )
    if patch.originals is None and patch_base is None:
        raise ValueError(
            f"{path} does not contain the values of its own base, so its differences are unknown; give that base as "
            "--patch-base, or make the patch with `erase export RUN --to patch --with-originals`."
        )


def _with_base(patches: list[Patch], base: str, patch_base: str | None, loads: dict[str, LoadConfig]) -> list[Patch]:
    """The patches of other bases with the originals that they lack, from the model given for them."""
    if not any(patch.originals is None and patch.provenance.get("base") != base for patch in patches):
        return patches
    assert patch_base is not None
    named, known = model_hash(patch_base, loads[patch_base]), load(patch_base, loads[patch_base]).denoiser
    for patch in patches:
        wanted = patch.provenance.get("base", "?")
        if patch.originals is None and wanted not in (base, named):
            raise ValueError(f"--patch-base {patch_base} ({named[:12]}) is not the base that the patch names ({wanted[:12]}).")
    return [with_originals(p, known) if p.originals is None and p.provenance.get("base") == named else p for p in patches]


def _move_to_base(paths: Sequence[Path], patches: list[Patch], base: str, denoiser: nn.Module) -> list[dict[str, Any]]:
    """Put in the place of each patch of another base what it is on this one; for each, how far the two bases are apart."""
    reports = []
    for k, (path, patch) in enumerate(zip(paths, patches, strict=True)):
        if patch.provenance.get("base") != base:
            patches[k], report = rebased(patch, denoiser)
            reports.append({"patch": path.name, **report})
    return reports


def _write(family: Any, out: Path, origin: dict[str, str], undo: Patch | None) -> Path:
    """Write a folder or a single file, with what undoes it."""
    file = undo_file(out)
    if out.suffix != ".safetensors":
        save_model(family, out, (lambda folder: save_patch(undo, folder / file.name, None)) if undo else None)
        return file
    names = ", ".join(str(entry["concept"]) for entry in json.loads(origin.get("patches", "[]")))
    title = f"{origin['model']} without {names}" if names else origin["model"]
    try:
        if undo:
            save_patch(undo, file, None)
        write_single_file(family.pipeline, out, origin, None, title)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return file
