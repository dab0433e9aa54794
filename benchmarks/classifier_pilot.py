"""Choose each method's settings on a pilot seed, by the smallest average gap to Retrain, and freeze them in tuned.yaml.

    python -m benchmarks.classifier_pilot [digits/class fashion/random-0.1 fashion/random-0.5]

Every method has a grid of its own of 3 to 18 points (the record has up to 20, some of an earlier grid). The pilot seed (100)
trains other models than the table's seeds (3 to 8) and, for random forgetting, draws another forget set; the test rows are the
same. Every point's figures are kept in results/classifier_pilot.json. A method on the mask (`ft+mask`) has the settings of the
method without it.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from erase.classification.bench import TUNED, Recipe, config_for, run_method, split_of, train_original
from erase.classification.data import load_dataset
from erase.classification.methods import method_config
from erase.classification.metrics import average_gap, forgetting_row
from erase.files import write_json, write_text

RESULTS = Path(__file__).parent / "results" / "classifier_pilot.json"
PILOT_SEED = 100
SMALL = {"num_train": 3000, "num_test": 2000, "size": 14}
FASHION = {"epochs": 80, "weight_decay": 5e-5, "batch_size": 128}  # learned by heart, or there is little to forget
SCENARIOS: dict[str, dict[str, Any]] = {
    "digits/class": {"recipe": {"original": {"epochs": 40}}, "forget_class": 3, "share": None},
    "fashion/random-0.1": {
        "recipe": {"rows": SMALL, "original": FASHION},
        "forget_class": None,
        "share": 0.1,
    },
    "fashion/random-0.5": {
        "recipe": {"rows": SMALL, "original": FASHION},
        "forget_class": None,
        "share": 0.5,
    },
}
RELABEL: dict[str, dict[str, list[Any]]] = {
    "digits/class": {"epochs": [3, 6], "learning_rate": [0.01, 0.02, 0.03], "redraw": [True]},
    "fashion/random-0.1": {"epochs": [5], "learning_rate": [0.003, 0.01], "alpha": [7.0, 10.0, 15.0], "redraw": [False]},
    "fashion/random-0.5": {"epochs": [5, 10], "learning_rate": [0.01, 0.02, 0.03], "alpha": [1.0, 3.0, 8.0], "redraw": [False]},
}
ASCENT = {"fashion/random-0.5": [1e-4, 3e-4, 1e-3]}  # half the rows climbed: from 3e-3 on the loss leaves the numbers


def grids(scenario: str) -> dict[str, dict[str, list[Any]]]:
    """Per method, the values of its settings that are combined."""
    return {
        "random_label": RELABEL[scenario],
        "salun": RELABEL[scenario],
        "ft": {"epochs": [5], "learning_rate": [0.03, 0.1, 0.2, 0.4]},
        "l1_sparse": {"epochs": [5], "learning_rate": [0.03, 0.1, 0.4], "gamma": [1e-4, 5e-4]},
        "gradient_ascent": {"epochs": [5], "learning_rate": ASCENT.get(scenario, [3e-3, 1e-2, 2e-2, 5e-2])},
        "boundary_shrink": {"epochs": [3, 10], "learning_rate": [1e-3, 3e-3, 1e-2]},
        "boundary_expand": {"epochs": [3, 10], "learning_rate": [1e-3, 3e-3, 1e-2]},
        "influence": {"alpha": [1.0, 10.0, 40.0], "damping": [0.1]},
        "fisher": {"sigma": [0.003, 0.01, 0.03], "damping": [0.01]},
    }


def choose(scenario: str, known: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Original, Retrain, and each method's points, the best first; `known` points are not run again."""
    settings = SCENARIOS[scenario]
    recipe = Recipe.model_validate(settings["recipe"])
    rows = recipe.rows
    data = scenario.partition("/")[0]
    dataset = load_dataset(data, num_train=rows.num_train, num_test=rows.num_test, size=rows.size)
    split = split_of(dataset, settings["forget_class"], settings["share"], PILOT_SEED)
    original = train_original(dataset, recipe, PILOT_SEED)
    retrained, _ = run_method(original, config_for(recipe, "retrain"), dataset, split, recipe, PILOT_SEED)
    goal = forgetting_row(retrained, dataset, split).asdict()
    record: dict[str, Any] = {"original": forgetting_row(original, dataset, split).asdict(), "retrain": goal, "methods": known}
    for method, grid in grids(scenario).items():
        points = known.get(method, [])
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            if any(point["settings"] == chosen for point in points):
                continue
            try:
                model, done = run_method(
                    original, method_config({"name": method, **chosen}), dataset, split, recipe, PILOT_SEED
                )
            except ValueError as error:  # a point whose loss left the numbers is no candidate
                print(f"{scenario} {method} {chosen}: {error}", file=sys.stderr, flush=True)
                continue
            row = forgetting_row(model, dataset, split).asdict()
            points.append({"settings": chosen, "gap": average_gap(row, goal), **row, "seconds": done.seconds})
        record["methods"][method] = sorted(points, key=lambda point: point["gap"])
        best = record["methods"][method][0]
        print(f"{scenario} {method}: gap {best['gap']:.2f} {best['settings']}", file=sys.stderr, flush=True)
        yield record


def pilot(scenario: str) -> None:
    """Choose, keep every point, and freeze the best in tuned.yaml."""

    def results() -> dict[str, Any]:
        """What is on disk by now: another scenario may be at work beside this one."""
        return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}

    record: dict[str, Any] = {}
    for record in choose(scenario, results().get(scenario, {}).get("methods", {})):
        write_json(results() | {scenario: record}, RESULTS)
    best = {method: points[0]["settings"] for method, points in record["methods"].items()}
    recipes = yaml.safe_load(TUNED.read_text(encoding="utf-8"))
    recipes[scenario] = {**SCENARIOS[scenario]["recipe"], "methods": best}
    header = (
        "# Settings of the classifier table, chosen on pilot seed 100 and frozen before the table's seeds were run.\n"
        "# Written by `python -m benchmarks.classifier_pilot`; all points: benchmarks/results/classifier_pilot.json.\n"
        "# The table's figures: docs/classifiers.md (measured).\n"
    )
    write_text(header + yaml.safe_dump(recipes, sort_keys=False, width=120), TUNED)


def main() -> None:
    for scenario in sys.argv[1:] or SCENARIOS:
        pilot(scenario)


if __name__ == "__main__":
    main()
