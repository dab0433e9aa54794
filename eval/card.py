"""What a run's model card says of its base: its name, its place on the hub, its license; and the pipeline's class."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from erase.config import RunConfig
from erase.methods import METHODS
from erase.reading import MOST_YAML, parse_yaml, read_json, read_text
from erase.telling import base_name, hub_id

PLAIN = {"license": r"[a-z0-9][a-z0-9.+-]*", "license_name": r"[\w. -]+", "license_link": r"https://[\w./%-]+"}


def card_facts(folder: Path, config: RunConfig) -> dict[str, Any]:
    """For the template: the card's front matter, the base's name, where the patch goes, the license, the pipeline's class."""
    base, name = hub_id(config.model), base_name(config.model)
    license_lines: dict[str, Any] = {} if METHODS[config.method.name].remake else license_of(config)
    front = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base,
        tags=["concept-erasure", "machine-unlearning", config.method.name],
        **license_lines,
    )
    return {
        "front": front.to_yaml(),
        "base_name": name,
        "base_model": name if base or config.model == "emoji" else "BASE",
        "license": license_lines.get("license_name", license_lines.get("license")),
        "pipeline": pipeline_class(folder / "model"),
    }


def license_of(config: RunConfig) -> dict[str, str]:
    """The license that the base's own model card states, where that card is at hand; else nothing."""
    try:
        card = base_card(config)
        front = parse_yaml(read_text(card, MOST_YAML).split("---\n", 2)[1]) if card else None
    except (ValueError, IndexError):
        return {}
    given = {name: front[name] for name in PLAIN if isinstance(front.get(name), str)} if isinstance(front, dict) else {}
    found = {name: text for name, text in given.items() if re.fullmatch(PLAIN[name], text, re.ASCII)}
    return found if "license" in found else {}


def base_card(config: RunConfig) -> Path | None:
    """The README.md of the base's folder, or of its repository on the hub; None if that cannot be had."""
    from pipelines.download import download_beside
    from pipelines.load import model_path

    if base := hub_id(config.model):
        return download_beside("README.md", base, config.load)
    return model_path(config.model, config.load) / "README.md"


def pipeline_class(model: Path) -> str:
    """The name of the class that loads a diffusers folder."""
    try:
        name = read_json(model / "model_index.json").get("_class_name")
    except ValueError:
        name = None
    return name if isinstance(name, str) and name.isidentifier() else "DiffusionPipeline"
