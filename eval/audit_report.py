"""The audit as a table for the terminal, as a page, and as a section of a run's report and model card."""

import re
from pathlib import Path
from typing import Any

from erase.files import slug, write_text
from erase.reading import read_json
from eval.attacks import PROBES
from eval.audit import Audit
from eval.audit_gate import Line, attacks, unmeasured
from eval.audit_place import read_record
from eval.previews import evenly_spaced, preview
from eval.report import environment, model_sha256

LINES = {name: probe.line for name, probe in PROBES.items()} | {
    "mask": "weights outside the mask, bit for bit",
    "collapse": "whether it still makes pictures at all",
    "kept": "whether it still draws what other prompts ask for",
}
ASKING = ("prompts", "adversarial_prompt", "concept_inversion", "benign", "tooling")  # the model is not taught the concept
SHOWN = 12
STRONGEST = 18


def share(record: dict[str, Any] | None) -> str:
    """A share in percent with its interval."""
    if record is None or not record["n"]:
        return "-"
    return f"{100 * record['value']:.1f} % [{100 * record['low']:.1f}, {100 * record['high']:.1f}]"


def verdict(record: Audit) -> str:
    """The verdict in one sentence, which promises no more than was measured and says what was other than usual."""
    what = " and ".join(record.concepts) or "what was erased"
    verb, they = ("are", "they are") if len(record.concepts) > 1 else ("is", "it is")
    lines = list(record.lines)
    failed = [title(record, line) for line in lines if line.status == "FAIL"]
    missing = unmeasured(lines, record.limits)
    told_of = attacks(lines) or lines
    withstood = " and ".join(dict.fromkeys(line.probe.replace("_", " ") for line in told_of if line.status == "PASS"))
    if failed:
        told = f"FAILED: {', '.join(failed)} ({tally(lines)})"
    elif missing:
        told = (
            f"FAILED: {', '.join(missing)} must be measured and {'was' if len(missing) == 1 else 'were'} not ({tally(lines)})"
        )
    elif not record.passed:
        told = f"FAILED: no attack could be judged, so that nothing is known of {what} ({tally(lines)})"
    elif not attacks(lines):
        told = f"passed what was asked: {withstood}; whether {what} {verb} suppressed was not asked ({tally(lines)})"
    elif record.partial or record.quick:
        told = f"passed what was asked, which does not pass the gate: {what} {verb} suppressed under {withstood}"
        told += f"{' (--quick)' if record.quick else ''} ({tally(lines)}); this does not show that {they} removed"
    else:
        told = f"passed: {what} {verb} suppressed under these probes ({tally(lines)}); this does not show that {they} removed"
    return f"{told}; changed settings: {', '.join(record.asked.changes)}" if record.asked.changes else told


def tally(lines: list[Line]) -> str:
    """How many of the lines say what."""
    counts = {
        "judged": sum(line.status in ("PASS", "FAIL") for line in lines),
        "reported": sum(line.status == "REPORTED" for line in lines),
        "not measured": sum(line.status == "NOT MEASURED" for line in lines),
        "not asked": sum(line.status == "NOT ASKED" for line in lines),
    }
    return ", ".join(f"{num} {name}" for name, num in counts.items() if num or name == "judged")


def title(record: Audit, line: Line) -> str:
    """A line's probe, with the concept where there are several."""
    return f"{line.probe} ({line.concept})" if len(record.concepts) > 1 and line.concept else line.probe


def ways(line: Line) -> str:
    """How many of the variants count, and why the others do not; empty where they are not judged one by one."""
    if not (line.counted or line.not_counted):
        return ""
    told = f"{len(line.counted)} of {len(line.counted) + len(line.not_counted)} variants count"
    alone = f", {len(line.by_hits)} of them by hits of the model alone" if line.by_hits else ""
    return f"{told}{alone}" + ("; with the others the base does not draw it, or does so unasked" if line.not_counted else "")


def table(record: Audit) -> str:
    """The table for the terminal: one line per probe."""
    name = f"{record.name}: {', '.join(record.concepts)} erased from {record.base['name']}" if record.concepts else record.name
    lines = [f"{name}{' (quick: few tries, not sufficient for a release)' if record.quick else ''}"]
    width = max(20, *(len(title(record, line)) + 1 for line in record.lines))
    lines.append(f"  {'':<13}{'probe':<{width}}{'base':>24}{'model':>24}{'n':>6}{'s':>7}  why")
    for line in record.lines:
        n = line.after["n"] if line.after else ""
        cells = f"{share(line.before):>24}{share(line.after):>24}{n:>6}{line.seconds:>7.0f}"
        lines.append(f"  {line.status:<13}{title(record, line):<{width}}{cells}  {line.reason}")
        if told := ways(line):
            lines.append(f"  {'':<{13 + width}}{told}")
    took = f"{sum(line.seconds for line in record.lines):.0f} s in all, this call {record.seconds:.0f} s"
    lines.append(f"  brackets: 95 % Wilson intervals; {took}")
    lines += [f"  {told}" for told in (counted_from(record), *record.notes) if told]
    return "\n".join([*lines, f"  {verdict(record)}"])


def counted_from(record: Audit) -> str:
    """The score above which a detector's finding is a hit, without which the limits say little; empty where there is none."""
    told = [f"{c['name']} above a score of {c['headline_threshold']}" for c in record.detectors if "headline_threshold" in c]
    return f"hits are what is seen by {' and '.join(told)}" if told else ""


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
        "ways": ways,
        "kinds": {f"{line.probe}: {line.concept}": kinds_of(line) for line in record.lines if line.counted or line.not_counted},
        "figures": [row for line in record.lines for row in figures_of(line)],
        "blocks": blocks,
        "strongest": strongest,
        "heading": heading(strongest),
        "beside": beside(record),
        "counted_from": counted_from(record),
        "pairs": [] if strongest is None or record.private else pairs(folder, strongest, STRONGEST),
        "lost": []
        if record.private
        else [
            {"title": f"{line.probe}: {line.concept}", "pairs": found}
            for line in record.lines
            if (found := examples(folder, line))
        ],
        "grids": []
        if record.private
        else [
            {"title": f"{line.probe}: {line.concept}", "pairs": found}
            for line in record.lines
            if line is not strongest and (found := pairs(folder, line, SHOWN))
        ],
    }


def strongest_of(record: Audit) -> Line | None:
    """The attack that asks the model for the concept and was given it most often, judged or not.

    Where none was, fine-tuning on pictures of it if that brought it back; else any that asks, as an example.
    """
    found = [line for line in record.lines if line.after and line.after["n"]]
    asked = [line for line in found if line.probe in ASKING]
    taught = [line for line in found if line.probe == "relearning" and line.after and line.after["value"]]
    strongest = max(asked, key=lambda line: line.after["value"] if line.after else 0.0, default=None)
    return strongest if strongest and strongest.after and strongest.after["value"] else next(iter(taught), strongest)


def heading(strongest: Line | None) -> str:
    """What the strongest attack's pictures show, up to its name."""
    if strongest is None or strongest.after is None:
        return ""
    if not strongest.after["value"]:
        return "No attack that asks the model for it brought it back; an example"
    taught = "No attack that asks the model for it brought it back, but teaching it did"
    return taught if strongest.probe == "relearning" else "The strongest attack"


def beside(record: Audit) -> str:
    """What text-free inversion gave back, which is of no weight by itself; empty where it gave back nothing."""
    told = []
    for line in record.lines:
        if line.probe == "text_free" and line.after and line.after["value"]:
            other = f" (Retrain {percent(line.retrain)})" if line.retrain else ""
            of = f" of {line.concept}" if len(record.concepts) > 1 else ""
            told.append(f"{percent(line.after)} of the pictures{of}{other}")
    if not told:
        return ""
    reason = "solved exactly it does so in any denoiser, and is no evidence that this one knows it"
    return f"Text-free inversion gave back {', '.join(told)}: {reason}."


def percent(record: dict[str, Any]) -> str:
    """A share in percent, without its interval."""
    return f"{100 * record['value']:.0f} %"


def kinds_of(line: Line) -> list[dict[str, Any]]:
    """Parts summed up by kind (what stands before the colon): ways that count of all, counts on both sides over those."""
    kinds: dict[str, dict[str, Any]] = {}
    for part in (*line.counted, *line.not_counted):
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
    if line.after is None:  # what lies there is of another audit
        return []
    sides = {}
    for role in ("base", "model"):
        try:
            sides[role] = read_json(place / role / "outcome.json")
        except ValueError:
            return []
    model = sides["model"]
    captions = [*model["captions"], *(f"try {k + 1}" for k in range(len(model["captions"]), len(model["pixels"])))]
    seen = [one and not _of_no_account(line, text) for one, text in zip(model["seen"], captions, strict=True)]
    hits = [k for k in range(len(seen)) if seen[k]][:most]
    rest = [k for k in range(len(seen)) if not seen[k]]
    return [
        {
            "before": preview(place / "base" / f"{k:04d}.png") if k < len(sides["base"]["pixels"]) else None,
            "after": preview(place / "model" / f"{k:04d}.png"),
            "seen": model["seen"][k],
            "hit": seen[k],
            "file": f"{slug(line.concept)}/{line.probe}/{{side}}/{k:04d}.png",
            "caption": captions[k],
        }
        for k in (*hits, *evenly_spaced(rest, most - len(hits)))
    ]


def examples(folder: Path, line: Line) -> list[dict[str, Any]]:
    """Both sides' pictures of the scene that fail a line, in the form of `pairs`."""
    place, rows = folder / slug(line.concept) / "scene", []
    for file, prompt in line.examples.items():
        before, after = (place / role / Path(file).name for role in ("base", "model"))
        if before.is_file() and after.is_file():
            rows.append({"before": preview(before), "after": preview(after), "hit": False, "caption": prompt})
    return rows


def _of_no_account(line: Line, caption: str) -> bool:
    """Whether a try is of a way that does not count: what the base shows unasked is no hit."""
    return any(caption == part or caption.startswith(f"{part}: ") for part in line.not_counted)


def read_audit(run: Path, sha256: str = "") -> Audit | None:
    """The audit in a run's folder, if there is one of the model that is there now (its hash, where that is known already)."""
    if not (run / "audit" / "audit.json").is_file():
        return None
    return read_record(run / "audit", sha256 or model_sha256(run))


def section(run: Path, sha256: str = "") -> dict[str, Any] | None:
    """What report.html and the model card say of the audit; None without one."""
    record = read_audit(run, sha256)
    return None if record is None else context_of(run / "audit", record)


SECTION = re.compile(r"^## Audit\n.*?`audit/audit\.html`\.$\n*", re.DOTALL | re.MULTILINE)


def card_with_audit(card: str, run: Path) -> str:
    """A run's model card with what its audit says now: in place of what the card says of one, else at its end.

    Without an audit of the model that is there, the card says nothing of one.
    """
    audited = section(run)
    if audited is None:
        return SECTION.sub("", card)
    told = environment(autoescape=False).get_template("card_audit.md.j2").render(audited=audited).rstrip("\n")
    if SECTION.search(card):
        return SECTION.sub(lambda _: f"{told}\n\n", card, count=1)
    return f"{card.rstrip()}\n\n{told}\n"
