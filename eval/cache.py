"""Pictures of base models, kept by what they were made from, so that the next run on the same base need not draw them.

A folder per model, prompts, seeds and settings. Nothing is believed: `generate` compares every picture's request, model and
pixel hash with what it is asked for, and draws again what differs.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch

from erase.files import hash_of
from eval.generate import generate, rows_at_least
from eval.pictures import Picture, Request
from pipelines.family import Family, Progress

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$ERASE_CACHE, or `erase` in the user's cache folder."""
    if named := os.environ.get("ERASE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erase"


def entry(family: Family, requests: Sequence[Request], model: str, batch_size: int) -> Path:
    """Where the pictures of these requests by this model are kept."""
    weights = next(family.denoiser.parameters())
    versions = [str(torch.__version__), diffusers.__version__, weights.device.type, rows_at_least(family, batch_size)]
    if weights.dtype != torch.float32:
        versions.append(str(weights.dtype))
    scheduler = getattr(family, "noise_scheduler", None)
    if scheduler and scheduler.config.prediction_type != "epsilon":  # which may be set for a run: the model's hash lacks it
        versions.append(scheduler.config.prediction_type)
    return cache_folder() / "pictures" / hash_of([model, versions, [r.model_dump() for r in requests]])[:32]


def generate_cached(
    family: Family, requests: Sequence[Request], folder: Path, *, model: str, batch_size: int, progress: Progress | None = None
) -> list[Picture]:
    """`generate`, with what the cache has put into the folder before, and kept there afterwards."""
    kept = entry(family, requests, model, batch_size)
    if kept.is_dir() and not (folder / "manifest.jsonl").exists():
        _copy(kept, folder)
    pictures = generate(family, requests, folder, model=model, batch_size=batch_size, progress=progress)
    try:
        if not _same(kept / "manifest.jsonl", folder / "manifest.jsonl"):
            _keep(folder, kept)
    except OSError as error:
        logger.warning("the base's pictures could not be kept in %s (%s).", kept, error.strerror)
    return pictures


def keep_readings(family: Family, folder: Path, requests: Sequence[Request], model: str, batch_size: int) -> None:
    """Put what detectors read off the folder's pictures beside the kept pictures."""
    kept = entry(family, requests, model, batch_size)
    if kept.is_dir():
        for path in folder.glob("readings.*.jsonl"):
            if not _same(path, kept / path.name):
                _place(path, kept / path.name)


def _keep(folder: Path, kept: Path) -> None:
    building = kept.with_name(f".{kept.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        _copy(folder, building)
        shutil.rmtree(kept, ignore_errors=True)
        building.replace(kept)
    except BaseException:  # half a copy would keep a full disk full
        shutil.rmtree(building, ignore_errors=True)
        raise


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            _place(path, target / path.name)


def _place(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()
