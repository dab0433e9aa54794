"""Ten objects erased in one run of the shipped recipe, against the bars.

    python -m benchmarks.several [--seed 0] [--pilot] [--set key=value ...] [--quick]

The ten are the embedded model's analogues of Imagenette's classes. `--pilot` erases ten others: what several concepts at once
take more of (configs/several/further.yaml) is to be tried on those, and nothing of it is kept. A quarter of an hour in one
thread; the folder stays in runs/several/, so that a stopped run goes on. results/several.json gets the figures; the last line
is the same.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from erase.files import hash_of, write_json
from erase.recipes import resolve
from pipelines.emoji.vocabulary import OBJECTS

RESULTS = Path(__file__).parent / "results" / "several.json"
TEN = tuple(OBJECTS)[:10]
PILOT = ("cat", "horse", "rabbit", "butterfly", "house", "castle", "car", "airplane", "guitar", "apple")
BARS = {"ua_worst": 0.97, "ira_change": -0.03, "cra_change": -0.03}


def run(concepts: tuple[str, ...], seed: int, settings: list[str], out: Path) -> dict[str, Any]:
    """results.json of one run by the command line, in a process of its own."""
    command = [sys.executable, "-m", "erase", "--seed", str(seed), "--out", str(out), "--json"]
    command += [part for name in concepts for part in ("--concept", name)]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def folder_of(concepts: tuple[str, ...], seed: int, settings: list[str]) -> str:
    """A name that is another for every other run: of its resolved config."""
    config = resolve({"concept": list(concepts), "seed": seed}, settings)
    return f"{len(concepts)}-{hash_of(config.model_dump(mode='json'))[:12]}"


def figures_of(results: dict[str, Any]) -> dict[str, Any]:
    """UA of every concept, and how IRA and CRA moved."""
    base, erased = results["base"], results["erased"]
    ua = {row["name"]: 1 - row["erased"]["forget_accuracy"] for row in results["concepts"]}
    return {
        "ua": ua,
        "ua_worst": min(ua.values()),
        "n_each": erased["intervals"]["forget"]["n"] // len(ua),
        "ira": [base["ira"], erased["ira"]],
        "cra": [base["cra"], erased["cra"]],
        "n_retained": erased["intervals"]["ira"]["n"],
        "ira_change": erased["ira"] - base["ira"],
        "cra_change": erased["cra"] - base["cra"],
        "none_retained": [base["none_retained"], erased["none_retained"]],
        "changed_outside_mask": results["audit"]["changed_outside_mask"],
        "seconds": results["seconds"],
        "peak_rss_gb": results["peak_rss_gb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pilot", action="store_true", help="erase the ten others; nothing kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changed settings; nothing kept")
    parser.add_argument("--quick", action="store_true", help="two concepts, a few steps; nothing kept")
    arguments = parser.parse_args()
    concepts, settings = PILOT if arguments.pilot else TEN, arguments.set
    if arguments.quick:
        concepts = concepts[:2]
        settings = [*settings, "train.steps=2", "data.num_forget=6", "data.num_retain=8", "evaluation.num_forget=4"]
    out = Path("runs") / "several" / folder_of(concepts, arguments.seed, settings)
    figures = figures_of(run(concepts, arguments.seed, settings, out))
    ok = all(figures[key] >= bar for key, bar in BARS.items())
    report = {"concepts": concepts, "seed": arguments.seed, "settings": settings, "figures": figures, "bars": BARS, "ok": ok}
    report |= {"environment": environment()}
    if not (arguments.pilot or settings):
        write_json(report, RESULTS)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
