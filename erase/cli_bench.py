"""`erase bench methods`: the table to stdout, progress to stderr."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from erase.benching.attack import Attack

Concepts = Annotated[str, typer.Option("--concepts", help="`table`, `pilot`, or concepts, e.g. dog,church,line art.")]
Methods = Annotated[
    str | None, typer.Option("--methods", help="Methods, e.g. salun,esd,salun+method.balance=nash. Default: all but retrain.")
]
Densities = Annotated[str, typer.Option("--densities", help="Densities of the mask, or `none` for no mask.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds: 0, 1, 2, ...")]
Retrained = Annotated[
    Path | None,
    typer.Option(
        "--retrain", help="Folder with one folder per concept, of the same name: a run of `--method retrain`, or its model."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of cells, table and plot; existing cells are kept.")]
Attacks = Annotated[
    str | None,
    typer.Option(
        "--attacks", help="Attack every model with adversarial prompts and learned words: `quick` (few tries) or `full`."
    ),
]
Collect = Annotated[
    bool, typer.Option("--collect", help="Make the table from existing cells (and attacks, with --attacks); run nothing.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Try the command: one concept, one seed, few steps and pictures.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, applied to every cell; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")]


def bench_methods(
    concepts: Concepts = "table",
    methods: Methods = None,
    densities: Densities = "0.5,none",
    seeds: Seeds = 3,
    retrain: Retrained = None,
    out: Out = Path("runs/bench-methods"),
    attacks: Attacks = None,
    collect: Collect = False,
    quick: Quick = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Compare methods on the same concepts and pictures, with and without mask, and with retraining."""
    from erase.quiet import quiet_libraries
    from erase.terminal import Bars, stoppable

    quiet_libraries()
    from erase.benching.cells import QUICK, Cell
    from erase.benching.run import bench, chosen_concepts, chosen_methods
    from erase.benching.table import text

    names = chosen_concepts(concepts)
    cells = [
        Cell(concept, method, density, seed)
        for seed in range(1 if quick else seeds)  # a table that is not whole has every concept with the first seeds
        for concept in (names[:1] if quick else names)
        for method in chosen_methods(methods)
        for density in read_densities(densities)
    ]
    given = (*(QUICK if quick else ()), *(settings or []))
    with stoppable(out):
        table: dict[str, Any] = bench(cells, out, given, retrain, Bars(), read_attacks(attacks), collect)
    typer.echo(
        json.dumps(table) if as_json else text(table["lines"], table["note"], table["against"]) + f"\ntable and plot: {out}"
    )


def read_attacks(value: str | None) -> "Attack | None":
    """The attacks that are asked for."""
    from erase.benching.attack import Attack

    if value not in (None, "quick", "full"):
        raise ValueError(f"--attacks {value!r} is neither quick nor full.")
    return Attack(quick=value == "quick") if value else None


def read_densities(value: str) -> list[float | None]:
    """The masks that are asked for; None is none."""
    try:
        found = [None if part.strip() == "none" else float(part) for part in value.split(",")]
    except ValueError as error:
        raise ValueError(f"--densities {value!r} is not a list such as 0.5,none.") from error
    if wrong := [density for density in found if density is not None and not 0 < density <= 1]:
        raise ValueError(f"--densities has {wrong[0]:g}; a density is above 0 and at most 1.")
    return found
