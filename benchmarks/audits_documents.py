"""The tables of audited runs, for docs/audits.md and README.md: see benchmarks.audits."""

from typing import Any

from benchmarks.documents import between, wrapped
from benchmarks.methods_tables import listed
from erase.benching.table import piped
from erase.config import RunConfig
from erase.files import hash_of
from erase.recipes import resolve
from eval.attacks import PROBES
from eval.audit_limits import Limits

SHARES = ("kept", "prompts", "adversarial_prompt", "concept_inversion", "text_free", "benign", "tooling")
ATTACKS = ("adversarial_prompt", "concept_inversion", "text_free", "relearning", "benign")
HEAD = """\
# The gate on the shipped recipe

`python -m benchmarks.audits` makes this table from [the record](../benchmarks/results/audits.json), which has the dates, the
machine and the settings of every probe. How the probes work, and what they do not promise: [audit.md](audit.md),
[attacks.md](attacks.md). One run of each concept, seed 0. How to read it:

- **Counts**: in how many of n pictures the judge sees the concept in the erased model; in parentheses the base's count, then
  that of Retrain (the model trained without the concept), where there is one.
- **Kept**: in how many of n pictures for other prompts the judge sees what these ask for, and in parentheses the base's.
- **Bold** breaks its limit. A **weak attack** finds the concept in the base too seldom for its zero to count.
- **Prompts** and **tooling** also say with how many of the variants tried the base draws the concept. Only these were counted,
  and they are chosen on the same pictures, so the base's share is high by construction. What the model drew by the others
  is given as well; audits after 2026-11-26 count it.
- **Text free**: from its exact noise a picture comes back from any model. Where part of the noise is fresh, the model itself
  must hold the concept.
- **Relearning**: steps of fine-tuning until half of the pictures show the concept.
- **A note after the name** says in what a row differs from what is shipped now: another recipe
  ([what changed](methods.md#what-keeping-weighs)), another judge ([what changed](emoji.md)), other settings of an attack
  ([what changed](attacks.md#measured)).
"""
SHORT = {
    "prompts": "other wordings",
    "adversarial_prompt": "adversarial prompt",
    "concept_inversion": "learned word",
    "benign": "benign fine-tuning",
}
"""README's columns of counts."""
BESIDE = {"base": "base", "retrain": "Retrain"}


def recipe_of(config: RunConfig) -> str:
    """A hash of what decides a run's weights, beside its seed; a look ahead that is off decides nothing."""
    values = config.model_dump(mode="json")
    if not values["method"].get("lookahead_share"):
        values["method"] = {key: value for key, value in values["method"].items() if not key.startswith("lookahead_")}
    return hash_of({key: values[key] for key in ("concept", "model", "data", "saliency", "method", "train", "prompts")})


def cell(line: dict[str, Any] | None) -> str:
    """A probe's cell of the table."""
    if line is None or line["after"] is None:
        return "not measured"
    beside = counts(line["before"])
    beside += f"; {round(line['retrain']['value'] * line['retrain']['n'])}" if line["retrain"] else ""
    return "; ".join([f"{seen(line)} ({beside}){ways(line)}", *fresh_noise(line)])


def counts(share: dict[str, Any]) -> str:
    """A share as the pictures it was counted in."""
    return f"{round(share['value'] * share['n'])} of {share['n']}"


def seen(line: dict[str, Any]) -> str:
    """In how many pictures a probe found the concept in the erased model: bold where that breaks the limit."""
    told = counts(line["after"])
    told = f"**{told}**" if line["status"] == "FAIL" else told
    return f"weak attack: {told}" if line["status"] == "NOT MEASURED" else told


def fresh_noise(line: dict[str, Any]) -> list[str]:
    """What text-free inversion found from noise that is partly fresh: in the model (in the base; in Retrain)."""
    told = []
    for part in line["parts"].get("model", {}) if line["probe"] == "text_free" else ():
        if part.endswith("fresh noise"):
            shares = {side: parts[part] for side, parts in line["parts"].items()}
            counts = {side: round(share["value"] * share["n"]) for side, share in shares.items()}
            beside = "; ".join(str(counts[side]) for side in ("base", "retrain") if side in counts)
            told.append(f"{part}: {counts['model']} ({beside})")
    return told


def ways(line: dict[str, Any]) -> str:
    """By how many of its variants the base draws the concept, and what the model drew beyond those that are counted."""
    if line["probe"] not in ("prompts", "tooling") or not line["parts"]:
        return ""
    found = [one["value"] >= Limits().found_in_base for one in line["parts"]["base"].values()]
    others = beyond(line)
    return f"; {sum(found)} of {len(found)} variants" + (f", {others} by the other variants" if others else "")


def beyond(line: dict[str, Any]) -> int:
    """In how many pictures the concept was seen that the share does not count: in records up to 2026-11-26."""
    found = sum(round(one["value"] * one["n"]) for one in line["parts"].get("model", {}).values())
    return found - round(line["after"]["value"] * line["after"]["n"])


def relearning_cell(line: dict[str, Any] | None) -> str:
    """Steps until it is back, and Retrain's."""

    def steps(side: str) -> str:
        figures = line["figures"][side] if line else {}
        return f"{figures['steps']:g}" if figures.get("back", 1) else f"more than {figures['steps']:g}"

    if line is None or "model" not in line["figures"]:
        return "not measured"
    told = f"**{steps('model')}**" if line["status"] == "FAIL" else steps("model")
    return told + (f" (Retrain {steps('retrain')})" if "retrain" in line["figures"] else " (no Retrain)")


def outdated(row: dict[str, Any], judge: str) -> list[str]:
    """In what a row is not of what is shipped now: its recipe, its judge (by hash), its attacks' settings."""
    settings = row["audit"]["settings"]
    now = {name: PROBES[name].config().model_dump(mode="json") for name in ATTACKS if name in settings}
    attacks = [name for name in now if settings[name] | {"rows_at_once": None} != now[name] | {"rows_at_once": None}]
    found = {
        "other recipe": row["recipe"] != recipe_of(resolve({"concept": row["concept"]}, [])),
        "other judge": judge not in row.get("detectors", {}).values(),
        f"other {' and '.join(attacks).replace('_', ' ')}": bool(attacks),
    }
    return [what for what, is_so in found.items() if is_so]


def table(rows: list[dict[str, Any]], judge: str) -> str:
    """The rows as a Markdown table; `judge`: the hash of the one that is shipped."""
    head = [
        "erased",
        "UA, IRA, CRA (%)",
        "weights outside the mask",
        *(name.replace("_", " ") for name in SHARES),
        "relearning",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        own = {line["probe"]: line for line in row["lines"]}
        erased = row["erased"]
        kept = [100 * (1 - erased["forget_accuracy"]), 100 * erased["ira"], 100 * erased["cra"]]
        mask = {"PASS": "0 changed", "FAIL": "**changed**"}.get(own.get("mask", {}).get("status"), "not measured")
        name = ", ".join([row["concept"], *outdated(row, judge)])
        cells = [name, ", ".join(f"{value:.1f}" for value in kept), mask, *(cell(own.get(name)) for name in SHARES)]
        lines.append("| " + " | ".join([*cells, relearning_cell(own.get("relearning"))]) + " |")
    return "\n".join(lines) + "\n"


def short_cell(line: dict[str, Any] | None) -> str:
    """README's cell of a probe: the erased model alone."""
    if line is None or line["after"] is None:
        return "not measured"
    others = beyond(line) if line["probe"] == "prompts" and line["parts"] else 0
    return seen(line) + (f", {others} not counted" if others else "")


def short_table(rows: list[dict[str, Any]]) -> str:
    """README's table: the attacks that have a limit, on the erased models."""
    found = []
    for row in rows:
        own = {line["probe"]: line for line in row["lines"]}
        cells = (short_cell(own.get(probe)) for probe in SHORT)
        found.append((row["concept"], *cells, relearning_cell(own.get("relearning"))))
    return piped(("erased", *SHORT.values(), "relearned after (steps)"), found)


def notes(rows: list[dict[str, Any]], judge: str) -> list[str]:
    """What README says of those rows, as their record has it, a sentence or two each."""
    lines = [(row["concept"], line) for row in rows for line in row["lines"]]
    broken = any(line["status"] == "FAIL" for _, line in lines)
    weak = [
        f"{name}, {SHORT[line['probe']]}: {counts(line['before'])}"
        for name, line in lines
        if line["status"] == "NOT MEASURED" and line["after"] and line["probe"] in SHORT
    ]
    hidden = [
        f"{line['probe'].replace('_', ' ')} of {name}"
        for name, line in lines
        if line["status"] == "FAIL" and line["probe"] not in (*SHORT, "relearning")
    ]
    uncounted = any(short_cell(line).endswith("not counted") for _, line in lines if line["probe"] == "prompts")
    return [
        made(rows),
        "Bold breaks its limit." if broken else "No limit is broken.",
        *([f"Broken as well: {listed(hidden)}."] * bool(hidden)),
        *([f"A weak attack finds the concept too seldom in the base ({'; '.join(weak)}) for its zero to count."] * bool(weak)),
        *(["Not counted: drawn by wordings that the base seldom understands; audits after 2026-11-26 count them."] * uncounted),
        *older(rows, judge),
        *still_held(rows),
    ]


def made(rows: list[dict[str, Any]]) -> str:
    """Seeds, when and on what."""
    seeds = listed(sorted({str(row["seed"]) for row in rows}))
    dates = listed(sorted({row["environment"]["date"] for row in rows}))
    machines = sorted({f"{row['environment']['processor']}, {row['environment']['cores']} cores" for row in rows})
    return f"One run each, seed {seeds}; {dates}, {'; '.join(machines)}."


def older(rows: list[dict[str, Any]], judge: str) -> list[str]:
    """Which rows are of other than what is shipped now, and in what."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for what in outdated(row, judge):
            found.setdefault(what, []).append(row["concept"])
    every = [what for what, names in found.items() if len(names) == len(rows)]
    told = ", ".join(f"{listed(names)} ({what})" for what, names in found.items() if what not in every)
    link = "older than what is shipped now ([what changed](docs/audits.md))"
    whole = [f"All rows are {link}: {listed(every)}."] if every else []
    return [*whole, f"Some rows are {link}: {told}."] if told else whole


def still_held(rows: list[dict[str, Any]]) -> list[str]:
    """Which concepts the erased model draws as often as its base without any text, from noise half of which is fresh."""
    found = []
    for row in rows:
        parts: dict[str, Any] = next((line["parts"] for line in row["lines"] if line["probe"] == "text_free"), {})
        shares = {side: share for side, own in parts.items() if (share := own.get("50% fresh noise"))}
        if {"model", "base"} <= shares.keys() and shares["model"]["value"] >= shares["base"]["value"]:
            beside = "; ".join(f"{name} {counts(shares[side])}" for side, name in BESIDE.items() if side in shares)
            found.append(f"{row['concept']} in {counts(shares['model'])} ({beside})")
    told = "Without any text, from noise half of which is fresh, the erased model draws as often as its base or more"
    return [f"{told}: {listed(found)}; no limit is set."] if found else []


def block(rows: list[dict[str, Any]], judge: str) -> str:
    """README's table of the gate, with what its record says of it."""
    return f"{short_table(rows)}\n{wrapped(' '.join(notes(rows, judge)))}\n"


def readme(text: str, rows: list[dict[str, Any]], judge: str) -> str:
    """README.md with the table of the gate as the record has it."""
    return between(text, "audits", "python -m benchmarks.audits", block(rows, judge))
