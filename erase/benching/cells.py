"""One cell of the table: a concept erased by a method with a mask (or none) and a seed, measured; one JSON file each."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase.benching.attack import Attack
from erase.benching.code import code_hash
from erase.benching.machine import machine, reset_peak
from erase.benching.stages import remove_outdated, reuse_shared_stages, share_stages
from erase.benching.strip import strip
from erase.config import RunConfig
from erase.evaluation import Measured, collapse_gate, draw_and_measure
from erase.files import hash_of, slug, write_json
from erase.plan import Plan, plan
from erase.progress import Progress
from erase.recipes import resolve
from erase.retrained import check_retrained
from erase.run import execute
from eval.collapse import gather
from eval.detectors import EmojiJudge
from eval.evaluate import EvaluationOptions
from eval.pictures import read_manifest
from eval.quality import frechet
from eval.resemblance import perceptual
from eval.sides import PictureFolder, Tools
from pipelines.family import Family
from pipelines.load import load, model_hash

# what the methods' settings were chosen on, and what the methods' table is about
PILOT = ("cat", "guitar", "apple", "sticker")
TABLE_CONCEPTS = (
    *("dog", "church", "fish", "gas pump", "parachute", "truck", "penguin"),
    *("line art", "neon", "3d", "pixel art", "cartoon"),
)
QUICK = (
    *("data.num_forget=6", "data.num_retain=8", "data.num_anchor=4", "data.num_inference_steps=2"),
    *("train.steps=2", "evaluation.num_forget=4", "evaluation.num_inference_steps=2", "saliency.rounds=1"),
)
OTHER_SEEDS = 100_000  # added to the seeds of the base's second set of pictures, which all others' are held against

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What is run once; `density` None: no mask. A method's name may carry settings: `salun+method.balance=nash`."""

    concept: str
    method: str
    density: float | None
    seed: int

    @property
    def name(self) -> str:
        """File name of the cell."""
        mask = "none" if self.density is None else f"{self.density:g}"
        return f"{slug(self.concept)}-{re.sub(r'[^a-z0-9_-]+', '-', self.method)}-{mask}-{self.seed}"

    def config(self, settings: tuple[str, ...]) -> RunConfig:
        """The run's config: the concept's recipe, the method's settings, the mask, `settings`, then what the name adds."""
        name, *more = self.method.split("+")
        mask = "saliency.method=none" if self.density is None else f"saliency.density={self.density}"
        given = {"concept": self.concept, "seed": self.seed, "method.name": name}
        return resolve(given, [mask, *settings, *more])


class Bench:
    """The base, the judge and the folder that all cells share."""

    def __init__(
        self, out: Path, settings: tuple[str, ...], progress: Progress, attack: Attack | None = None, collect: bool = False
    ) -> None:
        self.out, self.settings, self.progress, self.attack, self.collect = out, settings, progress, attack, collect
        self.evaluation = [setting for setting in settings if setting.startswith("evaluation.")]  # for whole models
        self.family = load("emoji")
        self.base_hash = model_hash("emoji")
        self.judge = EmojiJudge()
        self.tools = Tools(EvaluationOptions())
        self._other_moments: dict[str, Any] = {}

    def cached_row(self, name: str, inputs: Any, make: Callable[[], Row], part: str = "cells") -> Row | None:
        """A part of a row: from its file if that was made with the same inputs, else made and written; `collect`: else None."""
        path, key = self.out / part / f"{name}.json", hash_of([self.base_hash, inputs])
        if path.is_file():
            row: Row = json.loads(path.read_text(encoding="utf-8"))
            if row.get("inputs") == key:
                return row
        if self.collect:
            return None
        row = {"name": name, "inputs": key, **make(), "environment": machine()}
        write_json(row, path)
        return row

    def run_cell(self, cell: Cell) -> Row | None:
        """The row of one erasing run, with its attack column where asked for; the run's folder is removed afterwards."""
        config = cell.config(self.settings)
        inputs = [self.inputs(config.model_dump(mode="json"), config), code_hash(config.method.name)]
        folder = self.out / "runs" / cell.name

        def model() -> str:
            self._erase(cell, config, folder)  # goes on from the folder, which is whole if the row was made just now
            return str(folder / "model")

        row = self.cached_row(cell.name, inputs, lambda: self._measure_cell(cell, config, folder))
        row = self.with_attack(row, inputs, config, model)
        if not self.collect:
            shutil.rmtree(folder, ignore_errors=True)
        return row

    def inputs(self, settings: Any, config: RunConfig) -> Any:
        """What decides a cell's row, beside the base and the code that trains: settings, every prompt, who judges."""
        asked = plan(config, self.family)
        prompts = repr((asked.data, asked.anchors, asked.forget_evaluation, asked.retain_evaluation))
        return [settings, prompts, OTHER_SEEDS, self.judge.card()["sha256"]]

    def with_attack(self, row: Row | None, inputs: Any, config: RunConfig, model: Callable[[], str]) -> Row | None:
        """The row with its attack column, where that is asked for; kept apart, so that other attacks make no other row."""
        attack = self.attack
        if not attack or not row:
            return row
        folder = self.out / "runs" / f"{row['name']}-attack"

        def run_attack() -> Row:
            rate = attack.rate(model(), config, folder, self.progress)
            shutil.rmtree(folder, ignore_errors=True)
            return rate

        found = self.cached_row(row["name"], [inputs, attack.key()], run_attack, "attacks")
        return row | {"attack": found["attack"], "attacked": found} if found else row

    def _erase(self, cell: Cell, config: RunConfig, folder: Path) -> tuple[Plan, Row]:
        """The plan and the results of the cell's run, done in `folder` as far as it is not done there already."""
        shared = self.out / "shared" / f"{slug(cell.concept)}-{cell.seed}"
        remove_outdated(folder, config)
        reuse_shared_stages(shared, folder, config)
        planned = plan(config, self.family)
        results = execute(planned, self.family, folder, self.progress, self.base_hash)
        share_stages(folder, shared)
        return planned, results

    def _measure_cell(self, cell: Cell, config: RunConfig, folder: Path) -> Row:
        """The figures of one erasing run, which is done in `folder`; writes a strip of its pictures."""
        drawn = folder / "pictures"
        reset_peak()
        planned, results = self._erase(cell, config, folder)
        seconds, proof = results["seconds"], results["audit"]
        masked = config.saliency.method == "gradient"
        row = {
            "concept": cell.concept,
            "kind": results["kind"],
            "method": cell.method,
            "density": cell.density,
            "seed": cell.seed,
            **shares(results["erased"]),
            **self.picture_figures(folder, planned),
            "attack": None,
            "collapsed": not results["collapse"]["passed"],
            "seconds": round(step_seconds(folder) + (seconds["saliency"] if masked else 0.0), 2),
            "peak_rss_gb": results["peak_rss_gb"],
            "changed_outside_mask": proof["changed_outside_mask"],
            "num_salient": proof["num_salient"],
        }
        strip((drawn / "base", drawn / "erased"), self.out / "strips" / f"{cell.name}.webp")
        return row

    def measure_base(self, concept: str) -> Row | None:
        """The row of the base; its retained pictures' distance from its own of other seeds is the floor of every distance."""
        config = resolve({"concept": concept}, self.evaluation)
        inputs = self.inputs(config.evaluation.model_dump(), config)

        def measure() -> Row:
            return self._measure_model(concept, "base", config, self.family)

        row = self.cached_row(f"{slug(concept)}-base", inputs, measure)
        return self.with_attack(row, inputs, config, lambda: "emoji")

    def measure_retrained(self, concept: str, source: Path) -> Row | None:
        """The row of the model retrained without the concept: a diffusers folder, or a run of `--method retrain`."""
        model = source / "model" if (source / "config.yaml").is_file() else source
        config = resolve({"concept": concept}, self.evaluation)
        digest = model_hash(str(model))
        check_retrained(model, concept)

        def measure() -> Row:
            row = self._measure_model(concept, "retrain", config, load(str(model)), digest)
            return row | {"seconds": retraining_seconds(source)}

        inputs = self.inputs([config.evaluation.model_dump(), digest], config)
        row = self.cached_row(f"{slug(concept)}-retrain", inputs, measure)
        return self.with_attack(row, inputs, config, lambda: str(model))

    def _measure_model(self, concept: str, method: str, config: RunConfig, family: Family, digest: str | None = None) -> Row:
        """A whole model's figures beside the base's, on the concept's evaluation prompts."""
        folder = self.out / "runs" / f"{slug(concept)}-{method}"
        planned = plan(config, self.family)
        side = "erased" if digest else "base"
        base = measured = self._draw_and_measure(planned, self.family, self.base_hash, 0, folder / "pictures" / "base")
        if digest:
            measured = self._draw_and_measure(planned, family, digest, 0, folder / "pictures" / side)
        collapsed = not collapse_gate(base, measured).passed
        row = {"concept": concept, "kind": planned.concept.kind, "method": method, "density": None, "seed": config.seed}
        figures = shares(measured.record) | self.picture_figures(folder, planned, side)
        shutil.rmtree(folder)
        return row | figures | {"attack": None, "collapsed": collapsed, "seconds": None, "peak_rss_gb": None}

    def _draw_and_measure(self, planned: Plan, family: Family, model: str, offset: int, folder: Path) -> Measured:
        """`draw_and_measure` under a progress bar; the base's pictures may come from the cache."""
        num = len(planned.forget_evaluation) + len(planned.retain_evaluation)
        cached = model == self.base_hash
        with self.progress.stage(f"{planned.concept.name}: {folder.parent.parent.name}", num) as bar:
            return draw_and_measure(
                planned, family, self.judge, folder, bar.advance, model=model, use_cache=cached, seed_offset=offset
            )

    def picture_figures(self, folder: Path, planned: Plan, side: str = "erased") -> Row:
        """FD-emoji of the retained pictures from the base's of other seeds; LPIPS and SSIM against the base's of the same.

        Pictures of the same seeds would be near whatever was done to the model: no floor would hold for them.
        """
        sides = {name: folder / "pictures" / name for name in ("base", side)}
        own = gather(sides[side], read_manifest(sides[side]), self.judge.features, {}, {})["retain"].moments
        parts: dict[str, Any] = {"rows": []}
        for measure in ("LPIPS", "SSIM") if side != "base" else ():
            perceptual(measure, {"base": PictureFolder(sides["base"]), "model": PictureFolder(sides[side])}, self.tools, parts)
        found = {row.key: row.model.value for row in parts["rows"]}
        distance = round(float(frechet(own, self._moments_of_other_seeds(planned))), 4)
        return {"fd": distance, "lpips": found.get("lpips"), "ssim": found.get("ssim")}

    def _moments_of_other_seeds(self, planned: Plan) -> Any:
        """The feature moments of the base's retained pictures of other seeds than all that are judged."""
        name = planned.concept.name
        if name not in self._other_moments:
            folder = self.out / "runs" / f"{slug(name)}-other-seeds"
            measured = self._draw_and_measure(planned, self.family, self.base_hash, OTHER_SEEDS, folder)
            self._other_moments[name] = measured.evidence["retain"].moments
            shutil.rmtree(folder)
        return self._other_moments[name]


def step_seconds(folder: Path) -> float:
    """What the steps of a run took, also those before it was stopped and gone on with."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(float(json.loads(line)["seconds"]) for line in lines)


def shares(record: dict[str, Any]) -> Row:
    """UA, IRA and CRA in percent, with what they were measured on, and how many of each name's pictures show it."""
    counts = {"n_forget": record["intervals"]["forget"]["n"], "n_retained": record["intervals"]["ira"]["n"]}
    return {
        "ua": 100 * (1 - record["forget_accuracy"]),
        "ira": 100 * record["ira"],
        "cra": 100 * record["cra"],
        "none_retained": 100 * record["none_retained"],
        "none_forget": 100 * record["none_forget"],
        **counts,
        "by_name": {name: [found["count"], found["n"]] for name, found in record["by_name"].items()},
    }


def retraining_seconds(source: Path) -> float | None:
    """How long the retraining took, as its script recorded it; None where nothing is recorded."""
    for path in (source / "model" / "training.json", source / "training.json"):
        if path.is_file():
            hours = json.loads(path.read_text(encoding="utf-8"))["hours"]
            return round(3600 * sum(hours.values()), 1)
    return None
