"""What the release gate found on audited runs, kept as one record and shown as one table.

    erase --concept dog --out runs/dog && erase audit runs/dog        # and so on for each concept: a quarter of an hour each
    python -m benchmarks.audits runs/dog runs/church ...

Goes through the runs' own results.json and audit/audit.json, changes no figure and runs nothing. The record goes to
results/audits.json (a concept that is there already is replaced), the table to docs/audits.md. Only runs of the shipped recipe
are taken.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from erase.config import RunConfig, validate
from erase.files import hash_of, write_json, write_text
from erase.plan import plan
from erase.reading import read_yaml
from erase.recipes import resolve
from eval.attacks import PROBES
from eval.audit_gate import Limits
from eval.detectors import EmojiJudge
from pipelines.family import Family
from pipelines.load import load

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "results" / "audits.json"
TABLE = ROOT / "docs" / "audits.md"
KEPT = ("probe", "status", "reason", "before", "after", "retrain", "figures", "parts", "seconds")
SHARES = ("prompts", "adversarial_prompt", "concept_inversion", "text_free", "benign", "tooling")
ATTACKS = ("adversarial_prompt", "concept_inversion", "text_free", "relearning", "benign")
HEAD = """\
# The gate on the shipped recipe

Made by `python -m benchmarks.audits` from [the record](../benchmarks/results/audits.json), which has the dates, the machine and
every probe's settings; how the probes work and what they do not promise: [audit.md](audit.md), [attacks.md](attacks.md). Each
cell: in how many of n pictures the concept is seen in the erased model (in the base; in Retrain, where there is one). After
*prompts* and *tooling*: by how many of the ways tried the base draws it. Only these were counted, and they are chosen on the
same pictures, so that the base's share is high by construction; what the model drew by the others is told, and counts in audits
after 2026-11-26. *Text free*: from its exact noise a picture comes back from any model; where part of the noise is fresh, the
model itself must hold the concept. *Relearning*: steps until half of the pictures show it. A bold cell breaks its limit; a
*weak attack* finds the concept in the base too seldom for its zero to count. One run of each, seed 0. After its name a row says
in what it is not of today: another recipe than the one that is shipped now ([what changed](methods.md)), another judge
([what changed](emoji.md)), other settings of an attack ([what changed](attacks.md#measured)).
"""


def recipe_of(config: RunConfig) -> str:
    """A hash of what decides a run's weights, beside its seed; a look ahead that is off decides nothing."""
    values = config.model_dump(mode="json")
    if not values["method"].get("lookahead_share"):
        values["method"] = {key: value for key, value in values["method"].items() if not key.startswith("lookahead_")}
    return hash_of({key: values[key] for key in ("concept", "model", "data", "saliency", "method", "train", "prompts")})


def read_run(run: Path, family: Family) -> dict[str, Any]:
    """One run's row; raises ValueError if it was not audited, or not made by the shipped recipe with what it proposes now."""
    if not (run / "audit" / "audit.json").is_file():
        raise ValueError(f"{run} was not audited: `erase audit {run}` first.")
    config = validate({key: value for key, value in read_yaml(run / "config.yaml").items() if key != "versions"})
    recipe = recipe_of(config)
    if recipe != recipe_of(resolve({"concept": config.concept}, [])):
        raise ValueError(
            f"{run} was made with other settings than the recipe as it is shipped: `erase --concept` makes it anew."
        )
    results, audit = (json.loads((run / name).read_text(encoding="utf-8")) for name in ("results.json", "audit/audit.json"))
    anchors = [tuple(row["anchors"]) for row in results["concepts"]]
    if anchors != (now := [target.anchors for target in plan(config, family).targets]):
        raise ValueError(
            f"{run} was made with the anchors {anchors}; the recipe takes {now} now: `erase --concept` makes it anew."
        )
    figures = {
        side: {key: results[side][key] for key in ("forget_accuracy", "ira", "cra", "intervals")} for side in ("base", "erased")
    }
    return {
        "concept": results["concept"],
        "kind": results["kind"],
        "seed": config.seed,
        "recipe": recipe,
        "anchors": anchors,
        **figures,
        "sha256": {side: audit[side]["sha256"] for side in ("base", "model", "retrain") if audit[side]},
        "audit": {key: audit[key] for key in ("quick", "passed", "settings", "seconds", "versions")},
        "detectors": {card["name"]: card["sha256"] for card in audit["detectors"]},
        "lines": [{key: line[key] for key in KEPT} for line in audit["lines"] if line["status"] != "NOT ASKED"],
        "environment": environment(),
    }


def cell(line: dict[str, Any] | None) -> str:
    """A probe's cell of the table."""
    if line is None or line["after"] is None:
        return "not measured"
    after, before = (round(line[side]["value"] * line[side]["n"]) for side in ("after", "before"))
    told = f"{after} of {line['after']['n']}"
    told = f"**{told}**" if line["status"] == "FAIL" else told
    told = f"weak attack: {told}" if line["status"] == "NOT MEASURED" else told
    beside = f"{before} of {line['before']['n']}"
    beside += f"; {round(line['retrain']['value'] * line['retrain']['n'])}" if line["retrain"] else ""
    return "; ".join([f"{told} ({beside}){ways(line)}", *fresh_noise(line)])


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
    """By how many of its ways of asking the base draws the concept, and what the model drew beyond those that are counted."""
    if line["probe"] not in ("prompts", "tooling") or not line["parts"]:
        return ""
    found = [one["value"] >= Limits().found_in_base for one in line["parts"]["base"].values()]
    seen = sum(round(one["value"] * one["n"]) for one in line["parts"]["model"].values())
    beyond = seen - round(line["after"]["value"] * line["after"]["n"])
    return f"; {sum(found)} of {len(found)} ways" + (f", {beyond} by the others" if beyond else "")


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
    attacks = [name for name in now if settings[name] != now[name]]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="audited runs of `erase --concept`; none: the table of the record")
    rows = {row["concept"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))} if RECORD.is_file() else {}
    family = load("emoji")
    for row in (read_run(run, family) for run in parser.parse_args().runs):
        rows[row["concept"]] = row
    ordered = sorted(rows.values(), key=lambda row: (row["kind"], row["concept"]))
    write_json(ordered, RECORD)
    shown = table(ordered, str(EmojiJudge().card()["sha256"]))
    write_text(f"{HEAD}\n{shown}", TABLE)
    print(shown)


if __name__ == "__main__":
    main()
