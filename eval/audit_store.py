"""What a probe found on one side, as a JSON file and PNGs: known again by its key, kept for the next audit of the same base."""

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch

from erase import __version__
from erase.files import hash_of, sha256, write_json
from erase.reading import read_json
from erase.source import code_of
from eval.attacks.base import Outcome, Probe, Side
from eval.cache import cache_folder
from eval.detectors import to_tensor
from eval.generate import to_pixels
from eval.measure import Share
from eval.pictures import hash_pixels, read_pixels, write_png

logger = logging.getLogger(__name__)


DECIDING = ("eval", "pipelines", "erase.concepts")
"""Whose code decides what a probe draws and sees, where it is imported; the rest of erase decides by prompts and weights."""


def key_of(name: str, probe: Probe, config: Any, scene_key: str, side_key: str) -> str:
    """What decides the outcome: the code and settings of the probe, the files that these name, the scene, the model."""
    code = code_of((probe.run.__module__, "eval.audit_scene"), (*DECIDING, "erase") if probe.erases else DECIDING)
    versions = [__version__, str(torch.__version__), diffusers.__version__]
    files = [sha256(path) if path.is_file() else str(path) for path in probe.files(config)]
    settings = config.model_dump(mode="json", exclude={"rows_at_once"})
    return hash_of([name, settings, files, scene_key, side_key, code, versions])


def save(outcome: Outcome, folder: Path, key: str, seconds: float) -> None:
    """Write the pictures, then the JSON file that makes them count."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pixels: Any = to_pixels(outcome.pictures) if len(outcome.pictures) else []
    for k, picture in enumerate(pixels):
        write_png(picture, folder / f"{k:04d}.png")
    record = {
        "key": key,
        "found": asdict(outcome.found),
        "seen": list(outcome.seen),
        "captions": list(outcome.captions),
        "figures": outcome.figures,
        "parts": {name: asdict(share) for name, share in outcome.parts.items()},
        "pixels": [hash_pixels(picture) for picture in pixels],
        "seconds": round(seconds, 2),
    }
    write_json(record, folder / "outcome.json")


def known(folder: Path, key: str) -> tuple[Outcome, float] | None:
    """(the outcome in the folder, the seconds it took) if it is of that key and its pictures are as they were written."""
    try:
        record = read_json(folder / "outcome.json")
        if record["key"] != key:
            return None
        pixels = [read_pixels(folder / f"{k:04d}.png") for k in range(len(record["pixels"]))]
        if [hash_pixels(picture) for picture in pixels] != record["pixels"]:
            return None
        return _outcome(record, pixels), float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _outcome(record: dict[str, Any], pixels: list[Any]) -> Outcome:
    return Outcome(
        found=Share(**record["found"]),
        pictures=to_tensor(pixels) if pixels else torch.zeros(0, 3, 8, 8),
        seen=tuple(record["seen"]),
        captions=tuple(record["captions"]),
        figures=dict(record["figures"]),
        parts={name: Share(**share) for name, share in record["parts"].items()},
    )


def kept(side: Side, key: str) -> Path | None:
    """Where an outcome of the base or of Retrain is kept for other audits; none of the model's own."""
    return None if side.role == "model" else cache_folder() / "audit" / key[:32]


def fetch(side: Side, folder: Path, key: str, cache: bool) -> tuple[Outcome, float] | None:
    """The outcome from the folder, or from the user's cache (then put into the folder); without `cache` from neither."""
    if not cache:
        return None
    if found := known(folder, key):
        return found
    place = kept(side, key)
    if place is None:
        return None
    if (found := known(place, key)) is None:
        shutil.rmtree(place, ignore_errors=True)  # damaged: what is done now takes its place
        return None
    save(found[0], folder, key, found[1])
    return found


def keep(side: Side, folder: Path, key: str) -> None:
    """Put the base's or Retrain's outcome into the user's cache; a cache that cannot be written is no reason to stop."""
    place = kept(side, key)
    if place is None or (place / "outcome.json").is_file():
        return
    try:
        building = place.with_name(f".{place.name}")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(folder, building)
        shutil.rmtree(place, ignore_errors=True)
        building.replace(place)
    except OSError as error:
        logger.warning("what was found in the %s could not be kept in %s (%s).", side.role, place, error.strerror)
