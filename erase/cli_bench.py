"""`erase bench methods`: the table to stdout, progress to stderr."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from erase.benching.attack import Attack

Concepts = Annotated[str, typer.Option("--concepts", help="`table`, `pilot`, or names: dog,church,line art.")]
Methods = Annotated[
    str | None, typer.Option("--methods", help="salun,esd,salun+method.balance=nash,...; none given: all but retrain.")
]
Densities = Annotated[str, typer.Option("--densities", help="Masks: densities and `none`, as in 0.5,none.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="How many: 0, 1, 2, ...")]
Retrained = Annotated[
    Path | None,
    typer.Option(
        "--retrain", help="A folder with one folder per concept, named as it: a run of `--method retrain`, or its model."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="The folder of cells, table and plot; gone on from.")]
Attacks = Annotated[
    str | None,
    typer.Option("--attacks", help="`quick` (few tries) or `full`: attack every model, adversarial prompts and learned words."),
]
Collect = Annotated[
    bool, typer.Option("--collect", help="The table of what is there (with --attacks, attacks too); runs nothing.")
]
Quick = Annotated[bool, typer.Option("--quick", help="One concept, one seed, a few steps and pictures: does it run?")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for every cell.")]
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
    """Every method on the same concepts and pictures, with and without mask, and its gap to retraining."""
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
