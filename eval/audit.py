"""`erase audit`: every probe on the base, on the model and, where there is one, on Retrain; then the gate.

The sides are made in eval.audit_sides, the lines judged in eval.audit_lines; here they become one record.
"""

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from erase.files import require_space, write_json
from erase.folder import versions
from erase.methods import METHODS
from erase.methods.base import Config
from erase.progress import Progress
from eval.attacks.base import Role
from eval.attacks.mask import Claim, Difference, compare
from eval.audit_gate import Line, judge_mask, passed
from eval.audit_limits import Limits
from eval.audit_lines import judged, not_asked
from eval.audit_options import NAMES, AuditOptions, asked_for, changes, probe_settings, require_inputs
from eval.audit_sides import ROOM, Work, probe_sides, sha_of
from eval.audit_subject import Subject, faults_of, load_side, loading
from eval.stored import opened


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
        asked=Asked(
            concepts=given,
            only=options.only,
            claim=subject.claimed,
            changes=changes(options, limits, work.full_size),
        ),
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


def sampler_note(samplers: dict[Role, dict[str, Any]]) -> tuple[str, ...]:
    """A sentence that says in what the model is drawn with another sampler than the base; none where it is the same."""
    base, model = samplers.get("base", {}), samplers.get("model", {})
    apart = [f"{key} {base.get(key)} and {model.get(key)}" for key in {**base, **model} if base.get(key) != model.get(key)]
    if not base or not model or not apart:
        return ()
    told = "base and model are drawn with different samplers"
    return (f"{told} ({'; '.join(apart[:3])}): what differs between their pictures, as in collapse, is of the sampler too",)
