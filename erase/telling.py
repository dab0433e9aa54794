"""A run in words, the same for the terminal, the report and the model card: its base, what its concept became, its mask."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erase.config import RunConfig
from erase.methods import METHODS

NO_PICTURES = "the model no longer draws recognisable pictures, so these figures do not measure forgetting"
COLLAPSED = f"Collapsed: {NO_PICTURES}."
"""What is said of figures whose model did not pass the collapse gate."""


def is_hub_name(text: str) -> bool:
    """Whether the text has the form of a repository's name on the hub, OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) is not None


def hub_id(model: str) -> str | None:
    """The model's name on the hub; None for the embedded model and for what lies in a folder or file here."""
    if model == "emoji" or Path(model).exists():
        return None
    return model if is_hub_name(model) else None


def base_name(model: str) -> str:
    """The base's name for others to read: of a folder or file its own name, without the path."""
    return model if model == "emoji" or hub_id(model) else Path(model).resolve().name


def takes_anchor(config: RunConfig) -> bool:
    """Whether the method makes another thing of the concept; the others lead away from it, or leave it out."""
    return "anchor" in type(config.method).model_fields and getattr(config.method, "target", None) != "uniform"


def becomes(config: RunConfig, anchors: Sequence[str]) -> list[str]:
    """What the concept becomes, of its plan's anchors; empty where that is the empty prompt, or the method takes none."""
    if not takes_anchor(config):
        return []
    first = config.method.name == "uce" and not paired(
        config, anchors
    )  # of several that a prompt can become, uce takes the first
    return list(anchors[:1] if first else anchors)


def paired(config: RunConfig, anchors: Sequence[str]) -> bool:
    """Whether these are what a concept's prompts, given by hand, become, one each."""
    given = [config.prompts, *config.prompts.each.values()]
    return any(list(own.becomes) == list(anchors) and 1 < len(own.forget) == len(anchors) for own in given)


def in_words(config: RunConfig, anchors: Sequence[str]) -> str:
    """What the concept became, to stand in a table."""
    if not takes_anchor(config):
        return "-"
    names = becomes(config, anchors)
    if len(names) > 1:
        return f"{len(names)} prompts, one each" if paired(config, names) else f"one of {len(names)} others, at random"
    return names[0] if names else "the empty prompt"


def fate(config: RunConfig, concept: str, anchors: Sequence[str]) -> str:
    """What the method did with the concept, in a sentence."""
    method = config.method.name
    if not takes_anchor(config):
        return f"How {method} forgets: {METHODS[method].line}."
    names = becomes(config, anchors)
    if len(names) > 1 and paired(config, names):
        return f"The {len(names)} prompts for “{concept}” were remapped to one prompt each, such as “{names[0]}”."
    if len(names) > 1:
        return f"“{concept}” was relabelled at random to one of {len(names)} others."
    return f"“{concept}” was remapped to {f'“{names[0]}”' if names else 'the empty prompt'}."


def has_mask(config: RunConfig) -> bool:
    """Whether a mask says which weights may change."""
    return config.saliency.method == "gradient" and METHODS[config.method.name].remake is None


def mask_in_words(config: RunConfig) -> str:
    """The mask's density, or that there is none."""
    return f"density {config.saliency.density}" if has_mask(config) else "no mask"


def changed(results: dict[str, Any]) -> str:
    """How many weights changed, and outside of what none did; `results`: a run's results.json."""
    proof = results["audit"]
    share = f"{100 * proof['changed_inside_mask_share']:.2f} % of {proof['num_salient']:,}"
    if results["density"] < 1:  # there was a mask
        return (
            f"weights changed outside the mask: {proof['changed_outside_mask']}; inside: {share} (of {proof['num_weights']:,})"
        )
    if proof["num_salient"] == proof["num_weights"]:
        return f"weights changed: {share} (no mask)"
    outside = f"outside what the method edits: {proof['changed_outside_mask']}"
    return f"weights changed {outside}; inside: {share} (of {proof['num_weights']:,}; no mask)"
