"""The methods' settings for the embedded model, tried on the pilot concepts (erase.benching.cells.PILOT) and nothing else.

    python -m benchmarks.methods_pilot [--concepts cat] [--methods esd,munba] [--minutes 25]

Training is as shipped (steps, batches) but for what a point says; the data set is smaller (24 forget, 48 retain and 12 anchor
pictures), and 24 pictures of the concept and 28 of the rest are judged, drawn with 10 sampler steps; `ssim` is the 28's mean
structural similarity to the base's own of the same seeds (Wang et al., 2004): it tells points apart that keep every name.
Points whose prompts and data settings are the same share one data set and its saliency. One line per point goes to
results/methods_pilot.jsonl; a point that is there is not run again. `chosen` is the rule by which configs/methods/ has one of
them (a test holds the files to it); the default's own points are for its recipe, which was chosen by more than these figures.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from erase.benching.cells import PILOT, shares
from erase.concepts import Prompt
from erase.config import RunConfig
from erase.data import TrainingData, make_data
from erase.evaluation import measures_of
from erase.methods import METHODS
from erase.plan import Plan, plan
from erase.recipes import resolve
from erase.run import forget_losses
from erase.saliency import Mask, saliency, top_mask
from erase.salient import SalientWeights
from erase.train import train
from eval.detectors import EmojiJudge, to_tensor
from eval.generate import draw
from eval.networks import ssim
from eval.prompts import requests_for
from pipelines.family import Family
from pipelines.load import load

RESULTS = Path(__file__).parent / "results" / "methods_pilot.jsonl"
SMALL = (
    *("data.num_forget=24", "data.num_retain=48", "data.num_anchor=12", "data.num_inference_steps=10", "saliency.rounds=1"),
    "evaluation.num_forget=24",
)
# what each method's file had when its points were tried: a point is that with a few settings changed
STARTS: dict[str, list[str]] = {
    "uce": ["method.erase_weight=1.0", "method.ridge=0.5"],
    "paper": ["train.steps=60"],
    "munba": ["method.retain=denoise", "train.steps=60"],
    "esd": ["method.weights=x", "method.negative_guidance=1.0", "method.asked=concept", "train.steps=60"],
    "erasediff": ["method.retain=denoise", "train.steps=60"],
    "concept_ablation": ["method.target=model", "method.weights=key_value", "method.regularisation=1.0", "train.steps=60"],
    "forget_me_not": ["method.end_tokens=true", "train.steps=40"],
    "gradient_ascent": ["method.retain=denoise", "train.steps=40"],
    "scissorhands": [
        *("method.drawn_anew=self_attention", "method.draw=normal", "method.ascent=0.1", "method.retain=denoise"),
        "train.steps=60",
    ],
    "salun": ["saliency.density=0.5", "method.alpha=1", "train.steps=60", "train.retain_batch_size=24"],
}
CHANGES: dict[str, list[list[str]]] = {
    "uce": [["method.ridge=0.5"], ["method.ridge=0.01"], ["method.erase_weight=0.05", "method.ridge=1.0"]],
    "paper": [
        ["train.learning_rate=3e-4"],
        ["train.learning_rate=1e-3"],
        ["train.learning_rate=1e-4"],
        ["train.learning_rate=3e-4", "train.steps=120"],
        ["train.learning_rate=1e-4", "train.steps=120"],
        ["train.learning_rate=2e-4"],
        ["train.learning_rate=2e-4", "train.steps=120"],
    ],
    "munba": [
        ["train.learning_rate=3e-4"],
        ["train.learning_rate=1e-3"],
        ["train.learning_rate=3e-4", "method.retain=distill"],
    ],
    "esd": [
        ["train.learning_rate=1e-3"],
        ["train.learning_rate=1.5e-3", "method.negative_guidance=2"],
        ["train.learning_rate=1e-3", "train.steps=120"],
        ["train.learning_rate=1e-3", "method.asked=sentence"],
    ],
    "erasediff": [
        ["method.target=relabel", "train.learning_rate=3e-4"],
        ["method.target=relabel", "train.learning_rate=1.5e-3"],
        ["method.target=relabel", "train.learning_rate=1e-3", "train.steps=120"],
    ],
    "concept_ablation": [
        ["train.learning_rate=1e-3"],
        ["train.learning_rate=3e-3"],
        ["train.learning_rate=3e-3", "method.regularisation=0.2"],
    ],
    "forget_me_not": [
        ["method.weights=cross_attention", "train.learning_rate=6e-4"],
        ["method.weights=full", "train.learning_rate=6e-4"],
        ["method.weights=full", "train.learning_rate=3e-4", "train.steps=80"],
        ["method.weights=cross_attention", "train.learning_rate=6e-4", "train.steps=60"],
        ["method.weights=cross_attention", "train.learning_rate=1e-3"],
        ["method.weights=full", "train.learning_rate=1e-4"],
        ["method.weights=full", "train.learning_rate=6e-5"],
        ["method.weights=full", "train.learning_rate=8e-5"],
    ],
    "gradient_ascent": [
        ["train.learning_rate=1e-4", "method.alpha=5"],
        ["train.learning_rate=1e-4", "method.alpha=1"],
        ["train.learning_rate=3e-5", "method.alpha=5"],
        ["train.learning_rate=1e-4", "method.alpha=2"],
        ["train.learning_rate=1e-4", "method.alpha=5", "train.steps=80"],
    ],
    "scissorhands": [
        ["method.trimmed=0.001", "train.learning_rate=3e-4"],
        ["method.trimmed=0.001", "train.learning_rate=6e-4"],
        ["method.trimmed=0.001", "method.drawn_anew=all", "train.learning_rate=6e-4"],
        ["method.trimmed=0.01", "method.drawn_anew=cross_attention", "train.learning_rate=6e-4"],
        ["method.trimmed=0.001", "train.learning_rate=1e-4"],
        ["method.trimmed=0.0002", "train.learning_rate=2e-4"],
        ["method.trimmed=0.001", "method.ascent=0.03", "train.learning_rate=3e-4"],
        ["method.trimmed=0.001", "train.learning_rate=2e-4"],
        ["method.trimmed=0.001", "method.ascent=0.01", "train.learning_rate=3e-4"],
    ],
    "salun": [
        ["method.alpha=1"],
        ["method.alpha=3"],
        ["method.alpha=8"],
        ["method.alpha=1", "train.retain_batch_size=40"],
        ["method.alpha=3", "train.steps=90"],
        ["method.alpha=1", "saliency.density=0.2"],
        ["method.alpha=1", "train.steps=120"],
    ],
}


def point_of(start: list[str], changes: list[str]) -> list[str]:
    """The settings of a point, whole: those of the start that it does not change, then its changes."""
    changed = {setting.partition("=")[0] for setting in changes}
    return [*(setting for setting in start if setting.partition("=")[0] not in changed), *changes]


POINTS = {method: [point_of(STARTS[method], changes) for changes in tried] for method, tried in CHANGES.items()}
"""The points, method by method: each names all that any of them changes, and all that the method's file has."""
OURS = {"munba": "method.retain=distill"}
"""What a point has that is of our default and not of the method's paper: for the ablation, not for the method."""


def chosen(method: str, rows: list[dict[str, Any]]) -> list[str]:
    """The settings of the method's best point: UA of 95 % at least, then the most names kept, then the likest pictures."""
    own = [row for row in rows if row["method"] == method and OURS.get(method) not in row["settings"]]
    best = max(own, key=lambda row: (row["ua"] >= 95, row["ira"] + row["cra"], row["ssim"]))
    return list(best["settings"])


Made = tuple[TrainingData, dict[str, Tensor]]


def data_key(planned: Plan) -> str:
    """What decides a data set: every prompt, which anchor and labels are in, and every setting of it."""
    return repr((planned.data, planned.config.data))


class Pilot:
    """One pilot concept's points; those with the same prompts and data settings share a data set and its saliency."""

    def __init__(self, concept: str, family: Family) -> None:
        self.concept, self.family = concept, family
        self.judge = EmojiJudge()
        self.ssim = ssim()
        self.made: dict[str, Made] = {}
        self.before: dict[str, list[Any]] = {}

    def data(self, planned: Plan) -> Made:
        """The plan's data set and its saliency, made once for all plans that have the same."""
        key = data_key(planned)
        if key not in self.made:
            data = self.make(planned)
            losses = forget_losses(self.family, data, 1, planned.config.saliency.batch_size, 0)
            self.made[key] = data, saliency(self.family.denoiser, losses)
        return self.made[key]

    def make(self, planned: Plan) -> TrainingData:
        """The data set of a plan."""
        settings = planned.config.data
        return make_data(
            self.family,
            planned.data,
            seed=0,
            forget_guidance_scale=settings.forget_guidance_scale,
            retain_guidance_scale=settings.retain_guidance_scale,
            num_inference_steps=settings.num_inference_steps,
            batch_size=settings.batch_size,
        )

    def config(self, method: str, settings: list[str]) -> RunConfig:
        """The concept's recipe with the method's settings, made small."""
        given = {"concept": self.concept, "method.name": method}
        return resolve(given, [*SMALL, *settings])

    def mask(self, config: RunConfig, scores: dict[str, Tensor]) -> Mask:
        """The most salient weights of the method's scope."""
        scope = METHODS[config.method.name].scope
        inside = scope(config.method, self.family) if scope else scores.keys()
        return top_mask({name: values for name, values in scores.items() if name in inside}, config.saliency.density)

    def measure(self, planned: Plan) -> dict[str, float]:
        """UA, IRA, CRA and the structural similarity to the base's retained pictures, of the weights as they are."""
        asked = self.asked(planned)
        pixels = self.drawn(planned)
        record, _ = measures_of(planned, list(zip(asked, self.judge(to_tensor(pixels)), strict=True)))
        kept, before = (side[len(planned.forget_evaluation) :] for side in (pixels, self.before[repr(asked)]))
        same = mean(self.ssim([one], [other]) for one, other in zip(before, kept, strict=True))
        figures = {key: round(value, 2) for key, value in shares(record).items() if key != "by_name"}
        return figures | {"ssim": round(same, 4)}

    def asked(self, planned: Plan) -> list[Prompt]:
        """The prompts that are judged: all for the concept, then every fifth of the rest."""
        return [*planned.forget_evaluation, *planned.retain_evaluation[::5]]

    def drawn(self, planned: Plan) -> list[Any]:
        """One picture for each of them, by the weights as they are."""
        requests = requests_for(planned.forget_evaluation, planned.retain_evaluation[::5], 1000, 10, 3.0)
        return list(draw(self.family, requests, len(requests)))

    def point(self, method: str, settings: list[str]) -> dict[str, Any]:
        """One method with these settings, trained and measured; the weights are as before afterwards."""
        config = self.config(method, settings)
        planned = plan(config, self.family)
        data, scores = self.data(planned)
        if repr(self.asked(planned)) not in self.before:
            self.before[repr(self.asked(planned))] = self.drawn(planned)
        began = time.monotonic()
        salient = SalientWeights(self.family.denoiser, self.mask(config, scores), lean=True)
        records = list(train(self.family, salient, data, config.method, config.train, seed=0))
        seconds = time.monotonic() - began
        figures = self.measure(planned)
        salient.restore()
        salient.close()
        row = {"method": method, "settings": settings, "steps": config.train.steps}
        return row | figures | {"train_s": round(seconds, 1), "loss": records[-1]["loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", default="cat")
    parser.add_argument("--methods", default=",".join(POINTS))
    parser.add_argument("--minutes", type=float, default=25.0, help="stop before the next point after so much CPU time")
    arguments = parser.parse_args()
    if strange := set(arguments.concepts.split(",")) - set(PILOT):
        raise SystemExit(f"{', '.join(strange)}: settings are chosen on {', '.join(PILOT)} alone.")
    torch.manual_seed(0)
    before = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    have = {(row["concept"], row["method"], tuple(row["settings"])) for row in before}
    family = load("emoji")
    for concept in arguments.concepts.split(","):
        pilot = Pilot(concept, family)
        for method in arguments.methods.split(","):
            for settings in POINTS[method]:
                if (concept, method, tuple(settings)) in have or time.process_time() > 60 * arguments.minutes:
                    continue
                row = {"concept": concept, **pilot.point(method, settings), "environment": environment()}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
