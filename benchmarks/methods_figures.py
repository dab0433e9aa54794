"""The figures that docs/methods-table.md and README.md take from the tables' records: see benchmarks.methods_table."""

import statistics

from benchmarks.methods_tables import Record, Row
from erase.benching.table import MODELS, collapsed_suffix


def own_rows(record: Record, concept: str, method: str, density: float | None) -> list[Row]:
    """One line's rows of one concept."""
    asked = (concept, method, density)
    return [row for row in record["rows"] if (row["concept"], row["method"], row["density"]) == asked]


def floors_of(record: Record) -> dict[str, float]:
    """FD-emoji of the base's own pictures, concept by concept."""
    return {row["concept"]: row["fd"] for row in record["rows"] if row["method"] == "base"}


def worst_name(rows: list[Row], base: Row) -> str:
    """The retained name that lost most, over all seeds: by how many points of its pictures, and which."""
    lost = {}
    for name, (count, n) in base["by_name"].items():
        seen = [row["by_name"][name] for row in rows]
        lost[name] = 100 * (count / n - sum(one for one, _ in seen) / sum(total for _, total in seen))
    name = max(lost, key=lambda key: lost[key])
    return "none" if lost[name] <= 0 else f"{lost[name]:.1f} ({name})"


def default_rows(record: Record) -> list[tuple[str, ...]]:
    """README's table of the default: what was forgotten and what was kept, concept by concept, means over the seeds."""
    found = []
    for concept in dict.fromkeys(row["concept"] for row in record["rows"]):
        (base,) = own_rows(record, concept, "base", None)
        own = own_rows(record, concept, "salun", 0.5)
        mean = {key: statistics.fmean(row[key] for row in own) for key in ("ua", "ira", "cra", "none_retained", "fd", "ssim")}
        found.append(
            (
                concept,
                f"{mean['ua']:.1f}",
                *(f"{base[key]:.1f} → {mean[key]:.1f}" for key in ("ira", "cra")),
                worst_name(own, base),
                f"{mean['none_retained']:.1f}",
                f"{mean['fd'] / base['fd']:.2f}",
                f"{mean['ssim']:.3f}",
                f"{sum(row['n_forget'] for row in own)} / {sum(row['n_retained'] for row in own)}",
            )
        )
    return found


def is_attacked(record: Record) -> bool:
    """Whether any method's model was attacked."""
    return any(row["attack"] is not None for row in record["rows"] if row["method"] not in MODELS)


def method_rows(record: Record) -> list[tuple[str, ...]]:
    """README's table of all methods: one column a figure, in it the concepts' means over the seeds side by side.

    The average gap to Retrain is one for all concepts, as in docs/methods-table.md.
    """
    concepts = list(dict.fromkeys(row["concept"] for row in record["rows"]))
    floors = floors_of(record)
    found = []
    for line in record["lines"]:
        method, density = line["method"], line["density"]
        rows = {concept: own_rows(record, concept, method, density) for concept in concepts}

        def told(key: str, digits: int, over: dict[str, float] | None = None, rows: dict[str, list[Row]] = rows) -> str:
            values = []
            for concept, own in rows.items():
                have = [row[key] / (over[concept] if over else 1) for row in own if row[key] is not None]
                values.append(f"{statistics.fmean(have):.{digits}f}" if have else "-")
            return " / ".join(values)

        mask = "" if method in MODELS else "none" if density is None else f"{density:g}"
        gap = "-" if line["average_gap"] is None else f"{line['average_gap']:.2f}"
        figures = (*(told(key, 1) for key in ("ua", "ira", "cra")), gap, told("fd", 2, floors), told("ssim", 3))
        if is_attacked(record):
            figures += (told("attack", 1),)
        found.append((method + collapsed_suffix(line), mask, *figures))
    return found


MASK_HEAD = ("method", "cells", "UA", "IRA", "CRA", "FD-emoji / floor", "SSIM")


def with_mask_minus_without(record: Record) -> dict[str, list[float]]:
    """Of each method that was run both ways: how many pairs of cells, and the mean difference of every figure of MASK_HEAD."""
    floors = floors_of(record)
    cells: dict[str, dict[tuple[str, int], dict[float | None, Row]]] = {}
    for row in (row for row in record["rows"] if row["method"] not in MODELS):
        cells.setdefault(row["method"], {}).setdefault((row["concept"], row["seed"]), {})[row["density"]] = row

    def figures(row: Row) -> list[float]:
        return [*(row[key] for key in ("ua", "ira", "cra")), row["fd"] / floors[row["concept"]], row["ssim"]]

    found = {}
    for method, by_cell in cells.items():
        pairs = [(figures(both[0.5]), figures(both[None])) for both in by_cell.values() if both.keys() >= {0.5, None}]
        if pairs:
            apart = [[one - other for one, other in zip(*pair, strict=True)] for pair in pairs]
            found[method] = [float(len(pairs)), *(statistics.fmean(values) for values in zip(*apart, strict=True))]
    return found


def mask_rows(record: Record) -> list[tuple[str, ...]]:
    """The table of those differences."""
    return [
        (method, f"{cells:.0f}", *(f"{value:+.1f}" for value in values[:3]), f"{values[3]:+.3f}", f"{values[4]:+.4f}")
        for method, (cells, *values) in with_mask_minus_without(record).items()
    ]
