"""`erase linear`, `erase sisa` and `erase forest`: models that rows can be removed from, kept in files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from erase.lock import locked

if TYPE_CHECKING:
    import numpy as np

    from erase.classification.forest import Forest
    from erase.classification.learners import Learner
    from erase.classification.rows import Rows

Config = TypeVar("Config", bound=BaseModel)

linear = typer.Typer(
    help="Linear models with certified removal (Guo et al., 2020). `fit`'s file is secret: hand out what `export` writes.",
    no_args_is_help=True,
)
sisa = typer.Typer(help="Sharded training with exact removal (SISA, Bourtoule et al., 2021).", no_args_is_help=True)
forest = typer.Typer(help="Random forests with exact removal (DaRE, Brophy & Lowd, 2021).", no_args_is_help=True)

Data = Annotated[
    str, typer.Option("--data", help="`digits`, `breast_cancer` or FILE.npz, optionally with classes: `digits:3,8`.")
]
SameData = Annotated[str | None, typer.Option("--data", help="The data, if it has moved since `fit`.")]
ScoreData = Annotated[str, typer.Option("--data", help="Rows to score the model on, in the forms that `fit` takes.")]
TrainedOn = Annotated[str | None, typer.Option("--trained-on", help="The training data, if it has moved since `fit`.")]
Ids = Annotated[str, typer.Option("--ids", help="Rows to remove, e.g. `17,42,100-120`.")]
File = Annotated[Path, typer.Argument(help="File of the model, written by `fit`.")]
Folder = Annotated[Path, typer.Argument(help="Folder of the model, written by `fit`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Workers = Annotated[int, typer.Option(help="Processes that train shards in parallel.", min=1)]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]


class Loss(StrEnum):
    """The losses of `erase linear`."""

    logistic = "logistic"
    squared = "squared"


class Bound(StrEnum):
    """The bounds of `erase linear`."""

    elementwise = "elementwise"
    corollary = "corollary"
    paper = "paper"
    worst = "worst"


class Model(StrEnum):
    """What a shard trains."""

    mlp = "mlp"
    tree = "tree"


@linear.command("fit")
def linear_fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="File to write. Keep it secret: it tells of removed rows.")] = Path(
        "runs/linear.safetensors"
    ),
    loss: Annotated[Loss, typer.Option(help="`squared` removes exactly, `logistic` within the guarantee.")] = Loss.logistic,
    lam: Annotated[float, typer.Option(help="L2 regularisation.")] = 0.01,
    sigma: Annotated[
        float,
        typer.Option(help="Scale of the perturbation; a larger one allows more removals and costs accuracy."),
    ] = 1.0,
    epsilon: Annotated[float, typer.Option(help="Guarantee: likelihood ratios within exp(+-epsilon).")] = 1.0,
    delta: Annotated[float, typer.Option(help="Probability that the ratio is exceeded.")] = 1e-4,
    bound: Annotated[Bound, typer.Option(help="The bound charged to the budget.")] = Bound.elementwise,
    scale: Annotated[
        float | None,
        typer.Option(help="Divide all rows by this constant. Default: rows with a norm above 1 are scaled to norm 1."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a removable linear model. Its file is secret: hand out what `erase linear export` makes of it."""
    from erase.classification.certified import LinearConfig, RemovableLinear
    from erase.classification.rows import load_rows

    given = {"loss": loss.value, "lam": lam, "sigma": sigma, "epsilon": epsilon, "delta": delta, "bound": bound.value}
    config = _config(LinearConfig, given)
    with _held(out, new=True):
        rows = _scaled(load_rows(data), scale, notice=True)
        model = RemovableLinear(config).fit(rows)
        model.save(out, {"data": data, "scale": "" if scale is None else repr(scale)})
    figures: dict[str, Any] = {"out": str(out), "rows": len(rows)}
    figures |= _quality(model.predict(rows.features), rows.labels, model.classes, "_on_its_rows")
    _print(figures | {"spent": model.spent, "budget": config.budget}, as_json)


@linear.command("remove")
def linear_remove(
    file: File,
    ids: Ids,
    data: SameData = None,
    batch: Annotated[int, typer.Option(help="Rows per Newton step; the charge grows with its square.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Remove rows; once the budget is spent, retrain with a fresh perturbation."""
    from erase.classification.certified import RemovableLinear, read_linear
    from erase.classification.rows import load_rows, parse_ids, positions_to_remove

    wanted = parse_ids(ids)
    with _held(file):
        _, header = read_linear(file)
        data = data or header.get("data", "")
        model = RemovableLinear.load(file, _scaled(load_rows(data), _scale_in(header, file), notice=False))
        positions_to_remove(model.rows.ids, wanted)
        done = [model.remove(wanted[first : first + batch]) for first in range(0, len(wanted), batch)]
        model.save(file, {"data": data, "scale": header.get("scale", "")})
    figures: dict[str, Any] = {
        "removed": len(wanted),
        "rows": len(model.rows),
        "trained_anew": sum(removal.retrained for removal in done),
    }
    figures |= _quality(model.predict(model.rows.features), model.rows.labels, model.classes, "_on_its_rows")
    _print(figures | {"spent": model.spent, "budget": model.config.budget}, as_json)


@linear.command("export")
def linear_export(
    file: File,
    out: Annotated[Path, typer.Option(help="The file to write: weights, classes and settings, nothing of the rows.")],
    as_json: Json = False,
) -> None:
    """Write what may be handed out: the model's own file holds its account and ids, which tell of removed rows."""
    from erase.classification.certified import export_linear

    export_linear(file, out)
    _print({"out": str(out)}, as_json)


@linear.command("score")
def linear_score(file: File, data: ScoreData, as_json: Json = False) -> None:
    """How well a model, or an export of one, does on a data set."""
    from erase.classification.certified import predictions, read_weights
    from erase.classification.rows import load_rows

    weights, classes, header = read_weights(file)
    rows = _scaled(load_rows(data), _scale_in(header, file), notice=False)
    _print({"rows": len(rows), **_quality(predictions(weights, classes, rows.features), rows.labels, classes)}, as_json)


def linear_audit(before: Path, after: Path, data: str | None, as_json: bool) -> None:
    """What two versions of one linear model reveal together (`erase audit BEFORE AFTER` on their files)."""
    from erase.classification.audit import audit_linear
    from erase.classification.certified import RemovableLinear, read_linear
    from erase.classification.rows import load_rows

    _, header = read_linear(before)
    rows = _scaled(load_rows(data or header.get("data", "")), _scale_in(header, before), notice=False)
    result = audit_linear(RemovableLinear.load(before, rows), RemovableLinear.load(after, rows), rows)
    typer.echo(f"erase: {result.pop('warning')}", err=True)
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo("rows that the difference of the two versions points at (|cosine|, 1 is certain):")
    for row, likeness in result["suspects"]:
        typer.echo(f"  row {row:<8} {likeness:.6f}{'  removed' if row in result['removed'] else ''}")
    typer.echo(f"of the {len(result['removed'])} removed rows, the highest ranked is number {result['rank_of_removed']}.")


@linear.command("status")
def linear_status(file: File, as_json: Json = False) -> None:
    """Show what a model guarantees and how much of its budget is spent."""
    from erase.classification.certified import config_in, read_linear

    arrays, header = read_linear(file)
    config = config_in(header, file)
    figures: dict[str, Any] = {
        "data": header.get("data"),
        "rows": len(arrays["ids"]),
        "heads": len(arrays["weights"]),
        **config.model_dump(),
    }
    _print(figures | {"spent": float(header["spent"]), "budget": config.budget}, as_json)


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

    config = _config(SISAConfig, {"shards": shards, "slices": slices, "epochs": epochs, "seed": seed})
    rows = load_rows(data)
    trained = SISA(out, _learner(model.value), config, workers)
    cost = trained.fit(rows, {"data": data})
    figures: dict[str, Any] = {"out": str(out), "rows": len(rows)}
    figures |= _quality(trained.predict(rows.features), rows.labels, trained.classes, "_on_its_rows")
    _print(figures | {"sample_steps": cost.sample_steps}, as_json)


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
    _print(figures | {"expected_of_full_at_most": share}, as_json)


@sisa.command("score")
def sisa_score(folder: Folder, data: ScoreData, trained_on: TrainedOn = None, as_json: Json = False) -> None:
    """How well a model does on a data set, by the mean of its shards."""
    from erase.classification.rows import load_rows
    from erase.classification.sisa import SISA, read_manifest

    manifest = read_manifest(folder)
    rows = load_rows(trained_on or manifest["provenance"].get("data", ""))
    opened, asked = SISA.open(folder, _learner(manifest["learner"]), rows), load_rows(data)
    _print({"rows": len(asked), **_quality(opened.predict(asked.features), asked.labels, opened.classes)}, as_json)


@sisa.command("status")
def sisa_status(folder: Folder, as_json: Json = False) -> None:
    """Show what a folder holds."""
    from erase.classification.sisa import read_manifest

    manifest = read_manifest(folder)
    sizes = [sum(map(len, shard)) for shard in manifest["slices"]]
    figures: dict[str, Any] = {"data": manifest["provenance"].get("data"), "model": manifest["learner"], **manifest["config"]}
    _print(figures | {"rows": sum(sizes), "rows_by_shard": sizes, "checkpoints": sum(map(len, manifest["files"]))}, as_json)


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
    _need_sklearn()
    from erase.classification.forest import Forest
    from erase.classification.rows import class_labels, load_rows

    with _held(out, new=True):
        rows = load_rows(data)
        grown = Forest(trees, max_depth=max_depth, n_thresholds=thresholds, random_depth=random_depth, seed=seed)
        grown.fit(rows.features, class_labels(rows), rows.ids)
        grown.save(out, {"data": data})
    _print({"out": str(out), "accuracy_on_its_rows": grown.score(rows.features, rows.labels), **_shape(grown)}, as_json)


@forest.command("remove")
def forest_remove(file: File, ids: Ids, data: SameData = None, as_json: Json = False) -> None:
    """Remove rows: the forest becomes the one that `fit` would make without them."""
    _need_sklearn()
    from erase.classification.forest import Forest, read_forest
    from erase.classification.rows import load_rows, parse_ids

    wanted = parse_ids(ids)
    with _held(file):
        _, header = read_forest(file)
        data = data or header.get("data", "")
        rows = load_rows(data)
        loaded = Forest.load(file, rows.features, rows.labels, rows.ids)
        removal = loaded.remove(wanted)
        loaded.save(file, {"data": data})
    share = removal.rebuilt / loaded.work()
    _print({"removed": removal.num_removed, "regrown_share_of_a_fit": share, **_shape(loaded)}, as_json)


@forest.command("score")
def forest_score(file: File, data: ScoreData, trained_on: TrainedOn = None, as_json: Json = False) -> None:
    """How well a forest does on a data set."""
    _need_sklearn()
    from erase.classification.forest import Forest, read_forest
    from erase.classification.rows import load_rows

    _, header = read_forest(file)
    rows, asked = load_rows(trained_on or header.get("data", "")), load_rows(data)
    loaded = Forest.load(file, rows.features, rows.labels, rows.ids)
    _print({"rows": len(asked), **_quality(loaded.predict(asked.features), asked.labels, loaded.classes_)}, as_json)


@forest.command("status")
def forest_status(file: File, as_json: Json = False) -> None:
    """Show what a file holds."""
    _need_sklearn()
    import numpy as np

    from erase.classification.forest import read_forest

    arrays, header = read_forest(file)
    figures: dict[str, Any] = {
        "data": header.get("data"),
        "classes": json.loads(header["classes"]),
        **json.loads(header["parameters"]),
    }
    _print(figures | {"rows": len(np.unique(arrays["ids"])), "nodes": len(arrays["feature"])}, as_json)


def _shape(grown: "Forest") -> dict[str, int]:
    arrays = grown.arrays()
    return {"rows": int(grown.alive_.sum()), "nodes": len(arrays["feature"])}


def _scaled(rows: "Rows", scale: float | None, notice: bool) -> "Rows":
    """Rows divided by a constant, or each long one by its own norm: never by anything that other rows have a part in."""
    import numpy as np

    from erase.classification.rows import Rows

    if scale is not None:
        if not 0 < scale < float("inf"):
            raise ValueError(f"--scale is {scale}; it must be above 0.")
        return Rows(rows.features / scale, rows.labels, rows.ids)
    norms = np.linalg.norm(rows.features, axis=1, keepdims=True)
    if notice and (norms > 1).any():
        typer.echo(
            f"note: {int((norms > 1).sum())} rows have a norm above 1 and are divided by it (--scale divides all).", err=True
        )
    return Rows(rows.features / np.maximum(norms, 1), rows.labels, rows.ids)


def _learner(name: str) -> "Learner":
    from erase.classification.learners import SklearnLearner, TorchLearner

    if name == Model.tree.value:
        _need_sklearn()
        return SklearnLearner()
    if name != Model.mlp.value:
        raise ValueError(f"the model's learner is {name!r}, made in Python; the command line knows only mlp and tree.")
    return TorchLearner()


def _config(kind: type[Config], given: dict[str, Any]) -> Config:
    """The configuration, its first mistake as one sentence."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"--{first['loc'][0]} is {first['input']}: " if first["loc"] else ""
        raise ValueError(f"{name}{first['msg'].removeprefix('Value error, ')}.") from error


def _need_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ValueError("this needs scikit-learn: pip install 'erase-concepts[classifier]'.") from error


@contextmanager
def _held(file: Path, new: bool = False) -> Iterator[None]:
    """The file for this process alone, from load to save; the other files of its folder stay free."""
    from erase.files import require_new

    if new:
        require_new(file)
    elif not file.is_file():
        raise ValueError(f"there is no file {file}: give the one that `fit` wrote.")
    with locked(file.parent / f".{file.name}.lock"):
        if new:  # another process may have written it before the lock was taken
            require_new(file)
        yield


def _scale_in(header: dict[str, str], file: Path) -> float | None:
    """What a model's rows are divided by; none: long rows are cut."""
    try:
        return float(header["scale"]) if header.get("scale") else None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: its scale is {header['scale']!r}.") from error


def _quality(predicted: "np.ndarray", labels: "np.ndarray", classes: "np.ndarray", suffix: str = "") -> dict[str, float]:
    """Accuracy; for real targets (no classes) R2 and the root of the mean squared error."""
    if len(classes):
        return {f"accuracy{suffix}": float((predicted == labels).mean())}
    squares, spread = ((predicted - labels) ** 2).mean(), labels.var()
    figures = {f"r2{suffix}": float(1 - squares / spread)} if spread else {}
    return figures | {f"rmse{suffix}": float(squares**0.5)}


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
