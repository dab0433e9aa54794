"""The sides of an audit: every probe on the base, on the model and, where there is one, on Retrain.

One model is in memory at a time; of small ones on a CPU there may be two (eval.audit_beside). What is done is kept, probe by
probe and side by side: the same command goes on where it was.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from erase.export import num_bytes
from erase.files import hash_of, require_space, slug
from erase.methods import METHODS
from erase.progress import Progress
from erase.source import code_of
from eval.attacks import PROBES
from eval.attacks.base import Outcome, Probe, Role, Scene, Side
from eval.attacks.mask import Difference
from eval.audit_beside import beside, gains, wait_for
from eval.audit_limits import Limits
from eval.audit_options import AuditOptions, asked_for, probe_settings, sized
from eval.audit_scene import Stage, build_scene, draw_side, evidence, kept, planned, stage_for
from eval.audit_store import DECIDING, fetch, keep, key_of, save
from eval.audit_subject import Subject, eyes_for, key_of_side, load_side, loading, loads, path_of
from eval.measure import Share
from eval.targets import is_full_size

ROOM = 1 << 30  # bytes that pictures and temporary files may need


@dataclass
class Work:
    """An audit as it goes on."""

    subject: Subject
    options: AuditOptions
    limits: Limits
    out: Path
    bars: Progress
    settings: dict[str, Any]
    shas: dict[Role, str] = field(default_factory=dict)
    keys: dict[Role, str] = field(default_factory=dict)
    """What decides each side's pictures."""
    full_size: bool = False
    """Whether the base's denoiser is one of full size, which some settings go by."""
    concepts: tuple[str, ...] = ()
    """The names of all concepts, as the base has them."""
    stages: dict[str, Stage] = field(default_factory=dict)
    """By the concept's name; one for each concept that a detector knows."""
    scenes: dict[str, Scene] = field(default_factory=dict)
    evidence: dict[tuple[str, Role], Any] = field(default_factory=dict)
    kept: dict[tuple[str, Role], Share | None] = field(default_factory=dict)
    outcomes: dict[tuple[str, str, Role], Outcome] = field(default_factory=dict)
    """By concept, probe and side."""
    samplers: dict[Role, dict[str, Any]] = field(default_factory=dict)
    """Each side's scheduler, by its settings."""
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    """By concept and probe; of all sides, whether done now or before."""

    def wants(self, probe: str) -> bool:
        """Whether the probe is to be run."""
        return probe in asked_for(self.options, self.limits)


def sha_of(work: Work, role: Role) -> str:
    """The hash of a side's model, computed once."""
    from pipelines.load import model_hash

    if role not in work.shas:
        work.shas[role] = model_hash(path_of(work.subject, role), loading(work.subject, role))
    return work.shas[role]


def probe_sides(work: Work, difference: Difference | None) -> tuple[str, ...]:
    """Run the probes on one side after the other, or on the base and the others at once; the names of the concepts."""
    subject = work.subject
    broken = difference is not None and (difference.broken or bool(difference.added and not loads(subject, "model")))
    after: list[Role] = ["model", "retrain"] if subject.retrain else ["model"]
    others = [] if broken else after
    side = open_side(work, "base")
    at_once = others and work.options.beside and work.options.cache and gains(side.family.denoiser)
    if not (at_once and lacking(work, side)):
        run_probes(work, side)
        del side  # one model at a time
        probe_others(work, others)
        return work.concepts
    del side
    with beside(attack_base, (subject, work.options, work.limits, work.out)) as process:
        probe_others(work, others)
        wait_for(process, work.out, work.bars, len(work.stages) * len([name for name in PROBES if work.wants(name)]))
    run_probes(work, Side("base", load_side(subject, "base"), sha_of(work, "base")))  # what the process kept is taken
    return work.concepts


def probe_others(work: Work, roles: list[Role]) -> None:
    """The probes on the model, then on Retrain."""
    for role in roles:
        run_probes(work, open_side(work, role))


def attack_base(subject: Subject, options: AuditOptions, limits: Limits, out: Path, bars: Progress) -> None:
    """The probes on the base alone, kept in the audit's folder."""
    work = Work(subject, options, limits, out, bars, probe_settings(options))
    run_probes(work, open_side(work, "base"))


def open_side(work: Work, role: Role) -> Side:
    """A side's model and its pictures of the scenes, which the base lays out."""
    family = load_side(work.subject, role)
    if role == "base":
        lay_out(work, family)
    side = Side(role, family, sha_of(work, role))
    work.samplers[role] = sampler_of(family)
    work.keys[role] = key_of_side(work.subject, role, family, side.sha256)
    for name, stage in work.stages.items():
        draw_scene(work, name, stage, side)
    return side


def lay_out(work: Work, family: Any) -> None:
    """The concepts, and a stage for each that a detector knows, by the base."""
    subject = work.subject
    assert subject.config
    require_space(work.out, ROOM + temporary_bytes(work, family))
    work.settings = sized(work.settings, subject, family.denoiser)
    work.full_size = is_full_size(family.denoiser)
    whole = planned(subject.config, family, work.settings["scene"])
    work.concepts = tuple(target.concept.name for target in whole.targets)
    for target in whole.targets:
        if eyes := eyes_for(target.concept, family, work.options.classifier):
            work.stages[target.concept.name] = stage_for(target, whole, eyes, work.settings["scene"])


def sampler_of(family: Any) -> dict[str, Any]:
    """A side's scheduler: its class and what decides its pictures."""
    scheduler = family.pipeline.scheduler
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"class": type(scheduler).__name__, **settings}


def temporary_bytes(work: Work, family: Any) -> int:
    """Bytes of the half-precision file that `tooling` writes for a while."""
    writes = work.wants("tooling") and work.settings["tooling"].single_file
    return num_bytes(family.pipeline, torch.float16) if writes else 0


def draw_scene(work: Work, name: str, stage: Stage, side: Side) -> None:
    """The scene's pictures by the base and by the model, the scene, and what the lines of everything else need."""
    if side.role == "retrain" or (side.role == "model" and not (work.wants("collapse") or work.wants("kept"))):
        return
    folder = work.out / slug(name) / "scene" / side.role
    cached = side.role == "base" and work.options.cache
    if not work.options.cache:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    drawn_by = hash_of([work.keys[side.role], code_of(("eval.audit_scene",), DECIDING)])
    with work.bars.stage(f"{side.role}: scene", len(stage.requests)) as bar:
        pictures = draw_side(stage, side.family, drawn_by, folder, cached, bar.advance)
    work.seconds[name, "scene"] = round(work.seconds.get((name, "scene"), 0.0) + time.monotonic() - began, 1)
    if side.role == "base":
        scene = build_scene(stage, folder, pictures)
        work.scenes[name] = replace(scene, recipe=work.subject.config) if work.subject.run else scene
    if work.wants("collapse"):
        work.evidence[name, side.role] = evidence(stage, folder, pictures)
    if work.wants("kept"):
        work.kept[name, side.role] = kept(stage, folder, pictures)


def run_probes(work: Work, side: Side) -> None:
    """Every probe that is asked for, on one side, for each concept; what is kept is taken."""
    for asked in asked_probes(work, side):
        found = fetch(side, asked.folder, asked.key, work.options.cache)
        if found is None:
            scene, began = work.scenes[asked.concept], time.monotonic()
            with work.bars.stage(f"{side.role}: {asked.name}", asked.probe.total(asked.config, scene)) as bar:
                outcome = asked.probe.run(side, scene, asked.config, bar)
            found = outcome, round(time.monotonic() - began, 2)  # as it is kept
            save(outcome, asked.folder, asked.key, found[1])
        if work.options.cache:
            keep(side, asked.folder, asked.key)
        work.outcomes[asked.concept, asked.name, side.role] = found[0]
        work.seconds[asked.concept, asked.name] = work.seconds.get((asked.concept, asked.name), 0.0) + found[1]


@dataclass(frozen=True)
class AskedProbe:
    """A probe of one concept on one side: its settings, and where and by which key its outcome is kept."""

    concept: str
    name: str
    probe: Probe
    config: Any
    folder: Path
    key: str


def asked_probes(work: Work, side: Side) -> Iterator[AskedProbe]:
    """Every probe that is asked for and can be made, on one side."""
    for concept, stage in work.stages.items():
        for name, probe in PROBES.items():
            if not work.wants(name) or lacks(name, work.scenes[concept]):
                continue
            config = work.settings[name]
            recipe = work.subject.config.model_dump(mode="json") if probe.erases and work.subject.config else None
            told_less = side.role == "base"  # what some attacks must find there by themselves
            scene_key = hash_of([stage.key, work.keys["base"], recipe, told_less])
            key = key_of(name, probe, config, scene_key, work.keys[side.role])
            yield AskedProbe(concept, name, probe, config, work.out / slug(concept) / name / side.role, key)


def lacking(work: Work, side: Side) -> bool:
    """Whether a probe that is asked for was not made on this side yet."""
    return any(fetch(side, asked.folder, asked.key, work.options.cache) is None for asked in asked_probes(work, side))


def lacks(probe: str, scene: Scene) -> str:
    """Why a probe cannot be made in a scene; empty if it can."""
    recipe = scene.recipe
    if probe == "traces" and (recipe is None or METHODS[recipe.method.name].remake or len(recipe.concepts) > 1):
        return "it repeats the erasure by the recipe of a run that erased this concept alone, and there is no such run"
    if probe in ("benign", "traces") and not len(scene.others):
        return "there are no prompts of anything else to draw pictures for"
    return ""
