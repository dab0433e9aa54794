"""A run in words for the terminal, the report and the model card: its base, what its concept became, its mask, its figures."""

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


def summary(results: dict[str, Any], config: Any, out: Path) -> str:
    """The figures a person wants first, whether it still makes pictures, and where the rest is."""
    seconds, mask = results["seconds"], mask_in_words(config)
    lines = [f"{results['concept']} erased from {results['model']} with {results['method']}, {mask}:"]
    if results["detector"]:
        lines += measured(results)
    else:
        lines.append(
            "  forgetting, retention, collapse: not measured (no detector at hand knows this concept; see `erase eval`)"
        )
    lines.append(f"  {changed(results)}")
    skipped = f"; re-used: {', '.join(results['skipped'])}" if results["skipped"] else ""
    lines.append(f"  {seconds['total']:.0f} s when it was made, peak {results['peak_rss_gb']:.1f} GB{skipped}")
    lines.append(f"report: {out / 'report.html'}")
    return "\n".join(lines)


def measured(results: dict[str, Any]) -> list[str]:
    """One line for each figure of both models, then the collapse gate's verdict."""
    from eval.collapse import Gate
    from eval.report import gate_in_words

    base, erased = results["base"], results["erased"]

    def row(label: str, before: float, after: float, share: str) -> str:
        return f"  {label:<34}{100 * before:8.1f} %{100 * after:10.1f} %   n = {erased['intervals'][share]['n']}"

    before, after = base["forget_accuracy"], erased["forget_accuracy"]
    lines = [
        f"  {'':<34}{'base':>10}{'erased':>12}",
        row("pictures that still show it", before, after, "forget"),
        *by_concept(results.get("concepts", [])),
        row("unlearning accuracy (UA)", 1 - before, 1 - after, "forget"),
        row("kept, same domain (IRA)", base["ira"], erased["ira"], "ira"),
        row("kept, other domain (CRA)", base["cra"], erased["cra"], "cra"),
    ]
    gate = results.get("collapse")
    return [*lines, f"  {gate_in_words(Gate.model_validate(gate))}"] if gate else lines


def by_concept(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each of several concepts."""
    shares = [
        (row["name"], 100 * row["base"]["forget_accuracy"], 100 * row["erased"]["forget_accuracy"], row["n"]) for row in rows
    ]
    lines = [f"    {name[:32]:<32}{base:8.1f} %{erased:10.1f} %   n = {n}" for name, base, erased, n in shares]
    return lines if len(lines) > 1 else []
