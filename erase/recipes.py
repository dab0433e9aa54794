"""The shipped settings, and how a run's config comes of them: a recipe or a file, then flags, then `--set`."""

from pathlib import Path
from typing import Any

from erase.config import SETTINGS, RunConfig, override, put, validate
from erase.files import hash_of, slug
from erase.methods import METHODS
from erase.reading import read_yaml

# settings of SalUn that are no method of their own
RECIPES = ("paper", "reference-code")
# the file for concepts that have none of their own
GENERAL = "any-concept"


def config_folder() -> Path:
    """Where the shipped recipes are: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def resolve(given: dict[str, Any], assignments: list[str], file: Path | None = None) -> RunConfig:
    """The config of a run: a file, or the recipe for the concepts on the model; then flags; then `--set`.

    `given` has dotted keys (`saliency.density`). Raises ValueError for a recipe whose model is not the one at hand.
    """
    models = [text.removeprefix("model=") for text in assignments if text.startswith("model=")]
    model = models[-1] if models else given.get("model")
    if file is not None:
        values, num_further = {key: value for key, value in read_yaml(file).items() if key != "versions"}, 0
        if not _is_embedded(model or values.get("model")):
            values = _completed(values)
        values |= {"concept": given["concept"]} if "concept" in given else {}
    else:
        concept = given.get("concept", "")
        names = [str(name) for name in (concept if isinstance(concept, (list, tuple)) else [concept])]
        values, num_further = recipe(names, model), len(names) - 1 if _is_embedded(model) else 0
        given = {key: value for key, value in given.items() if key != "concept"}
    assignments = [
        f"method.name={text.removeprefix('recipe=')}" if text.startswith("recipe=") else text for text in assignments
    ]
    chosen = [text.removeprefix("method.name=") for text in assignments if text.startswith("method.name=")]
    named = values.pop("recipe", None)
    name = chosen[-1] if chosen else given.get("method.name") or named
    if name:
        values = with_method(values, str(name), model or values.get("model"), shipped=file is None)
        given = {key: value for key, value in given.items() if key != "method.name"}
        assignments = [text for text in assignments if not text.startswith("method.name=")]
    if num_further:
        values = with_more(values, num_further)
    for key, value in given.items():
        put(values, key, value)
    return validate(override(values, assignments))


LONGEST_NAME = 100  # characters of a folder's name before the hash: file systems take 255 bytes


def default_out(given: dict[str, Any], settings: list[str], file: Path | None, config: RunConfig) -> Path:
    """runs/<concept>, with a short hash behind it where anything but the concept was chosen; arguments as of `resolve`."""
    name, digest = slug("-".join(config.concepts)), hash_of(config.model_dump(mode="json"))[:6]
    plain = not (set(given) - {"concept"} or settings or file)
    if not plain and not file and config.model == "emoji":  # options that say what is so anyway choose nothing
        plain = config == resolve({"concept": given.get("concept")}, [])
    if len(name) > LONGEST_NAME:
        return Path("runs") / f"{name[:LONGEST_NAME].rstrip('-')}-{digest}"
    return Path("runs") / (name if plain else f"{name}-{digest}")


def method_files() -> dict[str, Path]:
    """The shipped settings by name: of every method, and of SalUn as published (`paper`) and as released (`reference-code`)."""
    return {path.stem: path for path in sorted((config_folder() / "methods").glob("*.yaml"))}


def with_method(values: dict[str, Any], name: str, model: str | None, shipped: bool = False) -> dict[str, Any]:
    """The settings with another method's in place of theirs; the anchor stays, where the other has one.

    A method's file has settings for the embedded model and for full-size ones, and for some concepts what it has otherwise on
    those (with the `shipped` recipe alone); `labels: imagenette` relabels the ten classes among each other there. Raises
    ValueError if there is no such method.
    """
    files = method_files()
    if name not in files:
        raise ValueError(f"method.name is {name!r}: there is no such method (known: {', '.join([*METHODS, *RECIPES])}).")
    settings = read_yaml(files[name])
    own = settings["embedded" if _is_embedded(model) else "full_size"]
    if shipped and not _is_embedded(model):
        for key, fields in settings.get("concepts", {}).get(str(values.get("concept")), {}).items():
            own = own | {key: own.get(key, {}) | fields}
    before, *others = (values.get(key) or {} for key in ("method", *own))
    for key, section in zip(("method", *own), (before, *others), strict=True):
        if not isinstance(section, dict):
            raise ValueError(f"{key} is {section!r} and has no fields.")
    if name == before.get("name"):
        return values
    method = {"name": name, **own.get("method", {})}
    if "anchor" in before and "anchor" in SETTINGS[method["name"]].model_fields:
        method = {"anchor": before["anchor"]} | method
    sections = {key: {**(values.get(key) or {}), **own[key]} for key in own if key != "method"}
    values = values | sections | {"method": method}
    if settings.get("labels") != "imagenette" or _is_embedded(model):
        return values
    from erase.plan_classes import among_classes

    return among_classes(values, shipped)


def recipe(names: list[str], model: str | None) -> dict[str, Any]:
    """The shipped settings for these concepts on this model (None: the embedded one).

    For the embedded model those of recipe-object.yaml or recipe-style.yaml; for any other model the file named as the
    concept, or any-concept.yaml where there is none. Several concepts take the numbers of the general file, and each its
    own prompts. Raises ValueError if no model is given and the embedded one does not draw a concept that has a file.
    """
    from erase.concepts import find_concept
    from pipelines.load import EMOJI_VOCABULARY

    own = [_own_recipe(name) for name in names]
    if not _is_embedded(model):
        return _open_recipe(names, own)
    try:
        kinds = {find_concept(name, EMOJI_VOCABULARY).kind for name in names}
    except ValueError:
        for name, values in zip(names, own, strict=True):
            if values and model is None and not _is_known(name):
                raise ValueError(_needs(name, values["model"])) from None
        raise
    path = config_folder() / f"recipe-{'style' if kinds == {'style'} else 'object'}.yaml"
    return read_yaml(path) | {"concept": names if len(names) > 1 else names[0]}


def with_more(values: dict[str, Any], num_further: int) -> dict[str, Any]:
    """The settings with what every concept after the first adds to them (configs/several/further.yaml)."""
    more = {
        section: {key: values[section][key] + number * num_further for key, number in fields.items()}
        for section, fields in read_yaml(config_folder() / "several" / "further.yaml").items()
    }
    return values | {section: values[section] | more[section] for section in more}


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """A file for a model that draws anything, with the general recipe's settings where it has none.

    RunConfig's own defaults are the embedded model's: thirty times the learning rate, for one.
    """
    general = {key: value for key, value in read_yaml(config_folder() / f"{GENERAL}.yaml").items() if key != "concept"}
    method = values.get("method")
    if isinstance(method, dict) and method.get("name", general["method"]["name"]) != general["method"]["name"]:
        general = with_method(general, str(method["name"]), values.get("model"))
    both = {key for key in general if isinstance(general[key], dict) and isinstance(values.get(key), dict)}
    return general | values | {key: general[key] | values[key] for key in both}


def _is_embedded(model: str | None) -> bool:
    """Whether the model is the embedded one or was made from it."""
    from pipelines.load import made_from_emoji

    return model is None or made_from_emoji(model)


def _is_known(name: str) -> bool:
    from erase.concepts import find_concept
    from pipelines.load import EMOJI_VOCABULARY

    try:
        find_concept(name, EMOJI_VOCABULARY)
    except ValueError:
        return False
    return True


def _own_recipe(name: str) -> dict[str, Any] | None:
    """The file named as the concept."""
    stem = "-".join(name.lower().replace("-", " ").split())
    shared = {GENERAL, "recipe-object", "recipe-style"}
    paths = {path.stem: path for path in config_folder().glob("*.yaml") if path.stem not in shared}
    return read_yaml(paths[stem]) if stem in paths else None


def _open_recipe(names: list[str], own: list[dict[str, Any] | None]) -> dict[str, Any]:
    if len(names) == 1 and own[0]:
        return own[0]
    values = read_yaml(config_folder() / f"{GENERAL}.yaml")
    if len(names) == 1:
        return values | {"concept": names[0]}
    named = {each["concept"] if each else name: each or {} for name, each in zip(names, own, strict=True)}
    anchors = [each.get("method", {}).get("anchor", "nearest") for each in named.values()]
    prompts = {name: dict(each["prompts"]) for name, each in named.items() if "prompts" in each}
    for each in prompts.values():  # what one recipe protects may be what another erases
        for key in ("neighbours", "retain"):
            each[key] = [text for text in each.get(key, []) if not _erased(text, list(named))]
    return values | {
        "concept": list(named),
        "prompts": {"each": prompts},
        "method": values["method"] | {"anchor": ["nearest" if _erased(text, list(named)) else text for text in anchors]},
    }


def _erased(text: str, names: list[str]) -> bool:
    from erase.concepts import names_within

    return any(names_within(name, text) for name in names)


def _needs(name: str, model: str) -> str:
    return (
        f"erasing {name!r} needs {model}: on a machine with network access run `hf download {model}`, then "
        f"`erase --concept {name!r} --model {model}`; offline, `erase --concept dog` and everything `erase concepts` lists "
        "run on the embedded model."
    )
