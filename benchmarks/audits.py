"""What the release gate found on audited runs, kept as one record and shown as one table.

    erase --concept dog --out runs/dog && erase audit runs/dog        # and so on for each concept: a quarter of an hour each
    python -m benchmarks.audits runs/dog runs/church ...

Goes through the runs' own results.json and audit/audit.json, changes no figure and runs nothing. The record goes to
results/audits.json (a concept that is there already is replaced), the table to docs/audits.md, and a short form of it to
README.md, between marks. Only runs of the shipped recipe are taken. Without a run: the documents of the record as it is.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.audits_documents import HEAD, readme, recipe_of, table
from benchmarks.environment import environment
from erase.config import validate
from erase.files import write_json, write_text
from erase.plan import plan
from erase.reading import read_yaml
from erase.recipes import resolve
from eval.detectors import EmojiJudge
from pipelines.family import Family
from pipelines.load import load

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "results" / "audits.json"
TABLE = ROOT / "docs" / "audits.md"
README = ROOT / "README.md"
KEPT = ("probe", "status", "reason", "before", "after", "retrain", "figures", "parts", "seconds")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="audited runs of `erase --concept`; none: the table of the record")
    rows = {row["concept"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))} if RECORD.is_file() else {}
    family = load("emoji")
    for row in (read_run(run, family) for run in parser.parse_args().runs):
        rows[row["concept"]] = row
    ordered = sorted(rows.values(), key=lambda row: (row["kind"], row["concept"]))
    write_json(ordered, RECORD)
    judge = str(EmojiJudge().card()["sha256"])
    shown = table(ordered, judge)
    write_text(f"{HEAD}\n{shown}", TABLE)
    write_text(readme(README.read_text(encoding="utf-8"), ordered, judge), README)
    print(shown)


if __name__ == "__main__":
    main()
