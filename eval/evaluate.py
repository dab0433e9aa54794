"""`erase eval`: draw the suite with the model and with its base, then measure what lies in the folder."""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erase.concepts import Vocabulary
from erase.files import hash_of, write_json
from erase.folder import require_intact, versions
from erase.methods.base import Config
from erase.reading import read_yaml
from eval.cache import generate_cached
from eval.generate import generate
from eval.pictures import Picture, Request, adopt, hash_pixels, read_manifest, read_pixels, write_manifest
from eval.results import Plan, Results, Source
from eval.suites import SUITES, emoji_concepts, emoji_requests, i2p_path, imagenette_requests, list_requests
from pipelines.family import Family, Progress

logger = logging.getLogger(__name__)
DEFAULTS = {"emoji": (20, 3.0, 4), "imagenette": (50, 7.5, 10), "i2p": (50, 7.5, None), "prompts": (50, 7.5, None)}


class Options(Config):
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
    batch_size: int = 48
    """Pictures drawn at a time."""
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


@dataclass(frozen=True)
class Target:
    """What a name on the command line stands for: a model, a run (its model and what it erased), or a folder of pictures."""

    name: str
    model: str | None
    pictures: Path | None = None
    run: Path | None = None


def find_target(name: str) -> Target:
    """The target of that name; raises ValueError if a folder is none of the three."""
    path = Path(name)
    if not path.is_dir() or (path / "model_index.json").is_file():
        return Target(name if not path.is_dir() else path.name, name)
    if (path / "config.yaml").is_file():
        if not (path / "model" / "model_index.json").is_file():
            raise ValueError(f"{name} is a run without a model yet: give the same `erase --concept` command again to end it.")
        require_intact(path / "model")
        return Target(path.name, str(path / "model"), run=path)
    return Target(path.name, None, pictures=path)


def evaluate(target: str, baseline: str | None, options: Options, out: Path, bars: Any) -> Results:
    """Draw what is missing, measure, and write results.json; the report is the caller's to write."""
    from eval.measuring import measure_folder
    from eval.sides import Tools

    if options.suite not in SUITES:
        raise ValueError(f"there is no suite {options.suite!r}; there are {', '.join(SUITES)}.")
    subject = find_target(target)
    base = find_base(subject, baseline)
    options = options.model_copy(update={"concepts": options.concepts or concepts_of(subject)})
    tools = Tools(options)
    tools.require()  # what the suite cannot do without is missed before hours of drawing, not after
    requests = suite_requests(options)
    began = time.monotonic()
    sources = {}
    similarities: dict[str, float] = {}
    for side, one in (("base", base), ("model", subject)):
        if one is not None:
            with bars.stage(f"{side}: {one.name}", len(requests)) as bar:
                sources[side], family = fill(out / side, one, requests, options, side == "base", bar.advance)
            if family is not None and family.vocabulary is not None and not similarities:
                similarities = similarity(family, options.concepts, family.vocabulary)
    drawn = time.monotonic()
    plan = Plan(
        suite=options.suite,
        concepts=options.concepts,
        model=sources["model"],
        baseline=sources.get("base"),
        settings=settings_of(options) | {"num_requests": len(requests), "requests_sha256": hash_of_requests(requests)},
        similarities=similarities,
        training=training_of(subject.run),
        seconds={"drawing": round(drawn - began, 1)},
        versions=versions(),
    )
    write_json(plan.model_dump(mode="json"), out / "plan.json")
    results = measure_folder(out, tools)
    write_json(results.model_dump(mode="json"), out / "results.json")
    return results


def find_base(subject: Target, baseline: str | None) -> Target | None:
    """The base: the given one, else the model that the run was made from, else none."""
    if baseline is not None:
        return find_target(baseline)
    if subject.run is not None:
        model = read_yaml(subject.run / "config.yaml").get("model", "emoji")
        return Target(str(model), str(model))
    return None


def concepts_of(subject: Target) -> tuple[str, ...]:
    """What the run erased; nothing for a model of unknown making."""
    if subject.run is None:
        return ()
    config = read_yaml(subject.run / "config.yaml")
    several = config.get("concepts") or []
    return tuple(several) or (config["concept"],)


def suite_requests(options: Options) -> list[Request]:
    """The suite's requests; raises ValueError for a concept that the suite does not know."""
    from pipelines.load import EMOJI_VOCABULARY

    settings = settings_of(options)
    steps, guidance, seed, num = (settings[key] for key in ("steps", "guidance", "seed", "num"))
    if num is not None and num < 1:
        raise ValueError(f"--n is {num}; at least 1 is needed.")
    if options.suite == "emoji":
        known = emoji_concepts(list(options.concepts), EMOJI_VOCABULARY)
        return emoji_requests(EMOJI_VOCABULARY, known, seeds=num, steps=steps, guidance=guidance, seed=seed)
    if options.suite == "imagenette" and options.prompts is None:
        return imagenette_requests(list(options.concepts), seeds=num, steps=steps, guidance=guidance, seed=seed)
    if options.suite == "prompts" and options.prompts is None:
        raise ValueError("--suite prompts needs a list: --prompts CSV, with a column `prompt`.")
    path = i2p_path(options.prompts) if options.suite == "i2p" else options.prompts
    assert path is not None
    return list_requests(path, list(options.concepts), num=options.num, steps=steps, guidance=guidance, seed=seed)


def settings_of(options: Options) -> dict[str, Any]:
    """The settings with the suite's defaults put in."""
    steps, guidance, num = DEFAULTS[options.suite]
    return {
        "steps": options.steps or steps,
        "guidance": guidance if options.guidance is None else options.guidance,
        "seed": options.seed,
        "num": num if options.num is None else options.num,
        "batch_size": options.batch_size,
    }


def fill(
    folder: Path, one: Target, requests: list[Request], options: Options, is_base: bool, progress: Progress
) -> tuple[Source, Family | None]:
    """Put one side's pictures into the folder: drawn by the model, or taken over from a folder of pictures."""
    from pipelines.load import load, model_hash

    if one.model is None:
        assert one.pictures is not None
        pictures = take_over(one.pictures, requests, folder)
        progress(len(requests))
        return Source(name=one.name, sha256=hash_of([p.sha256 for p in pictures]), kind="pictures"), None
    family = load(one.model)
    if options.suite == "emoji" and family.vocabulary is None:
        raise ValueError(f"{one.name} is not made from the embedded model; the emoji suite's judge knows only its drawings.")
    digest = model_hash(one.model)
    draw = generate_cached if is_base and options.cache else generate
    draw(family, requests, folder, model=digest, batch_size=options.batch_size, progress=progress)
    return Source(name=one.name, sha256=digest), family


def take_over(source: Path, requests: list[Request], folder: Path) -> list[Picture]:
    """Copies of somebody's pictures with a manifest; raises ValueError if they are of other prompts or seeds."""
    if (source / "manifest.jsonl").is_file():
        pictures = read_manifest(source)
        asked = [(r.prompt, r.seed) for r in requests]
        given = [(p.prompt, p.seed) for p in pictures]
        if asked != given:
            at = next((k for k, (a, b) in enumerate(zip(asked, given, strict=False)) if a != b), min(len(asked), len(given)))
            raise ValueError(
                f"{source} was drawn from other prompts or seeds: picture {at} of {len(given)} differs from the suite's "
                f"{len(asked)}; draw both sides with the same suite, --n and --seed."
            )
    else:
        pictures = adopt(source, {request.case or str(k): request for k, request in enumerate(requests)})
    folder.mkdir(parents=True, exist_ok=True)
    copied = []
    for picture in pictures:
        shutil.copyfile(source / picture.file, folder / picture.file)
        try:
            digest = picture.sha256 or hash_pixels(read_pixels(folder / picture.file))
        except ValueError as error:
            logger.warning("%s", error)
            digest = ""
        copied.append(picture.model_copy(update={"sha256": digest}))
    write_manifest(copied, folder)
    return copied


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
