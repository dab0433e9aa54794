"""The whole bench, in one process: base and retrained models, then cell by cell; what is there is not made again."""

import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from erase.benching.cells import ATTACKS, PILOT, TABLE, Attack, Bench, Cell, slug
from erase.benching.pareto import pareto
from erase.benching.table import markdown, summarise
from erase.files import write_json, write_text
from erase.methods import METHODS
from erase.recipes import RECIPES


def chosen_concepts(value: str) -> list[str]:
    """`table`, `pilot`, or names; raises ValueError for one that the embedded model does not draw."""
    from erase.concepts import find_concept
    from pipelines.load import EMOJI_VOCABULARY

    names = {"table": list(TABLE), "pilot": list(PILOT)}.get(value) or [part.strip() for part in value.split(",")]
    return [find_concept(name, EMOJI_VOCABULARY).name for name in names]


def chosen_methods(value: str | None) -> list[str]:
    """The methods by name, each perhaps with settings behind a plus; none given: all that change weights, and `paper`."""
    if value is None:
        return [*(name for name, method in METHODS.items() if not method.remake), "paper"]
    names = [part.strip() for part in value.split(",")]
    known = [*METHODS, *RECIPES]
    if wrong := [name for name in names if name.split("+")[0] not in known]:
        raise ValueError(f"there is no method {wrong[0]!r} (known: {', '.join(known)}).")
    if remade := [name for name in names if name in METHODS and METHODS[name].remake]:
        raise ValueError(f"{remade[0]} takes hours: make it once with `erase --method {remade[0]}` and give it with --retrain.")
    return names


def bench(
    cells: list[Cell],
    out: Path,
    settings: tuple[str, ...],
    retrain: Path | None,
    progress: Any,
    attack: Attack | None = None,
) -> dict[str, Any]:
    """The table of the cells, written to `out` after each of them as table.json, table.md and pareto.svg."""
    for cell in cells:
        cell.config(settings)  # a mistake in a setting shows before the first run
    concepts = list(dict.fromkeys(cell.concept for cell in cells))
    retrained = {name: retrain / slug(name) for name in concepts if retrain and (retrain / slug(name)).is_dir()}
    if retrain and not retrained:
        raise ValueError(f"--retrain {retrain} has no folder named {' or '.join(slug(name) for name in concepts)}.")
    machine = Bench(out, settings, progress, attack)
    rows = [machine.base(name) for name in concepts]
    rows += [machine.retrained(name, source) for name, source in retrained.items()]
    table: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        progress.note(f"{number + 1} of {len(cells)}: {cell.name}")
        rows.append(machine.method(cell))
        missing = machine.tools.missing | (
            {} if attack else {"attack": "no attack was run on these cells (--attacks runs them)."}
        )
        table = write_table(rows, out, machine.base_hash, missing)
    return table


def write_table(rows: list[dict[str, Any]], out: Path, base_hash: str, missing: dict[str, str]) -> dict[str, Any]:
    """The summary of the rows so far, on disk and as it is."""
    lines = summarise(rows)
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    n = sum(row["n_forget"] for row in rows), sum(row["n_retained"] for row in rows)
    note = (
        f"{', '.join(concepts)}; seeds {', '.join(map(str, seeds))}; UA, IRA, CRA in %, mean±std over seeds (gap to Retrain); "
        f"{n[0]} pictures of the concepts and {n[1]} of the rest in all; FD-emoji and LPIPS: retained pictures from the "
        f"base's; attack: the larger share, in %, in which {' or '.join(ATTACKS).replace('_', ' ')} brings the concept back."
    )
    environment = {
        "date": date.today().isoformat(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    table = {"note": note, "lines": lines, "rows": rows, "base_sha256": base_hash, "environment": environment}
    table["not_measured"] = missing
    write_json(table, out / "table.json")
    write_text(markdown(lines, note), out / "table.md")
    pareto(lines, out / "pareto.svg", "Forgetting against keeping on the embedded model")
    return table
