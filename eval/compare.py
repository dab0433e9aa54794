"""Several evaluations side by side: `erase compare`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from erase.folder import config_of
from erase.methods.base import Config
from erase.reading import read_json
from eval.measure import Share
from eval.report import environment, figure, interval
from eval.results import Figure, Results, Row, read_results, share_figure

LABELS = {
    "forget": ("Forgotten: the concept is not seen (UA)", "ua"),
    "ira": ("Kept in the same domain (IRA)", "ira"),
    "cra": ("Kept in the other domain (CRA)", "cra"),
}
SETTINGS = {"steps": "sampler steps", "guidance": "guidance", "seed": "evaluation seed"}
LONGEST = 30  # of what the terminal shows of a fact


class Column(Config):
    """One evaluation's table."""

    name: str
    suite: str
    base: str
    base_sha256: str = ""
    rows: tuple[Row, ...]
    gate: Literal["passed", "failed", "not measured"]
    prompts: str
    """Hash of the prompts, so that only like is set beside like."""
    n: int | None = None
    """Pictures of the model."""
    detectors: dict[str, str] = Field(default_factory=dict)
    """Hash of each detector, by name."""
    settings: dict[str, str] = Field(default_factory=dict)
    """Sampler steps, guidance and the evaluation's seed, as far as they are known."""
    sampling: str = ""
    """Hash of each picture's steps, guidance and size, where it is known."""
    audit: str = "-"
    """Verdict of `erase audit` on a run's model."""


def columns(folders: list[Path]) -> list[Column]:
    """One column per folder of `erase eval` or of `erase --concept`, or its results.json; raises ValueError for any other."""
    found = []
    for folder, name in zip(folders, names_of(folders), strict=True):
        path = folder / "results.json" if folder.is_dir() else folder
        if not path.is_file():
            raise ValueError(f"{folder} has no results.json; give folders of `erase eval` or of `erase --concept`.")
        found.append(_column(name, path))
    return found


def names_of(folders: list[Path]) -> list[str]:
    """The folders' names, also where results.json was given; their paths as given where two have one name."""
    places = [folder.parent if folder.name == "results.json" else folder for folder in folders]
    names = [place.resolve().name for place in places]
    return [name if names.count(name) == 1 else str(place) for name, place in zip(names, places, strict=True)]


def _column(name: str, path: Path) -> Column:
    try:
        values = read_json(path)
        if "audit" in values:
            return _of_run(name, values, path.parent)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = "damaged" if path.name == "results.json" else "no results.json"
        raise ValueError(f"{path} is {what}; give folders of `erase eval` or of `erase --concept`.") from error
    return _of_evaluation(name, read_results(path))


def _of_evaluation(name: str, results: Results) -> Column:
    plan = results.plan
    return Column(
        name=name,
        suite=plan.suite,
        base=plan.baseline.name if plan.baseline else "",
        base_sha256=plan.baseline.sha256 if plan.baseline else "",
        rows=results.rows,
        gate="not measured" if results.gate is None else "passed" if results.gate.passed else "failed",
        prompts=results.prompts_sha256,
        n=results.pictures["model"],
        detectors={str(card["name"]): str(card["sha256"]) for card in results.detectors},
        settings={key: str(plan.settings[key]) for key in SETTINGS if key in plan.settings},
        sampling=results.sampling_sha256,
    )


def _of_run(name: str, values: dict[str, Any], folder: Path) -> Column:
    """A run's own results in the same terms; UA is 1 - the share of pictures that still show the concept."""
    rows = []
    for key, (label, row_key) in LABELS.items():
        sides = {side: _figure(values[side].get("intervals", {}).get(key), key == "forget") for side in ("base", "erased")}
        rows.append(Row(key=row_key, label=label, unit="share", better="higher", base=sides["base"], model=sides["erased"]))
    gate, n, detector = values.get("collapse"), values["base"].get("n"), values.get("detector")
    return Column(
        name=name,
        suite="run",
        base=values["model"],
        base_sha256=values.get("base_sha256", ""),
        rows=tuple(rows),
        gate="not measured" if not gate else "passed" if gate["passed"] else "failed",
        prompts=f"run {values['concept']} {n}",
        n=n,
        detectors={str(detector["name"]): str(detector["sha256"])} if detector else {},
        settings=_settings_of_run(folder),
        audit=_audit_of_run(folder),
    )


def _settings_of_run(folder: Path) -> dict[str, str]:
    """How the run's evaluation drew, from its config; nothing where that is not at hand."""
    try:
        evaluation = config_of(folder).evaluation
    except ValueError:
        return {}
    values = (evaluation.num_inference_steps, evaluation.guidance_scale, evaluation.seed)
    return dict(zip(SETTINGS, map(str, values), strict=True))


def _audit_of_run(folder: Path) -> str:
    """What the audit of the run's present model came to, in a few words."""
    from eval.audit_report import read_audit, verdict

    record = read_audit(folder) if (folder / "model").is_dir() else None
    return verdict(record).partition(":")[0] if record else "not audited"


def _figure(record: dict[str, Any] | None, inverse: bool) -> Figure | None:
    if not record or not record["n"]:
        return None
    count = round(record["value"] * record["n"])
    return share_figure(Share(record["n"] - count if inverse else count, record["n"]))


def keys(found: list[Column]) -> list[tuple[str, str]]:
    """(key, label) of every measure, in the order of first appearance."""
    return list({row.key: row.label for column in found for row in column.rows}.items())


def cell(column: Column, key: str, side: str = "model") -> str:
    """One model's figure with its interval."""
    row = next((row for row in column.rows if row.key == key), None)
    if row is None:
        return "-"
    one: Figure | None = getattr(row, side)
    return f"{figure(one, row.unit)} {interval(one, row.unit)}".strip()


def num(column: Column, key: str) -> int:
    """How many pictures one model's figure rests on."""
    return next((row.model.n for row in column.rows if row.key == key and row.model), 0)


def facts(found: list[Column]) -> list[tuple[str, list[str]]]:
    """What each column's figures rest on, line by line."""
    return [
        ("pictures", ["-" if column.n is None else str(column.n) for column in found]),
        ("base", [column.base or "-" for column in found]),
        *((label, [column.settings.get(key, "-") for column in found]) for key, label in SETTINGS.items()),
        ("read by", [", ".join(f"{k} {v[:8]}" for k, v in column.detectors.items()) or "-" for column in found]),
        ("audit", [column.audit for column in found]),
    ]


def text(found: list[Column]) -> str:
    """The table for the terminal, one evaluation per column."""
    told = [
        (label, [value if len(value) <= LONGEST else value[: LONGEST - 3] + "..." for value in v]) for label, v in facts(found)
    ]
    width = 2 + max(20, *(len(column.name) for column in found), *(len(value) for _, values in told for value in values))
    lines = [f"{'':<46}" + "".join(f"{column.name:>{width}}" for column in found)]
    for key, label in keys(found):
        lines.append(f"{label[:44]:<46}" + "".join(f"{cell(column, key):>{width}}" for column in found))
        lines.append(f"{'  its base':<46}" + "".join(f"{cell(column, key, 'base'):>{width}}" for column in found))
    lines.append(f"{'collapse gate':<46}" + "".join(f"{column.gate:>{width}}" for column in found))
    lines += [f"{label:<46}" + "".join(f"{value:>{width}}" for value in values) for label, values in told]
    return "\n".join([*lines, *warnings(found)])


def warnings(found: list[Column]) -> list[str]:
    """What makes the columns hard to compare, as far as they say it."""
    told = []
    same = len({column.prompts for column in found}) == 1
    if not same:
        told.append(
            "not the same prompts and seeds in every column: differences between columns are no measure of the models alone"
        )
    if len({column.base_sha256 for column in found if column.base_sha256}) > 1:
        told.append("not the same base in every column")
    for key, label in SETTINGS.items():
        values = dict.fromkeys(column.settings[key] for column in found if key in column.settings)
        if len(values) > 1:
            told.append(f"not the same {label} in every column: {', '.join(values)}")
    settings = any("steps" in line or "guidance" in line for line in told)
    if same and not settings and len({column.sampling for column in found if column.sampling}) > 1:
        told.append("not the same guidance and size for each prompt in every column")
    kinds: dict[str, dict[tuple[str, str], None]] = {}  # versions of one detector have its first word in common
    for name, digest in (card for column in found for card in column.detectors.items()):
        kinds.setdefault(name.split()[0], {})[name, digest] = None
    for cards in kinds.values():
        if len(cards) > 1:
            each = ", ".join(f"{name} {digest[:8]}" for name, digest in cards)
            told.append(f"not the same detector in every column: {each}")
    return told


def page(found: list[Column]) -> str:
    """The same as a self-contained page."""
    rows = [
        {"label": label, "cells": [{"model": cell(c, key), "base": cell(c, key, "base"), "n": num(c, key)} for c in found]}
        for key, label in keys(found)
    ]
    template = environment(autoescape=True).get_template("compare.html.j2")
    return template.render(columns=found, rows=rows, facts=facts(found), warnings=warnings(found))
