"""The table of the methods, with and without mask side by side: mean +- std over seeds, (gap to Retrain)."""

import statistics
from typing import Any

Row = dict[str, Any]
SHARES = ("ua", "ira", "cra")
HEAD = ("method", "mask", "UA", "IRA", "CRA", "avg. gap", "worst UA", "worst kept", "FD-emoji", "LPIPS", "attack", "s", "GB")
NOT_MEASURED = "not measured"


def summarise(rows: list[Row]) -> list[Row]:
    """One line per method and mask: mean and standard deviation over seeds of the mean over concepts, gaps, worst concept.

    A gap is the distance of a concept's mean from the model retrained without it, mean over the concepts that have one.
    """
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["density"]), []).append(row)
    retrained = {row["concept"]: row for row in rows if row["method"] == "retrain"}
    return [_line(method, density, cells, retrained) for (method, density), cells in groups.items()]


def _line(method: str, density: float | None, cells: list[Row], retrained: dict[str, Row]) -> Row:
    line: Row = {"method": method, "density": density, "cells": len(cells), "collapsed": sum(c["collapsed"] for c in cells)}
    for key in (*SHARES, "fd", "lpips", "attack", "seconds", "peak_rss_gb"):
        line[key] = _over_seeds([(cell["seed"], cell[key]) for cell in cells if cell.get(key) is not None])
    concepts = {cell["concept"]: [c for c in cells if c["concept"] == cell["concept"]] for cell in cells}
    compared = (*SHARES, "fd")
    means = {name: {key: statistics.fmean(c[key] for c in own) for key in compared} for name, own in concepts.items()}
    both = [name for name in means if name in retrained]
    line["gaps"] = {
        key: statistics.fmean(abs(means[name][key] - retrained[name][key]) for name in both) if both else None
        for key in compared
    }
    line["average_gap"] = statistics.fmean(line["gaps"][key] for key in SHARES) if both else None
    line["gap_concepts"] = both
    line["worst_ua"] = min((mean["ua"], name) for name, mean in means.items())
    line["worst_kept"] = min((min(mean["ira"], mean["cra"]), name) for name, mean in means.items())
    return line


def _over_seeds(values: list[tuple[int, float]]) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds of the mean over concepts; None where nothing was measured."""
    seeds: dict[int, list[float]] = {}
    for seed, value in values:
        seeds.setdefault(seed, []).append(value)
    means = [statistics.fmean(found) for found in seeds.values()]
    if not means:
        return None
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else 0.0


def cells_of(line: Row) -> tuple[str, ...]:
    """The line as the table prints it."""

    def value(key: str, digits: int = 2) -> str:
        found = line[key]
        return NOT_MEASURED if found is None else f"{found[0]:.{digits}f}±{found[1]:.{digits}f}"

    def share(key: str) -> str:
        gap = line["gaps"][key]
        return value(key) + ("" if gap is None else f" ({gap:.2f})")

    mask = {"base": "", "retrain": ""}.get(line["method"], "none" if line["density"] is None else f"{line['density']:g}")
    seconds, memory = line["seconds"], line["peak_rss_gb"]
    return (
        line["method"] + (f" [{line['collapsed']} of {line['cells']} collapsed]" if line["collapsed"] else ""),
        mask,
        *(share(key) for key in SHARES),
        "" if line["average_gap"] is None else f"{line['average_gap']:.2f}",
        f"{line['worst_ua'][0]:.1f} ({line['worst_ua'][1]})",
        f"{line['worst_kept'][0]:.1f} ({line['worst_kept'][1]})",
        share("fd"),
        value("lpips", 3),
        value("attack"),
        "" if seconds is None else f"{seconds[0]:.0f}",
        "" if memory is None else f"{memory[0]:.2f}",
    )


def text(lines: list[Row], note: str) -> str:
    """The table for the terminal."""
    table = [HEAD, *(cells_of(line) for line in lines)]
    widths = [max(len(row[k]) for row in table) for k in range(len(HEAD))]
    printed = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([note, *printed])


def markdown(lines: list[Row], note: str) -> str:
    """The table for a document."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(cells_of(line) for line in lines)]
    return note + "\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
