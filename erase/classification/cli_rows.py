"""What `erase linear`, `erase sisa` and `erase forest` share: models that rows can be removed from, kept in files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from erase.lock import locked

if TYPE_CHECKING:
    import numpy as np

Config = TypeVar("Config", bound=BaseModel)

Data = Annotated[
    str, typer.Option("--data", help="`digits`, `breast_cancer` or FILE.npz, optionally with classes: `digits:3,8`.")
]
SameData = Annotated[str | None, typer.Option("--data", help="The data, if it has moved since `fit`.")]
ScoreData = Annotated[str, typer.Option("--data", help="Rows to score the model on, in the forms that `fit` takes.")]
TrainedOn = Annotated[str | None, typer.Option("--trained-on", help="The training data, if it has moved since `fit`.")]
Ids = Annotated[str, typer.Option("--ids", help="Rows to remove, e.g. `17,42,100-120`.")]
File = Annotated[Path, typer.Argument(help="File of the model, written by `fit`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]


def config_of(kind: type[Config], given: dict[str, Any]) -> Config:
    """The configuration, its first mistake as one sentence."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"--{first['loc'][0]} is {first['input']}: " if first["loc"] else ""
        raise ValueError(f"{name}{first['msg'].removeprefix('Value error, ')}.") from error


def need_sklearn() -> None:
    """Raise ValueError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ValueError("this needs scikit-learn: pip install 'erase-concepts[classifier]'.") from error


@contextmanager
def held(file: Path, new: bool = False) -> Iterator[None]:
    """The file for this process alone, from load to save; the other files of its folder stay free.

    What a killed process had half written goes first: it is a model of rows that may have been removed since.
    """
    from erase.files import remove_unfinished_of, require_new

    if new:
        require_new(file)
    elif not file.is_file():
        raise ValueError(f"there is no file {file}: give the one that `fit` wrote.")
    with locked(file.parent / f".{file.name}.lock"):
        if new:  # another process may have written it before the lock was taken
            require_new(file)
        remove_unfinished_of(file)
        yield


def quality(predicted: "np.ndarray", labels: "np.ndarray", classes: "np.ndarray", suffix: str = "") -> dict[str, float]:
    """Accuracy; for real targets (no classes) R2 and the root of the mean squared error."""
    if len(classes):
        return {f"accuracy{suffix}": float((predicted == labels).mean())}
    squares, spread = ((predicted - labels) ** 2).mean(), labels.var()
    figures = {f"r2{suffix}": float(1 - squares / spread)} if spread else {}
    return figures | {f"rmse{suffix}": float(squares**0.5)}


def show(figures: dict[str, Any], as_json: bool) -> None:
    """Print the figures, a line each or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(figures))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
