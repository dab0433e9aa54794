"""`erase sisa`: sharded training with exact removal."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erase.classification.cli_rows import (
    Data,
    Ids,
    Json,
    SameData,
    ScoreData,
    Seed,
    TrainedOn,
    config_of,
    need_sklearn,
    quality,
    show,
)

if TYPE_CHECKING:
    from erase.classification.learners import Learner

sisa = typer.Typer(help="Sharded training with exact removal (SISA, Bourtoule et al., 2021).", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the model, written by `fit`.")]
Workers = Annotated[int, typer.Option(help="Processes that train shards in parallel.", min=1)]


class Model(StrEnum):
    """What a shard trains."""

    mlp = "mlp"
    tree = "tree"


@sisa.command("fit")
def sisa_fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/sisa"),
    model: Annotated[Model, typer.Option(help="`mlp` (PyTorch) or `tree` (scikit-learn; one slice).")] = Model.mlp,
    shards: Annotated[int, typer.Option(help="S: number of models, each trained on its own rows.")] = 5,
    slices: Annotated[int, typer.Option(help="R: checkpoints per shard.")] = 1,
    epochs: Annotated[int, typer.Option(help="Training epochs per shard.")] = 16,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Train a SISA model."""
    from erase.classification.rows import load_rows
    from erase.classification.sisa import SISA, SISAConfig

    config = config_of(SISAConfig, {"shards": shards, "slices": slices, "epochs": epochs, "seed": seed})
    rows = load_rows(data)
    trained = SISA(out, _learner(model.value), config, workers)
    cost = trained.fit(rows, {"data": data})
    figures: dict[str, Any] = {"out": str(out), "rows": len(rows)}
    figures |= quality(trained.predict(rows.features), rows.labels, trained.classes, "_on_its_rows")
    show(figures | {"sample_steps": cost.sample_steps}, as_json)


@sisa.command("remove")
def sisa_remove(folder: Folder, ids: Ids, data: SameData = None, workers: Workers = 1, as_json: Json = False) -> None:
    """Remove rows: retrain their shards from the slice before; print the measured cost beside the expected one."""
    from erase.classification.rows import load_rows, parse_ids
    from erase.classification.sisa import SISA, expected_batch, read_manifest, slicing_fraction

    manifest = read_manifest(folder)
    data = data or manifest["provenance"].get("data", "")
    opened = SISA.open(folder, _learner(manifest["learner"]), load_rows(data), workers)
    before, wanted = len(opened.rows), parse_ids(ids)
    cost = opened.remove(wanted, {"data": data})
    share = expected_batch(before, opened.config.shards, len(wanted)) / (before - len(wanted))
    figures: dict[str, Any] = {"removed": len(wanted), "rows": len(opened.rows), "shards_trained": len(cost.shards)}
    figures |= {"sample_steps": cost.sample_steps, "of_full": cost.sample_steps / cost.full_steps}
    if len(wanted) == 1:
        share *= slicing_fraction(opened.config.slices)
    show(figures | {"expected_of_full_at_most": share}, as_json)


@sisa.command("score")
def sisa_score(folder: Folder, data: ScoreData, trained_on: TrainedOn = None, as_json: Json = False) -> None:
    """How well a model does on a data set, by the mean of its shards."""
    from erase.classification.rows import load_rows
    from erase.classification.sisa import SISA, read_manifest

    manifest = read_manifest(folder)
    rows = load_rows(trained_on or manifest["provenance"].get("data", ""))
    opened, asked = SISA.open(folder, _learner(manifest["learner"]), rows), load_rows(data)
    show({"rows": len(asked), **quality(opened.predict(asked.features), asked.labels, opened.classes)}, as_json)


@sisa.command("status")
def sisa_status(folder: Folder, as_json: Json = False) -> None:
    """Show what a folder holds."""
    from erase.classification.sisa import read_manifest

    manifest = read_manifest(folder)
    sizes = [sum(map(len, shard)) for shard in manifest["slices"]]
    figures: dict[str, Any] = {"data": manifest["provenance"].get("data"), "model": manifest["learner"], **manifest["config"]}
    show(figures | {"rows": sum(sizes), "rows_by_shard": sizes, "checkpoints": sum(map(len, manifest["files"]))}, as_json)


def _learner(name: str) -> "Learner":
    from erase.classification.learners import SklearnLearner, TorchLearner

    if name == Model.tree.value:
        need_sklearn()
        return SklearnLearner()
    if name != Model.mlp.value:
        raise ValueError(f"the model's learner is {name!r}, made in Python; the command line knows only mlp and tree.")
    return TorchLearner()
