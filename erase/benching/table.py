"""The table of the methods, with and without mask side by side: mean +- std over seeds, (gap to Retrain)."""

import math
import statistics
from typing import Any

Row = dict[str, Any]
MODELS = ("base", "retrain")
"""Whole models beside the methods' cells."""
SHARES = ("ua", "ira", "cra")
HEAD = tuple("method,mask,cells,UA,IRA,CRA,avg. gap,worst UA,worst kept,FD-emoji,/ floor,LPIPS,SSIM,attack,s,GB".split(","))
COMPARED = {**dict.fromkeys(SHARES, 1), "fd": -1, "ssim": 1}
"""What two methods are compared by, and whether more (1) or less (-1) of it is better."""
FEWEST = 3  # concepts, for a verdict
AGAINST_HEAD = ("method", "mask", "concepts", "cells", "UA", "IRA", "CRA", "FD-emoji", "SSIM", "verdict")
NOT_MEASURED = "not measured"


def summarise(rows: list[Row]) -> list[Row]:
    """One line per method and mask: mean and standard deviation over seeds of the mean over concepts, gaps, worst concept.

    A gap is the distance of a concept's mean from the model retrained without it, mean over the concepts that have one;
    `fd_ratio`: each FD-emoji over that of the base's own pictures for the concept. `only`: the concepts of a line without all.
    LPIPS is over the cells that `with_lpips` finds.
    """
    groups: dict[tuple[str, float | None], list[Row]] = {}
    retrained = {row["concept"]: row for row in rows if row["method"] == "retrain"}
    floors = {row["concept"]: row["fd"] for row in rows if row["method"] == "base"}
    every = {row["concept"] for row in rows}
    even = with_lpips(rows)
    for row in rows:
        told = row if row["method"] in MODELS or (row["concept"], row["seed"]) in even else row | {"lpips": None}
        groups.setdefault((row["method"], row["density"]), []).append(told)
    lines = [_line(method, density, cells, retrained, floors) for (method, density), cells in groups.items()]
    for line, cells in zip(lines, groups.values(), strict=True):
        own = dict.fromkeys(cell["concept"] for cell in cells)
        line["only"] = [] if set(own) == every else list(own)
    return lines


def with_lpips(rows: list[Row]) -> set[tuple[str, int]]:
    """Concept and seed of the cells that LPIPS was measured on under every method: its weights may not have been there for all.

    So one method's mean is never over other pictures than the next one's.
    """
    cells = [row for row in rows if row["method"] not in MODELS]
    return {(row["concept"], row["seed"]) for row in cells} - {
        (row["concept"], row["seed"]) for row in cells if row.get("lpips") is None
    }


def _line(method: str, density: float | None, cells: list[Row], retrained: dict[str, Row], floors: dict[str, float]) -> Row:
    line: Row = {"method": method, "density": density, "cells": len(cells), "collapsed": sum(c["collapsed"] for c in cells)}
    for key in (*SHARES, "fd", "lpips", "ssim", "attack", "peak_rss_gb"):
        line[key] = _over_seeds([(cell["seed"], cell[key]) for cell in cells if cell.get(key) is not None])
    seconds = [cell["seconds"] for cell in cells if cell.get("seconds") is not None]
    line["seconds"] = (statistics.median(seconds), None) if seconds else None  # beside much other work a cell is one of many
    ratios = [(cell["seed"], cell["fd"] / floors[cell["concept"]]) for cell in cells if floors.get(cell["concept"])]
    line["fd_ratio"] = _over_seeds(ratios)
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


def _over_seeds(values: list[tuple[int, float]]) -> tuple[float, float | None] | None:
    """Mean and standard deviation (of one seed none) over seeds of the mean over concepts; None where nothing was measured."""
    seeds: dict[int, list[float]] = {}
    for seed, value in values:
        seeds.setdefault(seed, []).append(value)
    means = [statistics.fmean(found) for found in seeds.values()]
    if not means:
        return None
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None


def against(rows: list[Row], method: str = "salun", density: float | None = 0.5) -> list[Row]:
    """The reference (our default) minus every other method, over the cells (concept, seed) that both have.

    Of each compared figure the mean over concepts of the mean difference over their seeds, and its 95 % interval (Student's t
    over concepts: seeds of one concept are no samples of concepts). The verdict holds it against what is better: `better` or
    `worse` where no figure's interval says the opposite and at least one says so, `mixed` where some say the one and some the
    other, `tied` where none says either, `too few` for fewer than 3 concepts. Raises ImportError without scipy.
    """
    own = {(row["concept"], row["seed"]): row for row in rows if (row["method"], row["density"]) == (method, density)}
    others = dict.fromkeys((row["method"], row["density"]) for row in rows if row["method"] not in MODELS)
    found = []
    for other in others:
        cells = [row for row in rows if (row["method"], row["density"]) == other and (row["concept"], row["seed"]) in own]
        if other == (method, density) or not cells:
            continue
        concepts = list(dict.fromkeys(row["concept"] for row in cells))
        line: Row = {"method": other[0], "density": other[1], "concepts": len(concepts), "cells": len(cells)}
        for key in COMPARED:
            pairs = [(row["concept"], own[row["concept"], row["seed"]].get(key), row.get(key)) for row in cells]
            apart = [(name, one - two) for name, one, two in pairs if one is not None and two is not None]
            by_concept = [[value for name, value in apart if name == concept] for concept in concepts]
            line[key] = difference([statistics.fmean(values) for values in by_concept if values])
        signs = {sign(line[key], better) for key, better in COMPARED.items()} - {0}
        line["verdict"] = {(1,): "better", (-1,): "worse", (-1, 1): "mixed"}.get(tuple(sorted(signs)), "tied")
        if len(concepts) < FEWEST:
            line["verdict"] = "too few"
        found.append(line)
    return found


def difference(values: list[float]) -> tuple[float, float, float] | None:
    """Mean and the ends of its 95 % interval; of one value, or none, no interval can be known."""
    if len(values) < 2:
        return None
    mean, half = statistics.fmean(values), student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def sign(difference: tuple[float, float, float] | None, better: int) -> int:
    """1: the interval lies wholly on the better side; -1: on the worse; 0: it holds zero, or there is none."""
    if difference is None:
        return 0
    low, high = sorted(better * end for end in difference[1:])
    return int(low > 0) - int(high < 0)


def told_difference(found: tuple[float, ...], digits: int) -> str:
    """A mean difference and, where there is one, its interval."""
    mean, *ends = (f"{value:+.{digits}f}" for value in found)
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def against_cells(line: Row) -> tuple[str, ...]:
    """A line of the comparison as it is printed."""

    def told(key: str) -> str:
        return NOT_MEASURED if line[key] is None else told_difference(line[key], 3 if key in ("fd", "ssim") else 2)

    mask = "none" if line["density"] is None else f"{line['density']:g}"
    return (line["method"], mask, str(line["concepts"]), str(line["cells"]), *(told(key) for key in COMPARED), line["verdict"])


AGAINST = (
    "salun (mask 0.5) minus the other, over the cells that both have: mean difference [95 % interval, Student's t over "
    "concepts; none is widened for there being five]; better: ahead beyond its interval in at least one figure and behind in "
    "none; tied: no interval is on one side of zero. FD-emoji and SSIM count nearness to the base as better."
)


def label_of(row: Row) -> str:
    """Method and mask of a row, in a few words."""
    return row["method"] + (", no mask" if row["density"] is None else f", mask {row['density']:g}")


def collapsed_in_words(line: Row) -> str:
    """How many of a line's cells fail the collapse gate, in words; empty for none."""
    return f"{line['collapsed']} of {line['cells']} collapsed" if line["collapsed"] else ""


def collapsed_suffix(line: Row) -> str:
    """The same, to be put behind the line's name."""
    return f" [{collapsed_in_words(line)}]" if line["collapsed"] else ""


def cells_of(line: Row) -> tuple[str, ...]:
    """The line as the table prints it."""

    def value(key: str, digits: int = 2) -> str:
        found = line[key]
        if found is None:
            return NOT_MEASURED
        return f"{found[0]:.{digits}f}" + ("" if found[1] is None else f"±{found[1]:.{digits}f}")

    def share(key: str) -> str:
        gap = line["gaps"][key]
        return value(key) + ("" if gap is None else f" ({gap:.2f})")

    mask = {"base": "", "retrain": ""}.get(line["method"], "none" if line["density"] is None else f"{line['density']:g}")
    seconds, memory = line["seconds"], line["peak_rss_gb"]
    return (
        line["method"] + (f" ({', '.join(line['only'])})" if line["only"] else "") + collapsed_suffix(line),
        mask,
        str(line["cells"]),
        *(share(key) for key in SHARES),
        "" if line["average_gap"] is None else f"{line['average_gap']:.2f}",
        f"{line['worst_ua'][0]:.1f} ({line['worst_ua'][1]})",
        f"{line['worst_kept'][0]:.1f} ({line['worst_kept'][1]})",
        share("fd"),
        value("fd_ratio"),
        value("lpips", 3),
        value("ssim", 3),
        value("attack"),
        "" if seconds is None else f"{seconds[0]:.0f}",
        "" if memory is None else f"{memory[0]:.2f}",
    )


def text(lines: list[Row], note: str, beside: list[Row]) -> str:
    """The table, and the comparison with our default, for the terminal."""
    parts = [note, *_aligned([HEAD, *(cells_of(line) for line in lines)])]
    if beside:
        parts += ["", AGAINST, *_aligned([AGAINST_HEAD, *(against_cells(line) for line in beside)])]
    return "\n".join(parts)


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def piped(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, tuple("---" for _ in head), *rows])


def markdown(lines: list[Row], note: str, beside: list[Row]) -> str:
    """The same for a document."""
    parts = [note, piped(HEAD, [cells_of(line) for line in lines])]
    if beside:
        parts += [AGAINST, piped(AGAINST_HEAD, [against_cells(line) for line in beside])]
    return "\n\n".join(parts)
