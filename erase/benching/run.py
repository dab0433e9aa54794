"""The whole bench, in one process: base and retrained models, then cell by cell; what is there is not made again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from erase.benching.attack import ATTACKS, Attack
from erase.benching.cells import PILOT, TABLE_CONCEPTS, Bench, Cell
from erase.benching.machine import machine
from erase.benching.pareto import AXES, TITLE, pareto
from erase.benching.strip import sheet
from erase.benching.table import MODELS, against, label_of, markdown, summarise, with_lpips
from erase.files import slug, write_json, write_text
from erase.methods import METHODS
from erase.progress import Progress
from erase.recipes import RECIPES

CELLS_OWN = ("concept", "model", "seed", "recipe", "method", "method.name", "saliency.method", "saliency.density")


def chosen_concepts(value: str) -> list[str]:
    """`table`, `pilot`, or names; raises ValueError for one that the embedded model does not draw."""
    from erase.concepts import find_concept
    from pipelines.load import EMOJI_VOCABULARY

    names = {"table": list(TABLE_CONCEPTS), "pilot": list(PILOT)}.get(value) or [part.strip() for part in value.split(",")]
    return [find_concept(name, EMOJI_VOCABULARY).name for name in names]


def chosen_methods(value: str | None) -> list[str]:
    """The methods by name, each perhaps with settings behind a plus; none given: all that change weights, and `paper`."""
    if value is None:
        return [*(name for name, method in METHODS.items() if not method.remake), "paper"]
    names = [part.strip() for part in value.split(",")]
    known = [*METHODS, *RECIPES]
    if wrong := [name for name in names if name.split("+")[0] not in known]:
        raise ValueError(f"there is no method {wrong[0]!r} (known: {', '.join(known)}).")
    for method, *settings in (name.split("+") for name in names):
        if method in METHODS and METHODS[method].remake:
            raise ValueError(f"{method} takes hours: make it once with `erase --method {method}` and give it with --retrain.")
        check_settings(settings)
    return names


def check_settings(settings: Iterable[str]) -> None:
    """Raises ValueError for a setting that would make a cell another than its name says."""
    for setting in settings:
        if (key := setting.partition("=")[0]) in CELLS_OWN:
            raise ValueError(f"{setting}: {key} is the cell's own; give --concepts, --methods, --densities or --seeds.")


def bench(
    cells: list[Cell],
    out: Path,
    settings: tuple[str, ...],
    retrain: Path | None,
    progress: Progress,
    attack: Attack | None = None,
    collect: bool = False,
) -> dict[str, Any]:
    """The table of the cells, written to `out` after each of them as table.json, table.md, plots and pictures/.

    `collect`: of those that are there, made with the same settings and by the same code; nothing is run.
    """
    check_settings(settings)
    for cell in cells:
        cell.config(settings)  # a mistake in a setting shows before the first run
    concepts = list(dict.fromkeys(cell.concept for cell in cells))
    retrained = {name: retrain / slug(name) for name in concepts if retrain and (retrain / slug(name)).is_dir()}
    if retrain and not retrained:
        raise ValueError(f"--retrain {retrain} has no folder named {' or '.join(slug(name) for name in concepts)}.")
    runner = Bench(out, settings, progress, attack, collect)
    found = [runner.measure_base(name) for name in concepts]
    found += [runner.measure_retrained(name, source) for name, source in retrained.items()]

    def table() -> dict[str, Any]:
        rows = [row for row in found if row]
        attacked = any("attacked" in row for row in rows)
        unmeasured = {} if attacked else {"attack": "no attack was run on these cells (--attacks quick runs some)."}
        if not rows:
            raise ValueError(f"{out} has no cell made with these settings by this code: give the command without --collect.")
        return write_table(rows, out, runner.base_hash, runner.tools.missing | unmeasured)

    for number, cell in enumerate(cells):
        if not collect:
            progress.note(f"{number + 1} of {len(cells)}: {cell.name}")
        found.append(runner.run_cell(cell))
        if not collect and number + 1 < len(cells):
            table()
    return table()


def attack_note(rows: list[dict[str, Any]]) -> str:
    """What the attack column is, and on what it was measured."""
    attacked = [row for row in rows if "attacked" in row]
    tries = " (quick: few tries)" if any(row["attacked"]["quick"] for row in attacked) else ""
    names = ", ".join(dict.fromkeys(row["concept"] for row in attacked))
    return (
        f"attack{f' (on {names})' if names else ''}: the share of tries, in %, in which "
        f"{' or '.join(ATTACKS).replace('_', ' ')} brings the concept back, whichever is larger{tries}."
    )


def lpips_note(rows: list[dict[str, Any]]) -> str:
    """On which seeds LPIPS was measured, concept by concept, where that is not all of them; empty where it is all or none."""
    even, cells = with_lpips(rows), {(row["concept"], row["seed"]) for row in rows if row["method"] not in MODELS}
    if not even or even == cells:
        return ""
    seeds = {name: sorted(seed for concept, seed in even if concept == name) for name, _ in sorted(even)}
    told = "; ".join(f"{name} {', '.join(map(str, found))}" for name, found in seeds.items())
    return f" (LPIPS of these seeds, for which its weights were there: {told})"


def write_table(rows: list[dict[str, Any]], out: Path, base_hash: str, missing: dict[str, str]) -> dict[str, Any]:
    """The summary of the rows so far, on disk and as it is."""
    lines = summarise(rows)
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    gaps = sorted({name for line in lines for name in line["gap_concepts"]})
    n = sum(row["n_forget"] for row in rows), sum(row["n_retained"] for row in rows)
    counted = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    note = (
        f"{', '.join(concepts)}; {counted}; UA, IRA, CRA in %, mean±std over seeds (gap to "
        f"Retrain, over {', '.join(gaps) or 'none: no --retrain'}); "
        f"{n[0]} pictures of the concepts and {n[1]} of the rest in all; FD-emoji: retained pictures from the base's of "
        f"other seeds (the base's own line is the floor); LPIPS and SSIM: against the base's of the same"
        f"{lpips_note(rows)}; {attack_note(rows)}"
    )
    try:
        beside = against(rows)
    except ImportError:
        beside, missing = [], missing | {"comparison": "it needs scipy: `pip install 'erase-concepts[eval]'`."}
    table = {
        "note": note,
        "lines": lines,
        "against": beside,
        "rows": rows,
        "base_sha256": base_hash,
        "environment": machine(),
    }
    table["not_measured"] = missing
    write_json(table, out / "table.json")
    write_text(markdown(lines, note, beside), out / "table.md")
    for name in AXES:
        pareto(lines, out / name, TITLE)
    for concept in concepts:
        own = [row for row in rows if row["concept"] == concept and row["seed"] == seeds[0]]
        strips = {label_of(row): out / "strips" / f"{row['name']}.webp" for row in own}
        if strips := {label: file for label, file in strips.items() if file.is_file()}:
            sheet(strips, out / "pictures" / f"{slug(concept)}.webp")
    return table
