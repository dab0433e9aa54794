"""`erase forest`: random forests with exact removal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erase.classification.cli_rows import (
    Data,
    File,
    Ids,
    Json,
    SameData,
    ScoreData,
    Seed,
    TrainedOn,
    held,
    need_sklearn,
    quality,
    show,
)

if TYPE_CHECKING:
    from erase.classification.forest import Forest

forest = typer.Typer(help="Random forests with exact removal (DaRE, Brophy & Lowd, 2021).", no_args_is_help=True)


@forest.command("fit")
def forest_fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("runs/forest.safetensors"),
    trees: Annotated[int, typer.Option(help="Number of trees (per class, if there are more than two classes).")] = 10,
    max_depth: Annotated[int, typer.Option(help="Maximum depth of a tree.")] = 20,
    thresholds: Annotated[int, typer.Option(help="k: thresholds tried per attribute.")] = 25,
    random_depth: Annotated[int, typer.Option(help="Number of upper levels that split at random.")] = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a forest."""
    need_sklearn()
    from erase.classification.forest import Forest
    from erase.classification.rows import class_labels, load_rows

    with held(out, new=True):
        rows = load_rows(data)
        grown = Forest(trees, max_depth=max_depth, n_thresholds=thresholds, random_depth=random_depth, seed=seed)
        grown.fit(rows.features, class_labels(rows), rows.ids)
        grown.save(out, {"data": data})
    show({"out": str(out), "accuracy_on_its_rows": grown.score(rows.features, rows.labels), **_shape(grown)}, as_json)


@forest.command("remove")
def forest_remove(file: File, ids: Ids, data: SameData = None, as_json: Json = False) -> None:
    """Remove rows: the forest becomes the one that `fit` would make without them."""
    need_sklearn()
    from erase.classification.forest import Forest, read_forest
    from erase.classification.rows import load_rows, parse_ids

    wanted = parse_ids(ids)
    with held(file):
        _, header = read_forest(file)
        data = data or header.get("data", "")
        rows = load_rows(data)
        loaded = Forest.load(file, rows.features, rows.labels, rows.ids)
        removal = loaded.remove(wanted)
        loaded.save(file, {"data": data})
    share = removal.rebuilt / loaded.work()
    show({"removed": removal.num_removed, "regrown_share_of_a_fit": share, **_shape(loaded)}, as_json)


@forest.command("score")
def forest_score(file: File, data: ScoreData, trained_on: TrainedOn = None, as_json: Json = False) -> None:
    """How well a forest does on a data set."""
    need_sklearn()
    from erase.classification.forest import Forest, read_forest
    from erase.classification.rows import load_rows

    _, header = read_forest(file)
    rows, asked = load_rows(trained_on or header.get("data", "")), load_rows(data)
    loaded = Forest.load(file, rows.features, rows.labels, rows.ids)
    show({"rows": len(asked), **quality(loaded.predict(asked.features), asked.labels, loaded.classes_)}, as_json)


@forest.command("status")
def forest_status(file: File, as_json: Json = False) -> None:
    """Show what a file holds."""
    need_sklearn()
    import numpy as np

    from erase.classification.forest import read_forest
    from erase.reading import parse_json

    arrays, header = read_forest(file)
    figures: dict[str, Any] = {
        "data": header.get("data"),
        "classes": parse_json(header["classes"]),
        **parse_json(header["parameters"]),
    }
    show(figures | {"rows": len(np.unique(arrays["ids"])), "nodes": len(arrays["feature"])}, as_json)


def _shape(grown: "Forest") -> dict[str, int]:
    arrays = grown.arrays()
    return {"rows": int(grown.alive_.sum()), "nodes": len(arrays["feature"])}
