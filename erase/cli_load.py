"""How the commands that come after a run load its base: as the run did, or as is said anew."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from erase.config import LoadConfig

Device = Annotated[
    str | None,
    typer.Option("--device", help="Where to compute: auto, cpu, cuda, cuda:1, ... (auto; eval and audit: as the run did)."),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", help="Which weights of the base, or of a model alone, as in fp16 (a run knows)."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the same, where it is a hub id (a run knows).")
]
CacheDir = Annotated[str | None, typer.Option("--cache-dir", help="Where downloaded models are kept (a run knows).")]


def given(**options: str | None) -> "LoadConfig":
    """A config in which only what was given is set."""
    from erase.config import LoadConfig

    return LoadConfig.model_validate({name: value for name, value in options.items() if value is not None})
