"""Several evaluations side by side: `erase compare`."""

from pathlib import Path
from typing import Any, Literal

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


class Column(Config):
    """One evaluation's table."""

    name: str
    suite: str
    base: str
    rows: tuple[Row, ...]
    gate: Literal["passed", "failed", "not measured"]
    prompts: str
    """Hash of the prompts, so that only like is set beside like."""


def columns(folders: list[Path]) -> list[Column]:
    """One column per folder of `erase eval` or of `erase --concept`, or its results.json; raises ValueError for any other."""
    found = []
    for folder in folders:
        path = folder / "results.json" if folder.is_dir() else folder
        if not path.is_file():
            raise ValueError(f"{folder} has no results.json; give folders of `erase eval` or of `erase --concept`.")
        found.append(_column(folder.name, path))
    return found


def _column(name: str, path: Path) -> Column:
    try:
        values = read_json(path)
        if "audit" in values:
            return _of_run(name, values)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = "damaged" if path.name == "results.json" else "no results.json"
        raise ValueError(f"{path} is {what}; give folders of `erase eval` or of `erase --concept`.") from error
    return _of_evaluation(name, read_results(path))


def _of_evaluation(name: str, results: Results) -> Column:
    gate: Any = "not measured" if results.gate is None else "passed" if results.gate.passed else "failed"
    base = results.plan.baseline.name if results.plan.baseline else ""
    facts = {"suite": results.plan.suite, "base": base, "prompts": results.prompts_sha256}
    return Column(name=name, rows=results.rows, gate=gate, **facts)


def _of_run(name: str, values: dict[str, Any]) -> Column:
    """A run's own results in the same terms; UA is 1 - the share of pictures that still show the concept."""
    rows = []
    for key, (label, row_key) in LABELS.items():
        sides = {side: _figure(values[side].get("intervals", {}).get(key), key == "forget") for side in ("base", "erased")}
        rows.append(Row(key=row_key, label=label, unit="share", better="higher", base=sides["base"], model=sides["erased"]))
    gate = values.get("collapse")
    verdict: Any = "not measured" if not gate else "passed" if gate["passed"] else "failed"
    facts = {"suite": "run", "base": values["model"], "prompts": f"run {values['concept']} {values['base'].get('n')}"}
    return Column(name=name, rows=tuple(rows), gate=verdict, **facts)


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


def text(found: list[Column]) -> str:
    """The table for the terminal, one evaluation per column."""
    width = max(22, *(len(column.name) + 2 for column in found))
    lines = [f"{'':<46}" + "".join(f"{column.name:>{width}}" for column in found)]
    for key, label in keys(found):
        lines.append(f"{label[:44]:<46}" + "".join(f"{cell(column, key):>{width}}" for column in found))
        lines.append(f"{'  its base':<46}" + "".join(f"{cell(column, key, 'base'):>{width}}" for column in found))
    lines.append(f"{'collapse gate':<46}" + "".join(f"{column.gate:>{width}}" for column in found))
    return "\n".join([*lines, *warnings(found)])


def warnings(found: list[Column]) -> list[str]:
    """What makes the columns hard to compare."""
    if len({column.prompts for column in found}) > 1:
        return [
            "not the same prompts and seeds in every column: differences between columns are no measure of the models alone"
        ]
    return []


def page(found: list[Column]) -> str:
    """The same as a self-contained page."""
    rows = [
        {"label": label, "cells": [{"model": cell(c, key), "base": cell(c, key, "base")} for c in found]}
        for key, label in keys(found)
    ]
    template = environment(autoescape=True).get_template("compare.html.j2")
    return template.render(columns=found, rows=rows, warnings=warnings(found))
