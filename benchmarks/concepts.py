"""`erase --concept X` with the shipped recipe, concept by concept and seed by seed, against the bars.

    python -m benchmarks.concepts [--concepts dog,church] [--seeds 3] [--shard 0/2] [--quick] [--summary]

Resumable: one folder per cell in runs/bench/, one line per cell in results/concepts.jsonl. The seeds differ in everything that
erasing draws at random; they are judged on the same prompts and noise. The concepts the recipe was tuned on (TUNED) are not in
the table. Cells that ran side by side (`--shard`) count for everything but the times. The last line is one JSON object with
the figures, the bars and `ok`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from erase.benching.cells import PILOT
from erase.files import hash_of
from erase.recipes import resolve
from pipelines.load import model_hash

RESULTS = Path(__file__).parent / "results"
TUNED = PILOT
CONCEPTS = ("dog", "church", "fish", "gas pump", "parachute", "truck", "castle", "penguin", "line art", "neon", "3d")
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

    def mean(items: list[dict[str, Any]], *keys: str) -> float:
        values = []
        for item in items:
            value: Any = item
            for key in keys:
                value = value[key]
            values.append(value)
        return sum(values) / len(values)

    table, drops = {}, {}
    for concept, items in by_concept.items():
        table[concept] = {
            "ua": 1 - mean(items, "erased", "forget_accuracy"),
            "ira_base": mean(items, "base", "ira"),
            "ira": mean(items, "erased", "ira"),
            "cra_base": mean(items, "base", "cra"),
            "cra": mean(items, "erased", "cra"),
            "none_base": mean(items, "base", "none_retained"),
            "none": mean(items, "erased", "none_retained"),
            "n_forget": sum(item["erased"]["intervals"]["forget"]["n"] for item in items),
            "n_retained": sum(item["erased"]["intervals"]["ira"]["n"] for item in items),
            "seeds": len(items),
        }
        for name in items[0]["base"]["by_name"]:
            counts = [[item[m]["by_name"][name] for item in items] for m in ("base", "erased")]
            base, erased = (sum(s["count"] for s in side) / sum(s["n"] for s in side) for side in counts)
            drops[f"{concept}: {name}"] = erased - base
    worst = min(drops, key=lambda key: drops[key])
    alone = [row["seconds"] for row in rows if row["alone"]]
    cells = list(table.values())
    figures = {
        "ua_mean": mean(cells, "ua"),
        "ua_worst": min(cell["ua"] for cell in cells),
        "ira_change": mean(cells, "ira") - mean(cells, "ira_base"),
        "cra_change": mean(cells, "cra") - mean(cells, "cra_base"),
        "none_retained_change": mean(cells, "none") - mean(cells, "none_base"),
        "worst_retained_change": drops[worst],
        "worst_retained_name": worst,
        "seconds_worst": max(seconds["total"] for seconds in alone),
        "saliency_s_worst": max(seconds["saliency"] for seconds in alone),
        "cells": len(rows),
        "cells_timed": len(alone),
        "peak_rss_gb": max(row["peak_rss_gb"] for row in rows),
        "changed_outside_mask": max(row["audit"]["changed_outside_mask"] for row in rows),
        "changed_inside_mask_share": min(row["audit"]["changed_inside_mask_share"] for row in rows),
    }
    ok = all(figures[key] <= bar if key in AT_MOST else figures[key] >= bar for key, bar in BARS.items())
    return {"figures": figures, "bars": BARS, "ok": ok, "table": table, "tuned_on": TUNED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
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
