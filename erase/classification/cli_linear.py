"""`erase linear`: linear models with certified removal."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erase.classification.cli_rows import Data, File, Ids, Json, SameData, ScoreData, config_of, held, quality, show

if TYPE_CHECKING:
    from erase.classification.rows import Rows

linear = typer.Typer(
    help="Linear models with certified removal (Guo et al., 2020). `fit`'s file is secret: hand out what `export` writes.",
    no_args_is_help=True,
)


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
    from erase.classification.certified import RemovableLinear
    from erase.classification.guarantee import LinearConfig
    from erase.classification.rows import load_rows

    given = {"loss": loss.value, "lam": lam, "sigma": sigma, "epsilon": epsilon, "delta": delta, "bound": bound.value}
    config = config_of(LinearConfig, given)
    with held(out, new=True):
        rows = _scaled(load_rows(data), scale, notice=True)
        model = RemovableLinear(config).fit(rows)
        model.save(out, {"data": data, "scale": "" if scale is None else repr(scale)})
    figures: dict[str, Any] = {"out": str(out), "rows": len(rows)}
    figures |= quality(model.predict(rows.features), rows.labels, model.classes, "_on_its_rows")
    show(figures | {"spent": model.spent, "budget": config.budget}, as_json)


@linear.command("remove")
def linear_remove(
    file: File,
    ids: Ids,
    data: SameData = None,
    batch: Annotated[int, typer.Option(help="Rows per Newton step; the charge grows with its square.", min=1)] = 1,
    anew: Annotated[bool, typer.Option("--anew", help="Train anew, whatever is left of the budget.")] = False,
    as_json: Json = False,
) -> None:
    """Remove rows; once the budget is spent, retrain with a fresh perturbation."""
    from erase.classification.certified import RemovableLinear, read_linear
    from erase.classification.rows import load_rows, parse_ids, positions_to_remove

    wanted = parse_ids(ids)
    with held(file):
        _, header = read_linear(file)
        data = data or header.get("data", "")
        model = RemovableLinear.load(file, _scaled(load_rows(data), _scale_in(header, file), notice=False))
        positions_to_remove(model.rows.ids, wanted)
        parts = [wanted] if anew else [wanted[first : first + batch] for first in range(0, len(wanted), batch)]
        done = [model.remove(part, anew) for part in parts]
        model.save(file, {"data": data, "scale": header.get("scale", "")})
    figures: dict[str, Any] = {
        "removed": len(wanted),
        "rows": len(model.rows),
        "trained_anew": sum(removal.retrained for removal in done),
    }
    figures |= quality(model.predict(model.rows.features), model.rows.labels, model.classes, "_on_its_rows")
    show(figures | {"spent": model.spent, "budget": model.config.budget}, as_json)


@linear.command("export")
def linear_export(
    file: File,
    out: Annotated[Path, typer.Option(help="The file to write: weights, classes and settings, nothing of the rows.")],
    as_json: Json = False,
) -> None:
    """Write what may be handed out: the model's own file holds its account and ids, which tell of removed rows."""
    from erase.classification.certified import export_linear

    export_linear(file, out)
    show({"out": str(out)}, as_json)


@linear.command("score")
def linear_score(file: File, data: ScoreData, as_json: Json = False) -> None:
    """How well a model, or an export of one, does on a data set."""
    from erase.classification.certified import predictions, read_weights
    from erase.classification.rows import load_rows

    weights, classes, header = read_weights(file)
    rows = _scaled(load_rows(data), _scale_in(header, file), notice=False)
    show({"rows": len(rows), **quality(predictions(weights, classes, rows.features), rows.labels, classes)}, as_json)


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
    show(figures | {"spent": float(header["spent"]), "budget": config.budget}, as_json)


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


def _scale_in(header: dict[str, str], file: Path) -> float | None:
    """What a model's rows are divided by; none: long rows are cut."""
    try:
        return float(header["scale"]) if header.get("scale") else None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: its scale is {header['scale']!r}.") from error
