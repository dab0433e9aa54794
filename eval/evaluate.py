"""`erase eval`: draw the suite with the model and with its base, then measure what lies in the folder."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from erase.concepts import Vocabulary
from erase.config import LoadConfig
from erase.files import hash_of, is_unfinished, require_space, write_json
from erase.folder import config_of, require_recorded_base, versions
from erase.methods.base import Config
from erase.processes import main_first, rank
from erase.progress import Progress
from erase.reading import MOST_JSON, read_text
from eval.cache import generate_cached
from eval.generate import generate
from eval.given import in_common, take_over
from eval.pictures import Request
from eval.results import Plan, Results, Source
from eval.suites import SUITES, emoji_concepts, emoji_requests, i2p_path, imagenette_requests, list_requests, not_asked_for
from eval.targets import ModelReference, batch_size_for, concepts_of, find_sides, require_sides
from pipelines.family import Family

DEFAULTS = {"emoji": (20, 3.0, 4), "imagenette": (50, 7.5, 10), "i2p": (50, 7.5, None), "prompts": (50, 7.5, None)}


class EvaluationOptions(Config):
    """What `erase eval` was asked for, beside the model."""

    suite: str = "emoji"
    """The prompt list: emoji, imagenette, i2p or prompts."""
    concepts: tuple[str, ...] = ()
    """What was erased."""
    prompts: Path | None = None
    """A CSV list, for i2p and prompts."""
    num: int | None = None
    """Rows of the list, or pictures per cell or class."""
    steps: int | None = None
    """Sampler steps."""
    guidance: float | None = None
    """Guidance where the list has none."""
    seed: int = 5000
    """Seed of the first picture where the list has none."""
    batch_size: int | None = Field(None, ge=1)
    """Pictures drawn at a time; none: by the denoiser's size."""
    load: LoadConfig = LoadConfig()
    """How models are loaded, as far as it is set; else as the run loaded its base."""
    cache: bool = True
    """Whether the base's pictures may come from the cache."""
    inception: Path | None = None
    """Inception weights for FID and KID."""
    classifier: Path | None = None
    """ResNet-50 weights for imagenette."""
    clip: str | None = None
    """CLIP model for the CLIP score and zero-shot classes."""
    few: bool = False
    """Whether FID may be computed on fewer than 2,048 pictures."""


def evaluate(target: str, baseline: str | None, options: EvaluationOptions, out: Path, bars: Progress) -> Results | None:
    """Draw what is missing, measure, and write results.json; the report is the caller's to write.

    Of several processes that share the drawing the main one measures, which may take longer than others can wait for it: they
    have None and go.
    """
    from eval.measuring import measure_folder
    from eval.sides import Tools
    from pipelines.load import model_hash

    if options.suite not in SUITES:
        raise ValueError(f"there is no suite {options.suite!r}; there are {', '.join(SUITES)}.")
    main_first(lambda: require_own(out))
    subject, base = find_sides(target, baseline, options.load)
    require_sides(options.suite, subject, base)
    if subject.run and base and base.model == (config := config_of(subject.run)).model:
        require_recorded_base(subject.run, config.model, model_hash(config.model, config.load))
    options = options.model_copy(update={"concepts": options.concepts or concepts_of(subject)})
    tools = Tools(options)
    tools.require()  # what the suite cannot do without is missed before hours of drawing, not after
    requests = suite_requests(options)
    if told := not_asked_for(requests, options.concepts):
        bars.note(told)
    subject, base, requests = with_pictures(subject, base, requests, bars)
    plan = plan_for(options, subject, base, requests)
    main_first(lambda: require_same(plan, out))
    main_first(lambda: write_plan(plan, out))  # before any picture, so that the folder is known again when this is stopped
    plan = draw_sides(plan, subject, base, requests, options, out, bars)
    if rank():
        return None
    write_plan(plan, out)
    results = measure_folder(out, tools)
    write_json(results.model_dump(mode="json"), out / "results.json")
    return results


def plan_for(options: EvaluationOptions, subject: ModelReference, base: ModelReference | None, requests: list[Request]) -> Plan:
    """What is asked for, before any picture is drawn."""
    return Plan(
        suite=options.suite,
        concepts=options.concepts,
        model=source_of(subject),
        baseline=source_of(base) if base else None,
        settings=settings_of(options) | {"num_requests": len(requests), "requests_sha256": hash_of_requests(requests)},
        training=training_of(subject.run),
        versions=versions(),
    )


def with_pictures(
    subject: ModelReference, base: ModelReference | None, requests: list[Request], bars: Progress
) -> tuple[ModelReference, ModelReference | None, list[Request]]:
    """The sides with their folders' pictures, and the requests that these are for; notes what is left out."""
    sides = [subject, *([base] if base else [])]
    folders = [one.pictures for one in sides if one.pictures is not None]
    requests, found, told = main_first(lambda: in_common(requests, folders))
    if told:
        bars.note(told)
    taken = iter(found)
    sides = [replace(one, taken=tuple(next(taken))) if one.pictures is not None else one for one in sides]
    return sides[0], sides[1] if base else None, requests


def source_of(one: ModelReference) -> Source:
    """The side's name and hash: of a model's files, and of how it is loaded where that is told; or of all pictures' hashes."""
    from pipelines.load import model_hash

    if one.pictures is not None:
        return Source(name=one.name, sha256=hash_of([picture.sha256 for picture in one.taken]), kind="pictures")
    assert one.model
    digest, load = model_hash(one.model, one.load), one.load or LoadConfig()
    configs = load.config if Path(one.model).is_file() else None
    told = [load.prediction_type, load.dtype if load.dtype != "float32" else None, configs]
    how = [setting for setting in told if setting]
    return Source(name=one.name, sha256=hash_of([digest, *how]) if how else digest)


def draw_sides(
    plan: Plan,
    subject: ModelReference,
    base: ModelReference | None,
    requests: list[Request],
    options: EvaluationOptions,
    out: Path,
    bars: Progress,
) -> Plan:
    """Draw both sides' pictures, or take them over; the plan with what that was done by."""
    from pipelines.load import load

    began, config = time.monotonic(), config_of(subject.run) if subject.run else None
    found: dict[str, Any] = {}
    batch_size = options.batch_size
    left = [side for side, one in (("base", base), ("model", subject)) if one is not None and one.model]
    for side, one, source in (("base", base, plan.baseline), ("model", subject, plan.model)):
        if one is None or source is None:
            continue
        with bars.stage(f"{side}: {one.name}", len(requests)) as bar:
            family = load(one.model, one.load) if one.model else None
            if family is not None:
                batch_size = batch_size or batch_size_for(family.denoiser, config)
                missing = sum(bytes_missing(out / name, requests, family) for name in left)
                main_first(lambda: require_space(out, missing))  # noqa: B023
                left.remove(side)
            cached = side == "base" and options.cache
            fill(out / side, one, source.sha256, family, requests, batch_size, cached, bar.advance)
        if family is not None and family.vocabulary is not None and "similarities" not in found:
            found["similarities"] = similarity(family, options.concepts, family.vocabulary)
        del family  # one model is in memory at a time
    settings = plan.settings | {"batch_size": batch_size}
    return plan.model_copy(update=found | {"settings": settings, "seconds": {"drawing": round(time.monotonic() - began, 1)}})


def bytes_missing(folder: Path, requests: list[Request], family: Family) -> int:
    """Bytes of the pictures that a side's folder still lacks, at two a pixel: photographs as PNG seldom need more."""
    height, width = family.image_size
    left = requests[sum(1 for _ in folder.glob("*.png")) :]
    return sum(2 * (request.height or height) * (request.width or width) for request in left)


def write_plan(plan: Plan, out: Path) -> None:
    """Write plan.json, by which the folder is known as an evaluation's."""
    write_json(plan.model_dump(mode="json"), out / "plan.json")


def require_own(out: Path) -> None:
    """Raise ValueError for a folder with anything in it that is no evaluation's: files of the same names would be lost."""
    if not out.is_dir() or all(path.name == ".lock" or is_unfinished(path) for path in out.iterdir()):
        return
    try:
        read_plan(out)
    except ValueError as error:
        raise ValueError(f"{out} is not empty and was not written by `erase eval`; give another --out.") from error


def read_plan(out: Path) -> Plan:
    """The plan in an evaluation's folder; raises ValueError if there is none."""
    return Plan.model_validate_json(read_text(out / "plan.json", MOST_JSON))


def require_same(plan: Plan, out: Path) -> None:
    """Raise ValueError if the folder holds the evaluation of another model or base, of other concepts or other prompts.

    What an older plan or one that was stopped does not say is no difference.
    """
    if not (out / "plan.json").is_file():
        return
    there = read_plan(out)
    hashes = {
        f"another model ({there.model.name})": (there.model.sha256, plan.model.sha256),
        "another base": (there.baseline.sha256 if there.baseline else "", plan.baseline.sha256 if plan.baseline else ""),
        "other prompts or settings": (there.settings.get("requests_sha256"), plan.settings["requests_sha256"]),
    }
    other = [what for what, (old, new) in hashes.items() if old and new and old != new]
    if there.concepts != plan.concepts:
        other.append(f"other concepts ({', '.join(there.concepts) or 'none'})")
    if other:
        raise ValueError(f"{out} holds the evaluation of {' and '.join(other)}; give another --out, or delete that folder.")


def suite_requests(options: EvaluationOptions) -> list[Request]:
    """The suite's requests; raises ValueError for a concept that the suite does not know."""
    from pipelines.load import EMOJI_VOCABULARY

    settings = settings_of(options)
    steps, guidance, seed, num = (settings[key] for key in ("steps", "guidance", "seed", "num"))
    if num is not None and num < 1:
        raise ValueError(f"--n is {num}; at least 1 is needed.")
    if options.suite == "emoji":
        if options.prompts is not None:
            raise ValueError("the suite emoji has prompts of its own: give --suite prompts with --prompts CSV.")
        known = emoji_concepts(list(options.concepts), EMOJI_VOCABULARY)
        return emoji_requests(EMOJI_VOCABULARY, known, seeds=num, steps=steps, guidance=guidance, seed=seed)
    if options.suite == "imagenette" and options.prompts is None:
        names = [concept.lower() for concept in options.concepts]
        return imagenette_requests(names, seeds=num, steps=steps, guidance=guidance, seed=seed)
    if options.suite == "prompts" and options.prompts is None:
        raise ValueError("--suite prompts needs a list: --prompts CSV, with a column `prompt`.")
    path = i2p_path(options.prompts) if options.suite == "i2p" else options.prompts
    assert path is not None
    role = "forget" if options.suite == "i2p" else "retain"  # nobody wants what I2P asks for to be kept
    return list_requests(path, options.concepts, num=options.num, steps=steps, guidance=guidance, seed=seed, role=role)


def settings_of(options: EvaluationOptions) -> dict[str, Any]:
    """The settings with the suite's defaults put in."""
    steps, guidance, num = DEFAULTS[options.suite]
    dtype = {} if options.load.dtype == "float32" else {"dtype": options.load.dtype}
    return dtype | {
        "steps": options.steps or steps,
        "guidance": guidance if options.guidance is None else options.guidance,
        "seed": options.seed,
        "num": num if options.num is None else options.num,
        "batch_size": options.batch_size,
    }


def fill(
    folder: Path,
    one: ModelReference,
    digest: str,
    family: Family | None,
    requests: list[Request],
    batch_size: int | None,
    cached: bool,
    advance: Callable[[int], None],
) -> None:
    """Put one side's pictures into the folder: drawn by the model of that hash, or taken over from a folder of pictures."""
    if family is None:
        pictures = one.pictures
        assert pictures is not None
        main_first(lambda: take_over(pictures, one.taken, requests, folder))
        advance(len(requests))
        return
    assert batch_size
    draw = generate_cached if cached else generate
    draw(family, requests, folder, model=digest, batch_size=batch_size, progress=advance)


def hash_of_requests(requests: list[Request]) -> str:
    """Hash of the prompt list with its seeds and settings."""
    return hash_of([request.model_dump() for request in requests])


@torch.no_grad()
def similarity(family: Family, concepts: tuple[str, ...], vocabulary: Vocabulary) -> dict[str, float]:
    """Cosine of each known name's mean text embedding with the nearest erased concept's."""
    if not concepts:
        return {}
    names = [*vocabulary.objects, *vocabulary.styles]
    embedded = family.encode_prompts([*concepts, *names])["prompt_embeds"].float().mean(1)
    centred = torch.nn.functional.normalize(embedded - embedded.mean(0), dim=1)
    nearest = (centred[len(concepts) :] @ centred[: len(concepts)].T).max(1).values
    return {name: round(value, 4) for name, value in zip(names, nearest.tolist(), strict=True)}


def training_of(run: Path | None) -> dict[str, Any]:
    """Loss curves (at most 100 points each) and mask density of the run, for the report."""
    if run is None:
        return {}
    training: dict[str, Any] = {}
    if (run / "metrics.jsonl").is_file():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        records = [record for record in lines if record["step"]]
        keys = [key for key in records[0] if key.endswith("_loss")] if records else []
        every = max(1, len(records) // 100)
        training["losses"] = {key: [record[key] for record in records[::every]] for key in keys}
        training["steps"] = len(records)
    if (run / "results.json").is_file():
        training["density_by_block"] = json.loads((run / "results.json").read_text()).get("density_by_block", {})
    return training
