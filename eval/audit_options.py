"""What was asked of an audit beside the model: options, the probes' settings, and whether what they name is there."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from erase.config import override
from erase.methods.base import Config
from erase.retrained import check_retrained
from eval.attacks import PROBES
from eval.attacks.base import Role
from eval.audit_limits import Limits
from eval.audit_scene import QUICK, SceneConfig
from eval.audit_subject import Subject, loading, path_of
from eval.networks import RESNET, checkpoint
from eval.packs import read_pack
from eval.targets import batch_size_for, is_full_size, require_model

NAMES = ("mask", *PROBES, "collapse", "kept")
AT_ONCE = ("scene.batch_size", *(f"{name}.rows_at_once" for name in PROBES))
"""Settings of how much is done at a time, for memory and speed alone."""


class AuditOptions(Config):
    """What `erase audit` was asked for, beside the model."""

    only: tuple[str, ...] = ()
    """The probes to run, or `all`; none: all that do not erase once more."""
    quick: bool = False
    """Few tries of each: to try the command out, not to release by."""
    settings: tuple[str, ...] = ()
    """Changed settings, as `prompts.tries=5` or `scene.num_forget=24`."""
    cache: bool = True
    """Whether what was done before may be taken, from the user's cache and from the audit's folder."""
    classifier: Path | None = None
    """ResNet-50 weights, for Imagenette's classes."""
    beside: bool = False
    """Whether the base may be attacked in a process of its own, where that is faster; not without `cache`."""


def scene_for(settings: SceneConfig, subject: Subject, denoiser: nn.Module) -> SceneConfig:
    """The scene's settings with the number of pictures that the denoiser draws at a time, where nobody has set it."""
    if "batch_size" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"batch_size": batch_size_for(denoiser, subject.config)})


def sized(settings: dict[str, Any], subject: Subject, denoiser: nn.Module) -> dict[str, Any]:
    """The settings of scene and probes with what the denoiser's size decides, where nobody has set it."""
    scene = {"scene": scene_for(settings["scene"], subject, denoiser)}
    return (at_full_size(settings) if is_full_size(denoiser) else settings) | scene


def at_full_size(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the probes' defaults for full-size models, where nobody has set another value."""
    found = dict(settings)
    for name, probe in PROBES.items():
        more = {key: value for key, value in probe.full_size.items() if key not in settings[name].model_fields_set}
        found[name] = settings[name].model_copy(update=more)
    return found


def asked_for(options: AuditOptions, limits: Limits) -> tuple[str, ...]:
    """The probes to run: without --only all that do not erase once more, and of those that do what the gate requires.

    Raises ValueError for a name that is none.
    """
    if strange := [name for name in options.only if name not in (*NAMES, "all")]:
        raise ValueError(f"--only names {strange[0]!r}; there are {', '.join(NAMES)}, and all.")
    if options.only:
        return tuple(name for name in NAMES if name in options.only or "all" in options.only)
    return tuple(name for name in NAMES if name not in PROBES or not PROBES[name].erases or name in limits.require)


def changes(options: AuditOptions, limits: Limits, full_size: bool = False) -> tuple[str, ...]:
    """What was asked for otherwise than by default (with --quick than its own), each with that; files by their names alone.

    `full_size`: whether the defaults are those for full-size models. What changes no figure (`AT_ONCE`) is left out.
    """
    settings, usual = probe_settings(options), probe_settings(AuditOptions(quick=options.quick))
    if full_size:
        settings, usual = at_full_size(settings), at_full_size(usual)
    usual["gate"] = Limits()
    found = []
    for name, config in {**settings, "gate": limits}.items():
        before = usual[name].model_dump(mode="json")
        for key, value in config.model_dump(mode="json").items():
            shown = [Path(one).name for one in value] if key == "packs" else value
            if value != before[key] and f"{name}.{key}" not in AT_ONCE:
                found.append(f"{name}.{key} {_plain(shown)} (default {_plain(before[key])})")
    return tuple(found)


def _plain(value: Any) -> str:
    """A setting as it is written in YAML, lists without brackets."""
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value).lower()


def probe_settings(options: AuditOptions) -> dict[str, Any]:
    """The settings of the scene and of every probe, with --quick and --set put in; raises ValueError for unknown ones."""
    kinds: dict[str, tuple[type[Any], dict[str, Any]]] = {"scene": (SceneConfig, QUICK)}
    kinds |= {name: (probe.config, probe.quick) for name, probe in PROBES.items()}
    given = override({}, list(options.settings))
    if strange := [name for name in given if name not in kinds]:
        raise ValueError(f"--set {strange[0]}: there is no such probe (known: {', '.join(kinds)}).")
    found = {}
    for name, (kind, quick) in kinds.items():
        own = given.get(name, {})
        if not isinstance(own, dict):
            raise ValueError(f"--set {name}={own}: name one of its settings, as in {name}.{next(iter(kind.model_fields))}=...")
        try:
            found[name] = kind.model_validate((quick if options.quick else {}) | own)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (name, *first["loc"])))
            known = f" (known: {', '.join(kind.model_fields)})" if first["type"] == "extra_forbidden" else ""
            raise ValueError(
                f"--set {where}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}{known}."
            ) from error
    return found


def require_inputs(subject: Subject, options: AuditOptions, packs: tuple[str, ...]) -> None:
    """Raise ValueError for a model, a prompt list or weights that are not there or are none, and for a --retrain that is none.

    Headers and lists are read, nothing is loaded or drawn.
    """
    if options.classifier:
        checkpoint(RESNET, options.classifier, "ResNet-50", "--classifier")
    for pack in packs:
        read_pack(Path(pack), steps=1, guidance=1.0, seed=0)
    if subject.retrain:
        try:
            path = require_model(path_of(subject, "retrain"), loading(subject, "retrain"))
            for concept in subject.config.concepts if subject.config else ():
                check_retrained(path, concept)
        except ValueError as error:
            raise ValueError(f"--retrain: {error}") from error
    roles: tuple[Role, ...] = ("base", "model")
    for role in roles:
        require_model(path_of(subject, role), loading(subject, role))
