"""The erase form, generated from the config: one field for each setting, labelled by the config's own sentences."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from erase.app.guard import Limits, whole

MAIN = (
    "saliency.density",
    "train.steps",
    "train.learning_rate",
    "data.num_forget",
    "data.num_retain",
    "data.num_anchor",
    "evaluation.num_forget",
    "seed",
)


@dataclass(frozen=True)
class Setting:
    """One setting of a run: its dotted key, what the config says of it, its kind and its range."""

    key: str
    label: str
    info: str
    kind: Literal["int", "float", "bool", "choice", "text"]
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


def main_settings() -> list[Setting]:
    """The settings that most runs change."""
    from erase.config import RunConfig

    found = []
    for key in MAIN:
        level: Any = RunConfig
        *parents, last = key.split(".")
        for parent in parents:
            level = level.model_fields[parent].annotation
        setting = _setting(key, level.model_fields[last])
        assert setting is not None, key
        found.append(setting)
    return found


def method_settings() -> dict[str, list[Setting]]:
    """Every method's own settings, by the method's name."""
    found: dict[str, list[Setting]] = {}
    for config in method_configs():
        fields = {name: info for name, info in config.model_fields.items() if name != "name"}
        settings = [_setting(f"method.{name}", info) for name, info in fields.items()]
        found[config.model_fields["name"].default] = [setting for setting in settings if setting]
    return found


def method_configs() -> list[Any]:
    """The config class of each method, whether there is one or a union of several."""
    from erase.methods import MethodConfig

    kind: Any = MethodConfig
    if hasattr(kind, "model_fields"):
        return [kind]
    if hasattr(kind, "__metadata__"):  # Annotated[A | B, Field(discriminator="name")]
        kind = get_args(kind)[0]
    return list(get_args(kind))


def _setting(key: str, info: Any) -> Setting | None:
    """The setting of a field; None for what may be a path, and for kinds that a form has no widget for."""
    kind, choices = _kind(info.annotation)
    if kind is None or key in closed():
        return None
    bounds = {
        name: getattr(entry, name) for entry in info.metadata for name in ("ge", "gt", "le", "lt") if hasattr(entry, name)
    }
    label = key.removeprefix("method.").replace(".", " · ").replace("_", " ").capitalize()
    return Setting(
        key,
        label,
        " ".join((info.description or "").split()).replace("`", ""),
        kind,
        info.get_default(call_default_factory=True),
        bounds.get("ge", bounds.get("gt")),
        bounds.get("le", bounds.get("lt")),
        choices,
    )


def _kind(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    if annotation in (int, float, bool):
        return annotation.__name__, ()
    if get_origin(annotation) is Literal:
        return "choice", tuple(str(choice) for choice in get_args(annotation))
    if annotation is str or (get_origin(annotation) in (UnionType, Union) and str in get_args(annotation)):
        return "text", ()
    return None, ()


def concepts_in(text: Any) -> list[str]:
    """The concepts of the box: one, or several with semicolons between them."""
    names = [" ".join(part.split()) for part in str(text or "").split(";")]
    names = [name for name in names if name]
    if not names:
        raise ValueError("The concept is empty: name what to erase, for example “dog”.")
    return names


def given_for(concept: Any, model: str, load: dict[str, Any]) -> dict[str, Any]:
    """What the command line's options would give for the concept on the model."""
    names = concepts_in(concept)
    given: dict[str, Any] = {"concept": names[0] if len(names) == 1 else names}
    return given | ({} if model == "emoji" else {"model": model}) | {f"load.{key}": value for key, value in load.items()}


def recipe_for(concept: Any, model: str, load: dict[str, Any], method: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the options of the command line that ask for the concept with the method, every value that they resolve to)."""
    from erase.recipes import resolve

    given, known = given_for(concept, model, load), method_settings()
    if not isinstance(method, str) or method not in known:
        raise ValueError(f"There is no method “{str(method)[:80]}” (known: {', '.join(known)}).")
    if method != resolve(given, []).method.name:
        given["method.name"] = method
    return given, resolve(given, []).model_dump(mode="json")


def changed(
    concept: Any,
    model: str,
    load: dict[str, Any],
    method: str,
    values: dict[str, Any],
    limits: Limits,
    filled: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The options of the command line that stand for the form: what differs from the recipe, and nothing else.

    `filled`: the recipe that the form was filled with where that is another one, since a button may be pressed before the form
    has followed what was typed; what nobody changed in it is then the asked one's. None: the asked one.
    """
    from erase.config import at

    given, recipe = recipe_for(concept, model, load, method)
    filled = filled or recipe
    own = method_settings()[method] if filled["method"]["name"] == method else []  # else nobody has seen them yet
    for setting in (*main_settings(), *own):
        value = _value(setting, values.get(setting.key), limits)
        if value is not None and value not in (at(recipe, setting.key), at(filled, setting.key)):
            given[setting.key] = value
    return given


OPEN = ("data.", "saliency.", "method.", "train.", "evaluation.", "prompts.", "seed")
NAMES = ("method.anchor", "prompts.")
"""The only open settings of free text: names of things, and prompts."""


@cache
def closed() -> frozenset[str]:
    """The settings that may be paths, for the page reads none but those named at start: all free text but `NAMES`."""
    from erase.config import RunConfig

    sections: list[tuple[str, Any]] = [("method", config) for config in method_configs()]
    sections += [
        (key, info.annotation) for key, info in RunConfig.model_fields.items() if f"{key}." in OPEN and key != "method"
    ]
    fields = {f"{key}.{name}": field.annotation for key, config in sections for name, field in config.model_fields.items()}
    return frozenset(key for key, kind in fields.items() if takes_text(kind) and not key.startswith(NAMES))


def takes_text(annotation: Any) -> bool:
    """Whether a field, or one of a section, takes text of the user's own, and not a word of a list."""
    parts = [*get_args(annotation), *(field.annotation for field in getattr(annotation, "model_fields", {}).values())]
    return annotation in (str, Path) or any(takes_text(part) for part in parts)


def assignments(text: Any, limits: Limits) -> list[str]:
    """The lines of the box for other settings, each KEY=VALUE; raises ValueError for keys that the page may not set."""
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    if sum(map(len, lines)) > 10 * limits.prompt:
        raise ValueError(f"The other settings are longer than {10 * limits.prompt} characters.")
    for line in lines:
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not key or set("&*!") & set(value):
            raise ValueError(f"“{line[:80]}” is not of the form key=value, e.g. train.warmup_steps=5.")
        if not key.startswith(OPEN) or any(key == name or key.startswith(f"{name}.") for name in closed()):
            raise ValueError(f"{key[:80]} cannot be set on the page; use the command line for it.")
    return lines


def check(config: Any, limits: Limits) -> None:
    """Raise ValueError if the resolved run is larger than the page allows."""
    from erase.config import at

    values = config.model_dump(mode="json")
    own = [setting.key for setting in method_settings()[config.method.name] if setting.kind == "int"]
    for key, most in (dict.fromkeys(own, limits.pictures) | counts(limits)).items():
        if (at(values, key) or 0) > most:
            raise ValueError(f"{key} is {at(values, key)}; the page allows at most {most}. The command line has no such limit.")


def counts(limits: Limits) -> dict[str, int]:
    """The most that the page allows of what makes a run large."""
    most = {"train.steps": limits.train_steps, "data.num_inference_steps": limits.steps, "saliency.rounds": 100}
    most |= {f"data.{name}": limits.pictures for name in ("num_forget", "num_retain", "num_anchor")}
    most |= {"evaluation.num_forget": limits.pictures, "evaluation.retain_per_cell": 100}
    most |= {"evaluation.num_inference_steps": limits.steps, "train.forget_batch_size": 512, "train.retain_batch_size": 512}
    return most | {"method.processes": limits.processes, "method.threads": limits.processes, "method.samples": limits.samples}


def _value(setting: Setting, value: Any, limits: Limits) -> Any:
    """The value as the config wants it; raises ValueError if it is beyond what the page allows."""
    if value is None or (setting.kind == "text" and not str(value).strip()):
        return None
    if setting.kind == "int":
        most = counts(limits) | {"seed": 2**31 - 1}
        return whole(value, f"“{setting.label}”", int(setting.low or 0), most.get(setting.key, limits.pictures))
    if setting.kind == "text":
        parts = [part.strip() for part in str(value)[: limits.prompt].split(";") if part.strip()]
        return parts[0] if len(parts) == 1 else parts
    return value


def shown(value: Any) -> Any:
    """A setting's value as its widget shows it."""
    return "; ".join(map(str, value)) if isinstance(value, list) else value
