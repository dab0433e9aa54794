"""Where an audit goes: into its folder, or beside a fuller one of the same model, which a smaller one must not replace."""

from pathlib import Path
from typing import Any

from erase.reading import read_json
from eval.audit import Audit
from eval.audit_limits import Limits
from eval.audit_options import AT_ONCE, AuditOptions, asked_for, probe_settings
from eval.audit_subject import Subject, loading, path_of

EVEN = ("scene.seed", *AT_ONCE)  # neither more nor fewer tries


def place_for(folder: Path, subject: Subject, options: AuditOptions, limits: Limits) -> tuple[Path, str]:
    """(the folder, nothing), or (the one beside it, what the audit of this model that lies there has and this one lacks).

    Raises ValueError where the audit of another model lies there; what lay in this model's place before may be replaced.
    """
    from pipelines.load import model_hash

    if not (folder / "audit.json").is_file():
        return folder, ""
    sha256 = model_hash(path_of(subject, "model"), loading(subject, "model"))
    record = read_record(folder, sha256)
    own = subject.run is not None and folder == subject.run / "audit"
    other = {} if own or record else _model_of(folder)
    if other and other["sha256"] != sha256 and other["name"] != subject.model:
        raise ValueError(
            f"{folder} holds the audit of another model ({other['name']}, {other['sha256'][:12]}; {subject.model} is "
            f"{sha256[:12]}): give another --out, or delete that folder."
        )
    lacking = "" if record is None else lacks(record, subject, options, limits)
    return (folder.parent / f"{folder.name or 'audit'}-partial" if lacking else folder), lacking


def _model_of(folder: Path) -> dict[str, str]:
    """Name and hash of the model that an audit of whatever version is about; empty if the record is damaged."""
    try:
        model = read_json(folder / "audit.json")["model"]
        return {"name": str(model["name"]), "sha256": str(model["sha256"])}
    except (ValueError, LookupError, TypeError):
        return {}


def read_record(folder: Path, sha256: str) -> Audit | None:
    """The audit in a folder, if there is one that can be read and is of the model with this hash."""
    try:
        record = Audit.model_validate(read_json(folder / "audit.json"))
    except ValueError:
        return None
    return record if record.model["sha256"] == sha256 else None


def lacks(record: Audit, subject: Subject, options: AuditOptions, limits: Limits) -> str:
    """What the record has measured and this audit would not; empty if it is as full."""
    measured = dict.fromkeys(line.probe for line in record.lines if line.status not in ("NOT ASKED", "NOT MEASURED"))
    if missing := [name for name in measured if name not in asked_for(options, limits)]:
        return ", ".join(missing)
    if missing := [name for name in record.asked.concepts if not subject.config or name not in subject.config.concepts]:
        return ", ".join(missing)
    if set(record.asked.claim) != set(subject.claimed) and "mask" in measured:
        return f"--claim {' '.join(record.asked.claim)}" if record.asked.claim else "the run's own mask"
    if record.retrain and not subject.retrain:
        return "--retrain"
    if options.quick and not record.quick:
        return "more tries than --quick"
    now = {name: config.model_dump(mode="json") for name, config in probe_settings(options).items()}
    lowered = [
        f"{name}.{key} {value}"
        for name in ("scene", *measured)
        for key, value in record.settings.get(name, {}).items()
        if name in now and f"{name}.{key}" not in EVEN and fewer(now[name].get(key), value)
    ]
    return ", ".join(lowered[:3])


def fewer(now: Any, before: Any) -> bool:
    """Whether a setting asks for less than before: a smaller number, a list that lacks something, a switch that is off.

    Where None stood, which is as much as the run has, any number may be less.
    """
    if before is None:
        return now is not None
    if isinstance(now, list) and isinstance(before, list):
        return not set(map(str, before)) <= set(map(str, now))
    numbers = (bool, int, float)
    return isinstance(now, numbers) and isinstance(before, numbers) and now < before
