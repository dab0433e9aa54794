"""The last question of a run: what the base and the exported model draw for the same prompts and seeds; results.json."""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erase.config import LoadConfig
from erase.export import compare_weights
from erase.files import write_json
from erase.plan import Plan
from erase.processes import main_first, peak_rss
from erase.progress import Bar
from erase.saliency import Mask, density_by_block
from erase.telling import becomes, has_mask
from pipelines.family import Family

if TYPE_CHECKING:
    from erase.run import Run
    from eval.collapse import Evidence, Gate
    from eval.detectors import EmojiJudge, Reading
    from eval.pictures import Picture


def is_measured(plan: Plan, family: Family) -> bool:
    """Whether a detector at hand knows what is erased, so that pictures are drawn for it to judge.

    It knows the embedded vocabulary and nothing else.
    """
    return family.vocabulary is not None and plan.concept.kind != "prompts"


def base_again(run: "Run") -> Family:
    """The base in float32 on the CPU, loaded anew."""
    from pipelines.load import load

    config = run.plan.config
    return load(config.model, config.load.model_copy(update={"dtype": "float32", "device": "cpu"}))


def evaluate_stage(run: "Run", mask: Mask, began: float) -> None:
    """Compare what was written with the base bit for bit, draw and read the pictures of both models, and write results.json."""
    from eval.detectors import EmojiJudge
    from pipelines.load import load

    config, folder = run.plan.config, run.folder.path
    judge = EmojiJudge() if is_measured(run.plan, run.family) else None
    prompts = [*run.plan.forget_evaluation, *run.plan.retain_evaluation]
    inputs: list[Any] = [config.evaluation.model_dump(exclude={"batch_size"}), [p.text for p in prompts]]
    inputs += [judge.card()["sha256"] if judge else None, run.file_hash("export" if "export" in run.folder.stages else "train")]
    files = ["results.json", "pictures"] if judge else ["results.json"]
    with run.stage("evaluate", inputs, files, 2 * len(prompts) if judge else 1, ("saliency", "export")) as bar:
        if bar is None:
            return
        evaluated = time.monotonic()
        base_weights = _base_weights(run)  # before the other model is loaded: the patch is let go
        device = config.load.device if judge else "cpu"  # only compared, it needs no room on the card
        exported = load(str(folder / "model"), LoadConfig(device=device))  # what is measured is what was written
        erased_weights = dict(exported.denoiser.named_parameters())
        difference = compare_weights(base_weights, {n: p.detach() for n, p in erased_weights.items()}, mask)
        measured = _measure_both(run, exported, judge, bar) if judge else _not_measured(run.plan)
        results = {
            "schema_version": 1,
            **_asked_for(run),
            **measured,
            "audit": asdict(difference),
            "density_by_block": density_by_block(mask),
            "detector": judge.card() if judge else None,
            "seconds": _seconds(run, began, evaluated),
            "resumed": bool(run.skipped),
            "peak_rss_gb": round(peak_rss() / 2**30, 3),
            "machine": {"threads": torch.get_num_threads(), "processor": platform.machine()},
        }
        main_first(lambda: write_json(results, folder / "results.json"))


def _asked_for(run: "Run") -> dict[str, Any]:
    """What results.json says of the run before anything is measured."""
    config, concept = run.plan.config, run.plan.concept
    return {
        "concept": concept.name,
        "kind": concept.kind,
        "anchors": becomes(config, run.plan.anchors),
        "model": config.model,
        "base_sha256": run.base_hash,
        "method": config.method.name,
        "density": config.saliency.density if has_mask(config) else 1.0,
        "patch": run.applied is not None,
        "seed": config.seed,
    }


def _seconds(run: "Run", began: float, evaluated: float) -> dict[str, float]:
    """What each stage took, and the run until now; `began` and `evaluated`: when the run and its evaluation began."""
    now = time.monotonic()
    taken = {name: entry["seconds"] for name, entry in run.folder.stages.items()}
    times = {key: taken.get(key, 0.0) for key in ("generate", "saliency", "train")}
    return times | {"evaluate": round(now - evaluated, 2), "total": round(now - began, 2)}


def _base_weights(run: "Run") -> dict[str, Tensor]:
    """The base's denoiser in float32; the family in memory is the base again."""
    if run.applied is not None:
        run.applied.close()
    exact = run.family if run.plan.config.load.dtype == "float32" else base_again(run)
    return {name: parameter.detach().cpu() for name, parameter in exact.denoiser.named_parameters()}


# for concepts that no detector at hand knows
NO_FIGURES: dict[str, Any] = {"forget_accuracy": None, "ira": None, "cra": None, "n": 0}


def _not_measured(plan: Plan) -> dict[str, Any]:
    shares = [(None, 0) for _ in plan.targets]
    figures = {"base": NO_FIGURES, "erased": NO_FIGURES, "collapse": None}
    return figures | {"concepts": _by_concept(plan, shares, shares)}


def _by_concept(plan: Plan, base: list[Any], erased: list[Any]) -> list[dict[str, Any]]:
    """One row per concept of (share of pictures that show it, n) in both models."""
    rows = zip(plan.targets, base, erased, strict=True)
    return [
        {
            "name": target.concept.name,
            "kind": target.concept.kind,
            "anchors": becomes(plan.config, target.anchors),
            "base": {"forget_accuracy": before},
            "erased": {"forget_accuracy": after},
            "n": n,
        }
        for target, (before, n), (after, _) in rows
    ]


def _measure_both(run: "Run", exported: Family, judge: "EmojiJudge", bar: Bar) -> dict[str, Any]:
    """The measures of the base and of the exported model on the same prompts and seeds, and whether the latter collapsed."""
    from pipelines.load import model_hash

    plan, folder = run.plan, run.folder.path
    erased_hash = model_hash(str(folder / "model"))
    pictures = {name: folder / "pictures" / name for name in ("base", "erased")}
    base = draw_and_measure(plan, run.family, judge, pictures["base"], bar.advance, model=run.base_hash, use_cache=run.cache)
    erased = draw_and_measure(plan, exported, judge, pictures["erased"], bar.advance, model=erased_hash, use_cache=False)
    return {
        "base": base.record,
        "erased": erased.record,
        "collapse": collapse_gate(base, erased).model_dump(mode="json"),
        "concepts": _by_concept(plan, base.shares, erased.shares),
    }


@dataclass(frozen=True)
class Measured:
    """What the judge sees in one model's pictures for a plan's evaluation prompts."""

    record: dict[str, Any]
    """The measures over all concepts, as results.json has them."""
    shares: list[tuple[float, int]]
    """For each concept the share of its pictures that show it, with n."""
    evidence: dict[str, "Evidence"]
    """What the collapse gate needs, by role."""


def draw_and_measure(
    plan: Plan,
    family: Family,
    judge: "EmojiJudge",
    folder: Path,
    advance: Callable[[int], None],
    *,
    model: str,
    use_cache: bool,
    seed_offset: int = 0,
) -> Measured:
    """The measures of the pictures that a model draws into `folder` for the plan's evaluation prompts.

    `model` is the model's hash. Raises ValueError if a picture cannot be read: the measures are over all prompts.
    """
    from eval.cache import generate_cached
    from eval.collapse import gather
    from eval.generate import generate
    from eval.prompts import requests_for

    evaluation = plan.config.evaluation
    settings = (evaluation.seed + seed_offset, evaluation.num_inference_steps, evaluation.guidance_scale)
    requests = requests_for(plan.forget_evaluation, plan.retain_evaluation, *settings)
    draw = generate_cached if use_cache else generate
    drawn = draw(family, requests, folder, model=model, batch_size=evaluation.batch_size, progress=advance)
    readings = _read_every_picture(judge, folder, drawn)
    prompts = [*plan.forget_evaluation, *plan.retain_evaluation]
    record, shares = measures_of(plan, list(zip(prompts, readings, strict=True)))
    sure = {picture.file: reading.anything for picture, reading in zip(drawn, readings, strict=True)}
    return Measured(record, shares, gather(folder, drawn, judge.features, sure, {}))


def _read_every_picture(judge: "EmojiJudge", folder: Path, pictures: list["Picture"]) -> list["Reading"]:
    """What the judge sees in each of the pictures; raises ValueError that names one which cannot be read."""
    from eval.detectors import Reading, read_all

    found, unreadable = read_all(judge, folder, pictures)
    if unreadable:
        reason = next(iter(unreadable.values()))
        raise ValueError(
            f"{folder}: {reason}; the measures need every picture: run the same command again, which draws it again."
        )
    return [Reading(**record) for record in found if record]


def collapse_gate(base: Measured, erased: Measured) -> "Gate":
    """Whether the erased model still makes pictures, held against the base."""
    from eval.collapse import judge_collapse

    before, after = base.evidence, erased.evidence
    return judge_collapse(before["retain"], after["retain"], before.get("forget"), after.get("forget"))


def measures_of(plan: Plan, readings: list[Any]) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    """The measures over all concepts, and for each concept the share of its pictures that show it, with n.

    Every concept has as many pictures, so that the share over all of them is the mean of the concepts' shares.
    """
    from eval.measure import measure

    split = len(plan.forget_evaluation)
    whole, parts, first = measure(plan.concept, readings[:split], readings[split:]), [], 0
    for target in plan.targets:
        last = first + len(target.evaluation)
        parts.append(measure(target.concept, readings[first:last], readings[split:]).forget)
        first = last
    whole = replace(whole, forget=sum(parts[1:], parts[0]))
    return whole.record(), [(part.value, part.n) for part in parts]
