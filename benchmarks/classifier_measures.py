"""Fisher forgetting's divergences and trade-off, and backdoor verification, as in docs/classifiers.md.

    OMP_NUM_THREADS=1 python -m benchmarks.classifier_measures [fisher] [backdoor]

Writes results/classifier_fisher.json, results/classifier_backdoor.json and docs/fisher.svg.
"""

import copy
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.environment import environment
from erase.classification.backdoor import plant, success_rate
from erase.classification.bench import config_for, recipe_for, run_method, train_original
from erase.classification.data import load_dataset
from erase.classification.loop import predict
from erase.classification.methods.fisher import Fisher, Scrubbed, gaussian_kl, information_bound, scrub
from erase.classification.methods.influence import FlatWeights
from erase.classification.split import Batches, split_class, split_ids
from erase.files import write_json, write_text
from eval.unlearning import sape

ROOT = Path(__file__).parent.parent
COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.classifier_measures"
SIGMAS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]


class Logistic(nn.Module):
    """sigmoid(w.x) as the second of two classes, in float64."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_features, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2)."""
        score = inputs @ self.weights
        return torch.stack([torch.zeros_like(score), score], 1)


def divergences() -> list[dict[str, float]]:
    """Logistic regression on digits 3 vs 8 (285 rows, l2 0.01, sigma 0.1): KL to the retrained model, in nats."""
    digits = load_digits()
    chosen = np.isin(digits.target, (3, 8))
    x, y = torch.from_numpy(digits.data[chosen]), torch.from_numpy((digits.target[chosen] == 3).astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(x))[:285])
    x, y = x[order] / x[order].norm(dim=1).max(), y[order]

    def config(newton: bool) -> Fisher:
        return Fisher(sigma=0.1, newton=newton, damping=0, l2=0.01, curvature="full")

    def minimum(skip: int) -> nn.Module:
        model = Logistic(64)
        for _ in range(30):  # for this model the Fisher information is the Hessian: the correction is Newton's method
            model.weights.data = scrub(config(True), model, Batches(x[skip:], y[skip:], 512)).mean
        return model

    original, rows = minimum(0), []
    for num_forget in (10, 50, 100):
        retain = Batches(x[num_forget:], y[num_forget:], 512)
        goal = scrub(config(False), minimum(num_forget), retain)
        noise, corrected = (scrub(config(newton), original, retain) for newton in (False, True))
        rows.append(
            {
                "num_forget": num_forget,
                "distance": float((noise.mean - goal.mean).norm()),
                "distance_corrected": float((corrected.mean - goal.mean).norm()),
                "kl_noise_only": gaussian_kl(noise, goal),
                "kl_corrected_means": gaussian_kl(Scrubbed(corrected.mean, goal.covariance), goal),
                "information_bound": information_bound([gaussian_kl(corrected, goal)]),
            }
        )
    return rows


def trade_off(num_draws: int = 5) -> dict[str, Any]:
    """Digits, class 3 forgotten by noise shaped by the retain set's Fisher information: accuracy there and elsewhere."""
    digits, recipe = load_dataset("digits"), recipe_for("digits", 3, None)
    split = split_class(digits, 3)
    original = train_original(digits, recipe, 0)
    retain = Batches(digits.inputs[split.retain], digits.labels[split.retain], 512)
    forgotten = (digits.test_labels == 3).nonzero()[:, 0]
    points = []
    for newton, sigma in itertools.product((False, True), SIGMAS):
        scrubbed = scrub(Fisher(sigma=sigma, damping=0.01, newton=newton), original, retain)
        accuracies: dict[str, list[float]] = {"forgotten": [], "kept": []}
        for draw in range(num_draws):
            model = copy.deepcopy(original)
            weights = FlatWeights(model, None)
            present = weights.gather(tuple(tensor.detach() for tensor in weights.dense))
            weights.add(scrubbed.draw(torch.Generator().manual_seed(draw)) - present)
            for name, rows in (("forgotten", forgotten), ("kept", split.test)):
                probabilities, labels = predict(model, Batches(digits.test_inputs[rows], digits.test_labels[rows], 512))
                accuracies[name].append(100 * float((probabilities.argmax(1) == labels).float().mean()))
        points.append(
            {"newton": newton, "sigma": sigma, **{name: statistics.fmean(values) for name, values in accuracies.items()}}
        )
    return {"num_draws": num_draws, "damping": 0.01, "points": points}


def backdoor(seed: int) -> dict[str, float]:
    """Digits, 100 rows stamped with a 2 x 2 corner and labelled 0: per cent of other test rows on which the trigger works."""
    digits, recipe = load_dataset("digits"), recipe_for("digits", 3, None)
    others = (digits.labels != 0).nonzero()[:, 0]
    rows = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:100]]
    planted, split = plant(digits, rows, 0), split_ids(digits, rows.tolist())
    original = train_original(planted, recipe, seed)
    models = {"original": original}
    for method in ("retrain", "salun", "random_label", "ft", "gradient_ascent", "boundary_shrink"):
        models[method], _ = run_method(original, config_for(recipe, method), planted, split, recipe, seed)
    rates = {name: success_rate(model, planted, split, 0) for name, model in models.items()}
    return rates | {f"sape_{name}": sape(rates["retrain"], rate) for name, rate in rates.items()}


def plot(points: list[dict[str, Any]]) -> str:
    """The trade-off as SVG: per cent right against sigma; dashed: noise alone, solid: with the Newton correction."""
    width, height, left, top = 560, 300, 50, 20
    low, high = np.log10(points[0]["sigma"]), np.log10(points[-1]["sigma"])

    def at(sigma: float, value: float) -> tuple[float, float]:
        share = (np.log10(sigma) - low) / (high - low)
        return left + share * (width - left - 20), top + (1 - value / 100) * (height - top - 40)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for value in (0, 25, 50, 75, 100):
        _, y = at(points[0]["sigma"], value)
        parts.append(f'<path d="M{left} {y:.1f}H{width - 20}" stroke="#ddd"/><text x="12" y="{y + 4:.1f}">{value} %</text>')
    for point in points[: len(SIGMAS)]:
        x, y = at(point["sigma"], 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{point["sigma"]:g}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">sigma</text>')
    curves = (("kept", "#1f5fa8", "test rows of the other nine"), ("forgotten", "#b8442c", "test rows of class 3"))
    for k, (name, colour, label) in enumerate(curves):
        for newton, dash in ((False, ' stroke-dasharray="6 4"'), (True, "")):
            chosen = [at(point["sigma"], point[name]) for point in points if point["newton"] == newton]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in chosen)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{left + 6}" y="{top + 110 + 16 * k}" fill="{colour}">{label}</text>')
    parts.append(f'<text x="{left + 6}" y="{top + 142}">dashed: noise alone; solid: Newton correction and noise</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """The parts named on the command line, or both: fisher, backdoor."""
    head = {"command": COMMAND, "environment": environment()}
    parts, results = sys.argv[1:] or ["fisher", "backdoor"], Path(__file__).parent / "results"
    if "fisher" in parts:
        trade = trade_off()
        write_text(plot(trade["points"]), ROOT / "docs" / "fisher.svg")
        write_json({**head, "digits_3_vs_8": divergences(), "trade_off": trade}, results / "classifier_fisher.json")
        print(trade, flush=True)
    if "backdoor" in parts:
        write_json({**head, "seeds": {seed: backdoor(seed) for seed in range(3)}}, results / "classifier_backdoor.json")


if __name__ == "__main__":
    main()
