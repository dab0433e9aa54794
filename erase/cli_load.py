"""How models are loaded, as options: of a new run, and of the commands after it, which load its base as it did."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from erase.config import LoadConfig

Dtype = Annotated[
    str | None, typer.Option("--dtype", help="Dtype of the denoiser: float32, bfloat16 or float16. Default: float32.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="Device to compute on: auto, cpu, cuda, cuda:1, ... Default: auto.")
]
RunDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Device to compute on: auto, cpu, cuda, cuda:1, ... Default: the one recorded in the run, else auto.",
    ),
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Weight variant to load, e.g. fp16. Default: the one recorded in the run.")
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        help="Branch, tag or commit of the model on the Hub; for a run, of its base. Default: the one recorded in the run.",
    ),
]
CacheDir = Annotated[
    str | None, typer.Option("--cache-dir", help="Folder for downloaded models. Default: the one recorded in the run.")
]
ModelConfig = Annotated[
    str | None,
    typer.Option(
        "--model-config",
        help="Folder or Hub id of a model of the same kind, for the tokenizer and the configs that a single file lacks. "
        "Default: the one recorded in the run, else the model that all of its kind share them with.",
    ),
]


def given(**options: str | None) -> "LoadConfig":
    """A config in which only what was given is set."""
    from erase.config import LoadConfig

    return LoadConfig.model_validate({name: value for name, value in options.items() if value is not None})
