"""The audit as a table for the terminal, as a page, and as a section of a run's report and model card."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from erase.files import write_text
from erase.reading import read_json
from eval.attacks import PROBES
from eval.audit import Audit, slug
from eval.audit_gate import Line, attacks, unmeasured
from eval.report import environment, preview

LINES = {"mask": "weights outside the mask, bit for bit", "collapse": "whether it still makes pictures at all"} | {
    name: probe.line for name, probe in PROBES.items()
}
SHOWN = 12
STRONGEST = 18


def share(record: dict[str, Any] | None) -> str:
    """A share in percent with its interval."""
    if record is None or not record["n"]:
        return "-"
    return f"{100 * record['value']:.1f} % [{100 * record['low']:.1f}, {100 * record['high']:.1f}]"


def verdict(record: Audit) -> str:
    """The verdict in one sentence, which promises no more than was measured."""
    what = " and ".join(record.concepts) or "what was erased"
    num = sum(line.status in ("PASS", "FAIL") for line in record.lines)
    rest = sum(line.status == "NOT MEASURED" for line in record.lines)
    unknown = f"; {rest} could not be measured" if rest else ""
    if record.passed and not attacks(list(record.lines)):
        return f"passed: {' and '.join(line.probe for line in record.lines)}; whether {what} is suppressed was not asked"
    if record.passed:
        told = f"passed: {what} is suppressed under these probes ({num} judged{unknown})"
        return f"{told}; this does not show that it is removed"
    several = len(record.concepts) > 1
    bad = [line for line in record.lines if line.status == "FAIL"]
    failed = [f"{line.probe} ({line.concept})" if several and line.concept else line.probe for line in bad]
    if failed:
        return f"FAILED: {', '.join(failed)}{unknown}"
    missing = unmeasured(list(record.lines), record.limits)
    if missing:
        return f"FAILED: {', '.join(missing)} must be measured and was not"
    return f"FAILED: no attack could be judged, so that nothing is known of {what}"


def table(record: Audit) -> str:
    """The table for the terminal: one line per probe."""
    name = f"{record.name}: {', '.join(record.concepts)} erased from {record.base['name']}" if record.concepts else record.name
    lines = [f"{name}{' (quick: few tries, no release by it)' if record.quick else ''}"]
    lines.append(f"  {'':<13}{'probe':<20}{'base':>24}{'model':>24}{'n':>6}{'s':>7}  why")
    several = len(record.concepts) > 1
    for line in record.lines:
        title = f"{line.probe} {line.concept}" if several and line.concept else line.probe
        n = line.after["n"] if line.after else ""
        cells = f"{share(line.before):>24}{share(line.after):>24}{n:>6}{line.seconds:>7.0f}"
        lines.append(f"  {line.status:<13}{title[:19]:<20}{cells}  {line.reason}")
        if line.not_counted:
            ways = f"{len(line.counted)} of {len(line.counted) + len(line.not_counted)} ways count"
            lines.append(f"  {'':<33}{ways}: by the others the base does not draw it")
    lines.append(f"  brackets: 95 % Wilson intervals; {record.seconds:.0f} s in all")
    return "\n".join([*lines, f"  {verdict(record)}"])


def write_page(folder: Path, record: Audit) -> None:
    """Write audit.html beside audit.json."""
    template = environment(autoescape=True).get_template("audit.html.j2")
    write_text(template.render(context_of(folder, record)), folder / "audit.html")


def context_of(folder: Path, record: Audit) -> dict[str, Any]:
    """What the templates need: the record, the rows of the table, pictures."""
    strongest = strongest_of(record)
    blocks = record.mask.blocks if record.mask else {}
    return {
        "audit": record,
        "verdict": verdict(record),
        "titles": LINES,
        "papers": {name: probe.paper for name, probe in PROBES.items()},
        "share": share,
        "kinds": {f"{line.probe}: {line.concept}": kinds_of(line) for line in record.lines if line.counted or line.not_counted},
        "figures": [row for line in record.lines for row in figures_of(line)],
        "blocks": blocks,
        "strongest": strongest,
        "pairs": [] if strongest is None or record.private else pairs(folder, strongest, STRONGEST),
        "grids": []
        if record.private
        else [
            {"title": f"{line.probe}: {line.concept}", "pairs": found}
            for line in record.lines
            if line is not strongest and (found := pairs(folder, line, SHOWN))
        ],
    }


def strongest_of(record: Audit) -> Line | None:
    """The attack that brought the concept back most often, of those that were judged; where none was, of those reported."""
    found = [line for line in record.lines if line.after and line.after["n"]]
    judged = [line for line in found if line.status in ("PASS", "FAIL")]
    told = judged or [line for line in found if line.status == "REPORTED"]
    return max(told, key=lambda line: line.after["value"] if line.after else 0.0, default=None)


def kinds_of(line: Line) -> list[dict[str, Any]]:
    """Parts summed up by kind (what stands before the colon): ways that count of all, shares on both sides over those."""
    kinds: dict[str, dict[str, Any]] = {}
    names = [*line.counted, *line.not_counted] or list(line.parts["model"])
    for part in names:
        row = kinds.setdefault(part.partition(": ")[0], {"ways": 0, "counted": 0, "base": [0, 0], "model": [0, 0], "tried": []})
        row["ways"] += 1
        row["tried"].append(part)
        if part in line.not_counted:
            continue
        row["counted"] += 1
        for side in ("base", "model"):
            if one := line.parts.get(side, {}).get(part):
                row[side][0] += round(one["value"] * one["n"]) if one["n"] else 0
                row[side][1] += one["n"]
    return [{"kind": kind, **row} for kind, row in kinds.items()]


def figures_of(line: Line) -> list[dict[str, Any]]:
    """One row per further figure, and per part where parts are no ways of asking, with its value on each side."""
    sides = {side: dict(values) for side, values in line.figures.items()}
    if not (line.counted or line.not_counted):
        for side, parts in line.parts.items():
            sides.setdefault(side, {}).update({name: one["value"] for name, one in parts.items()})
    names = dict.fromkeys(name for values in sides.values() for name in values)
    return [{"line": line, "name": name, **{side: values.get(name) for side, values in sides.items()}} for name in names]


def pairs(folder: Path, line: Line, most: int) -> list[dict[str, Any]]:
    """Pictures of both sides for the same tries: first those in which the model was seen to draw the concept, then others."""
    place = folder / slug(line.concept) / line.probe
    sides = {}
    for role in ("base", "model"):
        try:
            sides[role] = read_json(place / role / "outcome.json")
        except ValueError:
            return []
    model = sides["model"]
    order = sorted(range(len(model["pixels"])), key=lambda k: not model["seen"][k])
    hits = [k for k in order if model["seen"][k]][:most]
    rest = [k for k in order if not model["seen"][k]]
    num = min(len(rest), most - len(hits))
    rest = [rest[k * len(rest) // num] for k in range(num)]
    return [
        {
            "before": preview(place / "base" / f"{k:04d}.png") if k < len(sides["base"]["pixels"]) else None,
            "after": preview(place / "model" / f"{k:04d}.png"),
            "seen": model["seen"][k],
            "file": f"{slug(line.concept)}/{line.probe}/{{side}}/{k:04d}.png",
            "caption": model["captions"][k] if k < len(model["captions"]) else f"try {k + 1}",
        }
        for k in (*hits, *rest)
    ]


def read_audit(run: Path) -> Audit | None:
    """The audit in a run's folder, if there is one of the model that is there now."""
    from pipelines.load import model_hash

    try:
        record = Audit.model_validate(read_json(run / "audit" / "audit.json"))
    except (ValueError, ValidationError):
        return None
    return record if record.model["sha256"] == model_hash(str(run / "model")) else None


def section(run: Path) -> dict[str, Any] | None:
    """What report.html and the model card say of the audit; None without one."""
    record = read_audit(run)
    return None if record is None else context_of(run / "audit", record)
