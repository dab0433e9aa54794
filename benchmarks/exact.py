"""Certified removal, SISA and forests on scikit-learn's own data sets, against the bars.

    python -m benchmarks.exact [--quick]

Times are CPU times of one thread. The last line is one JSON object with the figures, the bars and `ok`; without --quick it is
kept in results/ and the two charts in docs/.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.ensemble import RandomForestClassifier

from benchmarks.chart import line_chart
from benchmarks.environment import environment
from erase.classification.certified import RemovableLinear
from erase.classification.forest import Forest
from erase.classification.guarantee import LinearConfig
from erase.classification.learners import TorchLearner
from erase.classification.linear import minimise
from erase.classification.rows import Rows, load_rows
from erase.classification.sisa import SISA, SISAConfig, expected_sequential, slicing_fraction, train_shard
from erase.files import sha256, write_json

ROOT = Path(__file__).parent
BARS = {
    "certified.chain_holds": 1,
    "certified.removals_in_the_chain": 120,
    "certified.removals_before_training_anew": 250,
    "certified.removal_ms": 5,
    "certified.ridge_difference": 1e-10,
    "sisa.share_of_full_steps": 0.2,
    "sisa.other_files_unchanged": 1,
    "sisa.touched_shard_equal": 1,
    "forest.equal_to_a_fit_on_the_rest": 1,
    "forest.median_removal_of_a_fit": 0.05,
}
BOUNDS = {"elementwise": "element-wise", "corollary": "Corollary 1", "paper": "Corollary 1, gamma 1/4"}
AT_MOST = {"certified.removal_ms", "certified.ridge_difference", "sisa.share_of_full_steps", "forest.median_removal_of_a_fit"}


@dataclass(frozen=True)
class Removals:
    """What removing rows one by one gave, until the model was trained anew."""

    accuracy: float
    """On all rows, before the first removal."""
    in_order: list[bool]
    """Whether residual and bounds were each at most the next, by removal."""
    seconds: list[float]
    spent: list[tuple[int, float]]
    """(removals, bound spent)."""
    measured: list[tuple[int, float]]
    """(removals, gradient residual)."""


def remove_one_by_one(rows: Rows, bound: str, seed: int) -> Removals:
    """What is found while all but ten rows are removed in a random order, or until the model is trained anew."""
    order = np.random.default_rng(100 + seed).permutation(rows.ids)
    model = RemovableLinear(LinearConfig(bound=bound), np.random.default_rng(seed)).fit(rows)
    found = Removals((model.predict(rows.features) == rows.labels).mean(), [], [], [], [])
    for k, removed in enumerate(order[: len(order) - 10], 1):
        before = model.residual()
        began = time.process_time()
        removal = model.remove([removed])
        found.seconds.append(time.process_time() - began)
        if removal.retrained:
            break
        ordered = [removal.residual - before, *asdict(removal.bounds).values()]
        found.in_order.append(ordered == sorted(ordered) and removal.residual <= removal.spent)
        found.spent.append((k, removal.spent))
        found.measured.append((k, removal.residual))
    return found


def certified(quick: bool) -> dict[str, object]:
    """Digits 3 against 8, rows divided by the largest norm, as a constant; lam .01, epsilon 1, delta 1e-4."""
    data = load_rows("digits:3,8")
    rows = Rows(data.features / np.linalg.norm(data.features, axis=1).max(), data.labels, data.ids)
    seeds = range(1 if quick else 3)
    found = {(seed, bound): remove_one_by_one(rows, bound, seed) for seed in seeds for bound in BOUNDS}
    supported = {bound: [len(found[seed, bound].spent) for seed in seeds] for bound in BOUNDS}
    if not quick:
        budget_chart({bound: found[0, bound] for bound in BOUNDS}, max(supported["elementwise"]))
    in_order = [holds for one in found.values() for holds in one.in_order]
    return {
        "chain_holds": int(all(in_order)),
        "removals_in_the_chain": len(in_order),
        "removals_before_training_anew": min(supported["elementwise"]),
        "removals_by_bound": supported,
        "accuracy_on_its_rows": float(found[seeds[-1], "paper"].accuracy),
        "removal_ms": 1000 * float(np.median([seconds for one in found.values() for seconds in one.seconds])),
        "ridge_difference": ridge_difference(rows),
        "by_sigma": by_sigma(rows),
    }


def budget_chart(removals: dict[str, Removals], most: int) -> None:
    """Draw what each bound spends of the budget, by removals, up to the most of any seed; docs/classifiers-exact-budget.svg."""
    first = removals["elementwise"]
    curves = {BOUNDS["elementwise"]: first.spent, "measured residual": first.measured}
    curves |= {BOUNDS[bound]: one.spent for bound, one in removals.items()}
    budget = LinearConfig().budget
    curves["budget"] = [(1, budget), (most, budget)]
    title = "Certified removal, digits 3 against 8: residual bound spent"
    line_chart(curves, ROOT.parent / "docs" / "classifiers-exact-budget.svg", title, "rows removed", "gradient residual")


def ridge_difference(rows: Rows) -> float:
    """The largest difference of a ridge regression's weights after 50 removals from those of a fit on the rest."""
    ridge = RemovableLinear(LinearConfig(loss="squared"), np.random.default_rng(0)).fit(rows)
    ridge.remove(rows.ids[:50])
    again = minimise("squared", 0.01, ridge.rows.features, ridge.targets(ridge.rows), ridge._noise)
    return float(np.abs(ridge.weights - again).max())


def by_sigma(rows: Rows) -> dict[str, dict[str, float]]:
    """By the noise's standard deviation: the budget, the accuracy, and how many removals it lasts for."""
    noises = {}
    order = np.random.default_rng(100).permutation(rows.ids)[:-10]
    for sigma in (0.1, 1.0, 10.0):
        model = RemovableLinear(LinearConfig(sigma=sigma), np.random.default_rng(0)).fit(rows)
        noises[str(sigma)] = {
            "budget": model.config.budget,
            "accuracy": float((model.predict(rows.features) == rows.labels).mean()),
            "removals": next((k for k, i in enumerate(order) if model.remove([i]).retrained), len(order)),
        }
    return noises


def sisa(quick: bool) -> dict[str, object]:
    """1400 digits, an MLP a shard; the other 397 digits are the test set."""
    data = load_rows("digits")
    order = np.random.default_rng(0).permutation(len(data))
    train, test = data.take(order[:1400]), data.take(order[1400:])
    epochs = 4 if quick else 16
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = SISA(Path(folder), TorchLearner(), SISAConfig(shards=5, slices=3, epochs=epochs))
        began = time.process_time()
        full = model.fit(train)
        fit_s = time.process_time() - began
        figures["accuracy"] = float((model.predict(test.features) == test.labels).mean())
        figures["accuracy_by_votes"] = float((model.predict(test.features, "label") == test.labels).mean())
        before = {path.name: sha256(path) for path in Path(folder).iterdir()}
        removed = model.slices[2][1][0]
        began = time.process_time()
        cost = model.remove([removed])
        figures["removal_of_fit_time"] = (time.process_time() - began) / fit_s
        figures |= {"sample_steps": cost.sample_steps, "full_steps": full.sample_steps}
        figures["share_of_full_steps"] = cost.sample_steps / full.sample_steps
        others = [name for name in before if name.startswith("shard") and not name.startswith("shard2")]
        figures["other_files_unchanged"] = int(all(sha256(Path(folder) / name) == before[name] for name in others))
        shard = model.slices[2]
        states, _ = train_shard(
            TorchLearner(),
            train.with_ids(np.concatenate(shard)),
            [len(part) for part in shard],
            0,
            None,
            model.classes,
            model.config.stage_epochs,
            [0, 2],
        )
        found = [load_file(Path(folder) / file["name"]) for file in model.files[2]]
        equal = [torch.equal(f[name], s[name]) for f, s in zip(found, states, strict=True) for name in s]
        figures["touched_shard_equal"] = int(all(equal))
    return figures | {"by_shards": sisa_by_shards(train, test, quick)}


def sisa_by_shards(train: Rows, test: Rows, quick: bool) -> dict[str, object]:
    """Accuracy by shards, and rows trained on again for removals one by one, counted, beside the expectation."""
    table, curves = {}, {}
    for shards in (1, 5) if quick else (1, 5, 10, 20):
        with tempfile.TemporaryDirectory() as folder:
            config = SISAConfig(shards=shards, epochs=2 if quick else 16)
            model = SISA(Path(folder), TorchLearner(), config)
            model.fit(train)
            accuracy = float((model.predict(test.features) == test.labels).mean())
            ids = np.random.default_rng(1).permutation(train.ids)
            one = model.remove([ids[0]])
            sizes = [[len(part) for part in shard] for shard in model.slices]
            home = {i: s for s, shard in enumerate(model.slices) for part in shard for i in part}
        counted, total = [(1, one.sample_steps / config.epochs)], one.sample_steps / config.epochs
        lengths = [sum(shard) for shard in sizes]
        for k, removed in enumerate(ids[1:100], 2):
            lengths[home[removed]] -= 1
            total += lengths[home[removed]]
            counted.append((k, total))
        curves[f"S = {shards}"] = counted
        expected = expected_sequential(1400, shards, 100)
        table[str(shards)] = {"accuracy": accuracy, "one_removal_share": one.sample_steps / (1400 * config.epochs)}
        table[str(shards)] |= {"rows_for_100_removals": total, "expected": expected, "naive": sum(range(1300, 1400))}
    if not quick:
        title = "SISA, 1400 digits: rows trained on again"
        line_chart(curves, ROOT.parent / "docs" / "classifiers-exact-sisa.svg", title, "removals, one by one", "rows")
    return table | {"slicing_fraction_3": slicing_fraction(3)}


def forest(quick: bool) -> dict[str, object]:
    """Breast cancer, 8 trees, defaults; removals one by one, then the forest against a fit on the rest."""
    data = load_rows("breast_cancer")
    order = np.random.default_rng(0).permutation(len(data))
    train, test = data.take(order[:455]), data.take(order[455:])
    figures: dict[str, object] = {}
    for name, settings in {"": {}, "random_depth_2": {"random_depth": 2}}.items():
        fits, times, rebuilt = [], [], []
        for _ in range(1 if quick else 5):
            began = time.process_time()
            model = Forest(8, **settings).fit(train.features, train.labels, train.ids)
            fits.append(time.process_time() - began)
        found = {"accuracy": model.score(test.features, test.labels), "fit_s": float(np.median(fits))}
        work, removed = model.work(), train.ids[: 10 if quick else 100]
        for i in removed:
            began = time.process_time()
            rebuilt.append(model.remove([i]).rebuilt / work)
            times.append(time.process_time() - began)
        rest = train.take(~np.isin(train.ids, removed))
        again = Forest(8, **settings).fit(rest.features, rest.labels, rest.ids)
        equal = all(np.array_equal(a, b) for a, b in zip(model.arrays().values(), again.arrays().values(), strict=True))
        found |= {"equal_to_a_fit_on_the_rest": int(equal), "median_removal_ms": 1000 * float(np.median(times))}
        found["median_removal_of_a_fit"] = float(np.median(times) / np.median(fits))
        found["mean_removal_of_a_fit"] = float(np.mean(times) / np.median(fits))
        found |= {"median_regrown": float(np.median(rebuilt)), "mean_regrown": float(np.mean(rebuilt))}
        figures |= {name: found} if name else found
    reference = RandomForestClassifier(8, random_state=0).fit(train.features, train.labels)
    return figures | {"accuracy_of_scikit_learns_forest": reference.score(test.features, test.labels), "removals": len(removed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, epochs and removals; nothing kept")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    figures = {"certified": certified(quick), "sisa": sisa(quick), "forest": forest(quick)}

    def met(key: str) -> bool:
        part, name = key.split(".")
        return figures[part][name] <= BARS[key] if key in AT_MOST else figures[part][name] >= BARS[key]

    missed = [key for key in BARS if not met(key)]
    report = {"figures": figures, "bars": BARS, "missed": missed, "ok": not missed, "environment": environment()}
    if not quick:
        write_json(report, ROOT / "results" / "exact.json")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
