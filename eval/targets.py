"""The models that are measured: what a name stands for, whether it is there, how it is loaded, how much it draws at a time."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from erase.config import LoadConfig, RunConfig
from erase.folder import config_of, is_run, model_of, require_intact
from eval.pictures import Picture
from pipelines.check import check_folder, check_single_file
from pipelines.load import made_from_emoji, model_path

FULL_SIZE = 100_000_000  # weights of a denoiser above which pictures fill the memory, and few are drawn at a time


@dataclass(frozen=True)
class ModelReference:
    """What a name on the command line stands for: a model, a run (its model and what it erased), or a folder of pictures."""

    name: str
    model: str | None
    pictures: Path | None = None
    run: Path | None = None
    load: LoadConfig | None = None
    taken: tuple[Picture, ...] = ()
    """Of a folder of pictures those that are measured, one for each request."""


def find_target(name: str) -> ModelReference:
    """What the name stands for; raises ValueError if a folder is none of the three."""
    path = Path(name)
    if not path.is_dir() or (path / "model_index.json").is_file():
        return ModelReference(name if not path.is_dir() else path.name, name)
    if is_run(path):
        model = model_of(name)
        require_intact(path / "model")
        return ModelReference(path.name, model, run=path)
    return ModelReference(path.name, None, pictures=path)


def find_sides(target: str, baseline: str | None, load: LoadConfig) -> tuple[ModelReference, ModelReference | None]:
    """The target, and the base it is held against: the given one, else the model that the run was made from, else none.

    Both in the dtype of `load`. The base is loaded as the run loaded it, with what `load` sets put over that; the target, if it
    has a base, has weights and a revision of its own.
    """
    subject, own = find_target(target), LoadConfig()
    config = config_of(subject.run) if subject.run else None
    if config and baseline in (None, config.model):
        base: ModelReference | None = ModelReference(config.model, config.model)
        own = config.load
    else:
        base = find_target(baseline) if baseline else None
        own = LoadConfig(device=config.load.device) if config else own
    given = own.model_copy(update=load.model_dump(exclude_unset=True) | {"dtype": load.dtype})
    plain = LoadConfig(device=given.device, cache_dir=given.cache_dir, dtype=given.dtype, config=given.config)
    if base is None:
        return replace(subject, load=given), None
    return replace(subject, load=plain), replace(base, load=plain if base.run else given)


def require_model(model: str, load: LoadConfig | None) -> Path:
    """Where the model lies; raises ValueError if it is not there or none. Headers are read, nothing is loaded."""
    path = model_path(model, load)
    if path.is_dir():
        check_folder(path, load.variant if load else None)
    else:
        check_single_file(path)
    return path


def require_sides(suite: str, *sides: ModelReference | None) -> None:
    """Raise ValueError, before anything is drawn, for a model that is not there or that the suite is not for."""
    for one in sides:
        if one is None or one.model is None:
            continue
        path = require_model(one.model, one.load)
        if suite == "emoji" and not made_from_emoji(str(path)):
            raise ValueError(
                f"{one.name} is not made from the embedded model, and the emoji suite's judge knows only its drawings: give "
                "--suite imagenette (its ten classes), --suite i2p (nudity), or --suite prompts with --prompts CSV (any list)."
            )


def concepts_of(subject: ModelReference) -> tuple[str, ...]:
    """What the run erased; nothing for a model of unknown making."""
    return config_of(subject.run).concepts if subject.run else ()


def is_full_size(denoiser: nn.Module) -> bool:
    """Whether the denoiser has the size of a Stable Diffusion: its pictures and activations fill the memory."""
    return sum(weights.numel() for weights in denoiser.parameters()) > FULL_SIZE


def batch_size_for(denoiser: nn.Module, config: RunConfig | None) -> int:
    """Pictures drawn at a time where nobody says it: 48; by a denoiser of full size what its run's config says, or 4."""
    if not is_full_size(denoiser):
        return 48
    return config.evaluation.batch_size if config else 4
