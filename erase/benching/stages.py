"""The stages that cells of one concept and seed have in common, the data set and the mask, made once for all of them."""

import json
import shutil
from pathlib import Path

import yaml

from erase.config import RunConfig
from erase.files import write_json
from erase.folder import Folder

SHARED = {"generate": "data.safetensors", "saliency": "mask.safetensors"}  # stage -> its file


def remove_outdated(folder: Path, config: RunConfig) -> None:
    """Remove a cell's folder that was left by other settings; one of the same settings is gone on with."""
    file = folder / "config.yaml"
    if folder.exists():
        there = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if {k: v for k, v in (there or {}).items() if k != "versions"} != config.model_dump(mode="json"):
            shutil.rmtree(folder)


def reuse_shared_stages(shared: Path, folder: Path, config: RunConfig) -> None:
    """Put the data set and the mask of an earlier cell into a new folder; the run makes anew what does not fit it."""
    if (shared / "run.json").is_file() and not (folder / "run.json").is_file():
        Folder(folder, config)
        stages = json.loads((shared / "run.json").read_text(encoding="utf-8"))["stages"]
        for stage in stages:
            shutil.copyfile(shared / SHARED[stage], folder / SHARED[stage])
        write_json({"stages": stages}, folder / "run.json")


def share_stages(folder: Path, shared: Path) -> None:
    """Keep the data set and the mask of the first cell of a concept and seed for the others."""
    if not (shared / "run.json").is_file():
        shared.mkdir(parents=True, exist_ok=True)
        stages = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]
        for name in SHARED.values():
            shutil.copyfile(folder / name, shared / name)
        write_json({"stages": {stage: stages[stage] for stage in SHARED}}, shared / "run.json")
