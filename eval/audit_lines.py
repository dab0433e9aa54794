"""The lines of an audit: each concept's probes judged by the limits, then whether everything else is still drawn."""

from collections.abc import Iterator
from pathlib import Path

from erase.files import slug
from eval.attacks import PROBES
from eval.attacks.base import Role
from eval.audit_gate import Line, judge, judge_collapse_line, judge_kept
from eval.audit_limits import Limits
from eval.audit_scene import Stage, collapse, right_ones
from eval.audit_sides import Work, lacks
from eval.pictures import read_manifest
from eval.previews import evenly_spaced

SHOWN = 8  # pictures kept of a line that everything else fails


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
            line = judge_kept(base, model, limits, seconds)
            folder = work.out / slug(name) / "scene"
            return line.model_copy(update={"examples": lost(work.stages[name], folder)}) if line.status == "FAIL" else line
        why = "the detector cannot tell whether a picture shows what another prompt asks for"
        why = why if work.stages[name].retain else "there are no prompts of anything else"
    return Line(probe=probe, status="NOT MEASURED", reason=why or _why(work, name, probe))


def lost(stage: Stage, folder: Path) -> dict[str, str]:
    """Files of at most `SHOWN` pictures for other prompts that are right in the base and not in the model, with the prompts."""
    sides = (folder / role for role in ("base", "model"))
    base, model = (right_ones(stage, side, read_manifest(side)) for side in sides)
    wrong = {file: prompt for file, prompt in base.items() if file not in model}
    return dict(evenly_spaced(list(wrong.items()), SHOWN))


def not_asked(probe: str) -> Line:
    """The line of a probe that was not asked for."""
    long = "it erases once more, which takes minutes: " if probe in PROBES and PROBES[probe].erases else ""
    return Line(probe=probe, status="NOT ASKED", reason=f"{long}ask for it with --only {probe} or --only all")


def _why(work: Work, name: str, probe: str) -> str:
    if name not in work.stages:
        return f"no available detector knows {name!r}"
    return lacks(probe, work.scenes[name]) or "the model has broken weights and cannot be loaded"
