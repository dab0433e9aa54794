"""`erase audit`: every probe on the base, on the model and, where there is one, on Retrain; then the gate.

One model is in memory at a time; of small ones on a CPU there may be two (eval.audit_beside). What is done is kept, probe by
probe and side by side: the same command goes on where it was.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from erase.export import num_bytes
from erase.files import hash_of, require_space, slug, write_json
from erase.folder import versions
from erase.methods import METHODS
from erase.methods.base import Config
from erase.progress import Progress
from erase.source import code_of
from eval.attacks import PROBES
from eval.attacks.base import Outcome, Probe, Role, Scene, Side
from eval.attacks.mask import Claim, Difference, compare
from eval.audit_beside import beside, gains, wait_for
from eval.audit_gate import Limits, Line, judge, judge_collapse_line, judge_kept, judge_mask, passed
from eval.audit_options import NAMES, AuditOptions, asked_for, changes, probe_settings, require_inputs, scene_for
from eval.audit_scene import Stage, build_scene, collapse, draw_side, evidence, kept, planned, stage_for
from eval.audit_store import DECIDING, fetch, keep, key_of, save
from eval.audit_subject import Subject, eyes_for, faults_of, key_of_side, load_side, loading, loads, path_of
from eval.measure import Share
from eval.stored import opened

ROOM = 1 << 30  # bytes that pictures and temporary files may need


class Asked(Config):
    """What was asked of an audit, and what of it was other than usual."""

    concepts: tuple[str, ...] = ()
    """As they were given."""
    only: tuple[str, ...] = ()
    """Probes that were named; none: all that do not erase once more."""
    claim: tuple[str, ...] = ()
    """What the weights were held against; none: the run's own mask, or nothing."""
    changes: tuple[str, ...] = ()
    """Settings and limits that differ from the defaults, in words."""


class Audit(Config):
    """What `erase audit` writes to audit.json."""

    schema_version: Literal[2] = 2
    name: str
    concepts: tuple[str, ...]
    model: dict[str, str]
    """Name and hash."""
    base: dict[str, str]
    retrain: dict[str, str] | None = None
    quick: bool
    asked: Asked = Asked()
    partial: bool = False
    """Whether a probe of the release gate was not asked for: then to pass is no pass of the gate."""
    passed: bool
    """Whether what was asked for is passed."""
    lines: tuple[Line, ...]
    limits: Limits
    mask: Difference | None = None
    detectors: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    """What else must be known to read the figures, a sentence each."""
    private: bool = False
    """Whether the pictures are not for every reader's eyes."""
    settings: dict[str, Any] = Field(default_factory=dict)
    seconds: float
    """Of the last call alone, which did what no call before it had done."""
    versions: dict[str, str]


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


def audit(subject: Subject, options: AuditOptions, limits: Limits, out: Path, bars: Progress) -> Audit:
    """Do every probe that is not done, judge, and write audit.json; the page is the caller's to write."""
    began = time.monotonic()
    work = Work(subject, options, limits, out, bars, probe_settings(options))
    draws = any(work.wants(name) for name in NAMES if name != "mask")
    if draws and subject.config is None:
        raise ValueError(f"say what was erased from {subject.name} with --concept, or give --only mask.")
    require_inputs(subject, options, work.settings["prompts"].packs)
    require_space(out, ROOM)
    difference, mask_line = probe_weights(work, limits)
    given = subject.config.concepts if subject.config else ()
    concepts = probe_sides(work, difference) if draws else given
    lines = [mask_line if work.wants("mask") else not_asked("mask"), *judged(work, concepts or ("",), limits)]
    eyes = [stage.eyes for stage in work.stages.values()]
    record = Audit(
        name=subject.name,
        concepts=concepts,
        model={"name": subject.model, "sha256": sha_of(work, "model")},
        base={"name": subject.base, "sha256": sha_of(work, "base")},
        retrain={"name": subject.retrain, "sha256": sha_of(work, "retrain")} if subject.retrain else None,
        quick=options.quick,
        asked=Asked(concepts=given, only=options.only, claim=subject.claimed, changes=changes(options, limits)),
        partial=not set(asked_for(AuditOptions(), Limits())) <= set(asked_for(options, limits)),
        passed=passed(lines, limits),
        lines=tuple(lines),
        limits=limits,
        mask=difference if work.wants("mask") else None,
        detectors=tuple({card["name"]: card for card in (one.detector.card() for one in eyes)}.values()),
        notes=sampler_note(work.samplers),
        private=any(one.private for one in eyes),
        settings={name: config.model_dump(mode="json") for name, config in work.settings.items()},
        seconds=round(time.monotonic() - began, 1),
        versions=versions(),
    )
    write_json(record.model_dump(mode="json"), out / "audit.json")
    return record


def sha_of(work: Work, role: Role) -> str:
    """The hash of a side's model, computed once."""
    from pipelines.load import model_hash

    if role not in work.shas:
        work.shas[role] = model_hash(path_of(work.subject, role), loading(work.subject, role))
    return work.shas[role]


def probe_weights(work: Work, limits: Limits) -> tuple[Difference | None, Line]:
    """The difference between the model's and the base's weights, and its line."""
    from pipelines.load import model_path

    subject, began = work.subject, time.monotonic()
    settings = loading(subject, "base"), loading(subject, "model")
    paths = model_path(subject.base, settings[0]), model_path(subject.model, settings[1])
    variants = settings[0].variant, settings[1].variant
    written = faults_of(subject.run) if subject.run is not None else ""
    if subject.run is not None and subject.claim is None:
        assert subject.config
        lost = "" if METHODS[subject.config.method.name].remake else "the run's mask.safetensors is not there"
        return None, judge_mask(None, limits, "", 0.0, written or lost)
    claim = subject.claim or Claim()
    with (
        opened(*paths, lambda: load_side(subject, "base").pipeline, variants) as pair,
        work.bars.stage("mask", len(pair.base.keys() & pair.model.keys())) as bar,
    ):
        difference = compare(pair.base, pair.model, claim, bar.advance, pair.beside)
    told = "" if subject.claim is None else "the claim" if claim.patterns else "the mask"
    return difference, judge_mask(difference, limits, told, round(time.monotonic() - began, 1), written)


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
    work.settings["scene"] = scene_for(work.settings["scene"], subject, family.denoiser)
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


def sampler_note(samplers: dict[Role, dict[str, Any]]) -> tuple[str, ...]:
    """A sentence that says in what the model is drawn with another sampler than the base; none where it is the same."""
    base, model = samplers.get("base", {}), samplers.get("model", {})
    apart = [f"{key} {base.get(key)} and {model.get(key)}" for key in {**base, **model} if base.get(key) != model.get(key)]
    if not base or not model or not apart:
        return ()
    told = "base and model are drawn with different samplers"
    return (f"{told} ({'; '.join(apart[:3])}): what differs between their pictures, as in collapse, is of the sampler too",)


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


def judged(work: Work, concepts: tuple[str, ...], limits: Limits) -> list[Line]:
    """The lines of every concept: its probes, then whether the model still makes pictures, and the right ones."""
    lines = []
    for name in concepts:
        lines += [line.model_copy(update={"concept": name}) for line in _lines(work, name, limits)]
    return lines


def _lines(work: Work, name: str, limits: Limits) -> Iterator[Line]:
    for probe_name, probe in PROBES.items():
        roles: tuple[Role, ...] = ("base", "model", "retrain")
        outcomes = {role: work.outcomes[name, probe_name, role] for role in roles if (name, probe_name, role) in work.outcomes}
        if not work.wants(probe_name):
            yield not_asked(probe_name)
        elif "model" in outcomes:
            yield judge(probe_name, outcomes, limits, probe.apart, work.seconds[name, probe_name])
        else:
            yield Line(probe=probe_name, status="NOT MEASURED", reason=_why(work, name, probe_name))
    for probe_name in ("collapse", "kept"):
        yield _line_of_others(work, name, probe_name, limits) if work.wants(probe_name) else not_asked(probe_name)


def _line_of_others(work: Work, name: str, probe: str, limits: Limits) -> Line:
    """The line of the collapse gate or of what is kept; the scene's drawing counts as the time of the first that is asked."""
    seconds = 0.0 if probe == "kept" and work.wants("collapse") else work.seconds.get((name, "scene"), 0.0)
    why = work.stages[name].lacks_others if name in work.stages else ""
    if not why and probe == "collapse" and (name, "model") in work.evidence:
        return judge_collapse_line(collapse(*(work.evidence[name, role] for role in ("base", "model"))), limits, seconds)
    if not why and probe == "kept" and (name, "model") in work.kept:
        base, model = work.kept[name, "base"], work.kept[name, "model"]
        if base and model:
            return judge_kept(base, model, limits, seconds)
        why = "the detector cannot tell whether a picture shows what another prompt asks for"
        why = why if work.stages[name].retain else "there are no prompts of anything else"
    return Line(probe=probe, status="NOT MEASURED", reason=why or _why(work, name, probe))


def not_asked(probe: str) -> Line:
    """The line of a probe that was not asked for."""
    long = "it erases once more, which takes minutes: " if probe in PROBES and PROBES[probe].erases else ""
    return Line(probe=probe, status="NOT ASKED", reason=f"{long}ask for it with --only {probe} or --only all")


def _why(work: Work, name: str, probe: str) -> str:
    if name not in work.stages:
        return f"no available detector knows {name!r}"
    return lacks(probe, work.scenes[name]) or "the model has broken weights and cannot be loaded"


def lacks(probe: str, scene: Scene) -> str:
    """Why a probe cannot be made in a scene; empty if it can."""
    recipe = scene.recipe
    if probe == "traces" and (recipe is None or METHODS[recipe.method.name].remake or len(recipe.concepts) > 1):
        return "it repeats the erasure by the recipe of a run that erased this concept alone, and there is no such run"
    if probe in ("benign", "traces") and not len(scene.others):
        return "there are no prompts of anything else to draw pictures for"
    return ""
