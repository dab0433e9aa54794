"""The figures that docs/methods-table.md and README.md take from the tables' records: see benchmarks.methods_table."""

import statistics

from benchmarks.methods_tables import Record, Row
from erase.benching.table import MODELS, collapsed_suffix, difference, told_difference


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


TRIED = {"adversarial_prompt": "adversarial prompt", "concept_inversion": "learned word"}
"""The attacks of the bench, as the tables call them."""


def is_attacked(record: Record) -> bool:
    """Whether any method's model was attacked."""
    return any(row.get("attacked") for row in record["rows"] if row["method"] not in MODELS)


def tries(record: Record) -> dict[str, int | None]:
    """Each attack's number of tries; None where that is not the same in all rows."""
    nums = {
        probe: {found["model"]["n"] for row in record["rows"] if (found := attack_on(row, probe)) and found["model"]}
        for probe in TRIED
    }
    return {probe: min(found) if len(found) == 1 else None for probe, found in nums.items()}


def attack_on(row: Row, probe: str) -> Row | None:
    """What one attack found on the row's model; None where it was not run, or finds the concept too seldom in the base."""
    found: Row | None = (row.get("attacked") or {"found": {}})["found"].get(probe)
    return None if found is None or found["status"] == "NOT MEASURED" else found


def told_attack(rows: list[Row], probe: str, whole: int | None) -> str:
    """In how many tries one attack on one concept's models brings it back; with the number of tries where `whole` is not it."""
    found = [one["model"] for row in rows if (one := attack_on(row, probe)) and one["model"]]
    if not found:
        return "-"
    hits, num = sum(round(one["value"] * one["n"]) for one in found), sum(one["n"] for one in found)
    return str(hits) if num == whole else f"{hits} of {num}"


def method_rows(record: Record) -> list[tuple[str, ...]]:
    """README's table of all methods: one column a figure, in it the concepts' means over the seeds side by side.

    The average gap to Retrain is one for all concepts, as in docs/methods-table.md. Of the attacks, how many tries succeed.
    """
    numbers = tries(record)
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
            figures += tuple(" / ".join(told_attack(own, probe, numbers[probe]) for own in rows.values()) for probe in TRIED)
        found.append((method + collapsed_suffix(line), mask, *figures))
    return found


def none_shares(rows: list[Row]) -> str:
    """How much of what the models drew the judge knows nothing in, from the row with least to that with most, in words."""

    def told(key: str) -> str:
        low, high = (f"{end(row[key] for row in rows):.0f}" for end in (min, max))
        return f"{low} %" if low == high else f"{low} to {high} %"

    drawn = f"{told('none_forget')} of their pictures for the concept's prompts and in {told('none_retained')} of the kept ones"
    return f"nothing that the judge knows is in {drawn}"


MASK_HEAD = ("method", "pairs", "UA", "IRA", "CRA", "FD-emoji / floor", "SSIM")
Pairs = dict[str, list[list[float]]]


def with_mask_minus_without(record: Record) -> Pairs:
    """Of each method that was run both ways: the differences of every figure of MASK_HEAD, pair of cells by pair of cells."""
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
            found[method] = [[one - other for one, other in zip(*pair, strict=True)] for pair in pairs]
    return found


def mask_rows(record: Record) -> list[tuple[str, ...]]:
    """The table of those differences."""
    found = []
    for method, pairs in with_mask_minus_without(record).items():
        intervals = [difference(list(values)) or (values[0],) for values in zip(*pairs, strict=True)]
        told = [told_difference(one, digits) for one, digits in zip(intervals, (1, 1, 1, 3, 4), strict=True)]
        found.append((method, str(len(pairs)), *told))
    return found
