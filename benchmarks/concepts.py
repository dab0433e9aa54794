"""`erase --concept X` with the shipped recipe, concept by concept and seed by seed, against the bars.

    python -m benchmarks.concepts [--concepts dog,church] [--seeds 3] [--shard 0/2] [--quick] [--summary]

Resumable: one folder per cell in runs/bench/, one line per cell in results/concepts.jsonl. The seeds differ in everything that
erasing draws at random; they are judged on the same prompts and noise. The concepts the recipe was tuned on (TUNED) are not
among them. Cells that ran side by side (`--shard`) count for everything but the times. The last line is one JSON object with
the figures, the bars and `ok`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from erase.benching.cells import PILOT
from erase.files import hash_of
from erase.recipes import resolve
from pipelines.load import model_hash

RESULTS = Path(__file__).parent / "results"
TUNED = PILOT
RECIPE_CONCEPTS = ("dog", "church", "fish", "gas pump", "parachute", "truck", "castle", "penguin", "line art", "neon", "3d")
BARS = {
    "ua_mean": 0.99,
    "ua_worst": 0.97,
    "ira_change": -0.02,
    "cra_change": -0.02,
    "worst_retained_change": -0.15,
    "none_retained_change": 0.01,
    "seconds_worst": 300.0,
    "saliency_s_worst": 15.0,
    "peak_rss_gb": 2.5,
    "changed_outside_mask": 0,
    "changed_inside_mask_share": 0.999,
}
AT_MOST = {"seconds_worst", "saliency_s_worst", "peak_rss_gb", "changed_outside_mask", "none_retained_change"}


def one(concept: str, seed: int, settings: list[str]) -> dict[str, Any]:
    """results.json of one run by the command line in a process of its own; the folder is removed afterwards."""
    out = Path("runs") / "bench" / f"{concept.replace(' ', '-')}-{seed}"
    command = [sys.executable, "-m", "erase.cli", "--concept", concept, "--seed", str(seed), "--out", str(out), "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(out)
    return results


def recipe_of(concept: str) -> str:
    """A hash of every setting that the concept's run has."""
    return hash_of(resolve({"concept": concept}, []).model_dump(mode="json"))


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The table's rows (one per concept, over its seeds) and the figures that the bars are for."""
    by_concept: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_concept[row["concept"]].append(row)
    table = {concept: over_seeds(runs) for concept, runs in by_concept.items()}
    found = figures(rows, list(table.values()), retained_changes(by_concept))
    ok = all(found[key] <= bar if key in AT_MOST else found[key] >= bar for key, bar in BARS.items())
    return {"figures": found, "bars": BARS, "ok": ok, "table": table, "tuned_on": TUNED}


def mean(items: list[dict[str, Any]], *keys: str) -> float:
    """The mean of what stands under the keys, one within the other, in each of the items."""
    values = [reduce(getitem, keys, item) for item in items]
    return sum(values) / len(values)


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The table's row of one concept: means over its runs, with what they were measured on."""
    return {
        "ua": 1 - mean(runs, "erased", "forget_accuracy"),
        "ira_base": mean(runs, "base", "ira"),
        "ira": mean(runs, "erased", "ira"),
        "cra_base": mean(runs, "base", "cra"),
        "cra": mean(runs, "erased", "cra"),
        "none_base": mean(runs, "base", "none_retained"),
        "none": mean(runs, "erased", "none_retained"),
        "n_forget": sum(run["erased"]["intervals"]["forget"]["n"] for run in runs),
        "n_retained": sum(run["erased"]["intervals"]["ira"]["n"] for run in runs),
        "seeds": len(runs),
    }


def retained_changes(by_concept: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """By `concept: retained name`, the share right in the erased models minus that in the base, over the concept's runs."""
    changes = {}
    for concept, runs in by_concept.items():
        for name in runs[0]["base"]["by_name"]:
            counts = [[run[model]["by_name"][name] for run in runs] for model in ("base", "erased")]
            base, erased = (sum(s["count"] for s in side) / sum(s["n"] for s in side) for side in counts)
            changes[f"{concept}: {name}"] = erased - base
    return changes


def figures(rows: list[dict[str, Any]], concepts: list[dict[str, Any]], changes: dict[str, float]) -> dict[str, Any]:
    """What the bars are for: means and worst cases over the concepts; times over the cells that ran alone."""
    worst = min(changes, key=lambda key: changes[key])
    alone = [row["seconds"] for row in rows if row["alone"]]
    return {
        "ua_mean": mean(concepts, "ua"),
        "ua_worst": min(concept["ua"] for concept in concepts),
        "ira_change": mean(concepts, "ira") - mean(concepts, "ira_base"),
        "cra_change": mean(concepts, "cra") - mean(concepts, "cra_base"),
        "none_retained_change": mean(concepts, "none") - mean(concepts, "none_base"),
        "worst_retained_change": changes[worst],
        "worst_retained_name": worst,
        "seconds_worst": max(seconds["total"] for seconds in alone),
        "saliency_s_worst": max(seconds["saliency"] for seconds in alone),
        "cells": len(rows),
        "cells_timed": len(alone),
        "peak_rss_gb": max(row["peak_rss_gb"] for row in rows),
        "changed_outside_mask": max(row["audit"]["changed_outside_mask"] for row in rows),
        "changed_inside_mask_share": min(row["audit"]["changed_inside_mask_share"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", default=",".join(RECIPE_CONCEPTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shard", default="0/1", help="K/N: every N-th cell from the K-th, for N of these side by side")
    parser.add_argument("--quick", action="store_true", help="one concept, one seed, a few steps; nothing kept")
    parser.add_argument("--summary", action="store_true", help="only sum up what is there")
    arguments = parser.parse_args()
    if arguments.quick:
        small = ["train.steps=3", "evaluation.num_forget=6", "data.num_retain=24", "data.num_forget=12"]
        print(json.dumps(summarise([one("dog", 0, small) | {"alone": True}])))
        return
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / "concepts.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    base = model_hash("emoji")
    recipes = {concept: recipe_of(concept) for concept in arguments.concepts.split(",")}
    rows = [row for row in rows if row["base_sha256"] == base]  # figures of earlier weights and recipes do not count
    rows = [row for row in rows if row.get("recipe") == recipes.get(row["concept"])]
    have = {(row["concept"], row["seed"]) for row in rows}
    shard, shards = (int(part) for part in arguments.shard.split("/"))
    cells = [(concept, seed) for seed in range(arguments.seeds) for concept in arguments.concepts.split(",")]
    for concept, seed in [] if arguments.summary else cells[shard::shards]:
        if (concept, seed) not in have:
            rows.append(one(concept, seed, []) | {"alone": shards == 1, "recipe": recipes[concept]})
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    report = summarise(rows) | {"environment": environment()}
    (RESULTS / "concepts.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
