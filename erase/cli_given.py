"""What was given on the command line, held against itself: an option that would do nothing is a mistake and said to be one."""

import itertools
import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from erase.terminal import printable, speaks

if TYPE_CHECKING:
    from erase.config import RunConfig

# what a config says of its own concept alone
OWN = (
    *("method.anchor", "data.forget_images"),
    *(f"prompts.{key}" for key in ("synonyms", "neighbours", "forget", "becomes", "retain", "each")),
)


class Commands(TyperGroup):
    """The subcommands; a word that is none of them, nor near one, is taken for a concept without its option."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names."""
        name, told = args[0], (ctx.params.get("concept") or [])[-1:]
        if self.get_command(ctx, name) is None and (told or not get_close_matches(name, self.list_commands(ctx))):
            words = " ".join([*told, *itertools.takewhile(lambda word: not word.startswith("-"), args)])
            ctx.fail(f"No such command {name!r}. Did you mean `erase --concept {shlex.quote(words)}`?")
        return super().resolve_command(ctx, args)


def refuse_before(context: typer.Context) -> None:
    """Raise ValueError if options stand before the subcommand, which would not see them."""
    command = context.invoked_subcommand
    sources = {parameter.opts[0]: context.get_parameter_source(parameter.name or "") for parameter in context.command.params}
    if names := [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]:
        raise ValueError(
            f"{', '.join(names)} before `{command}` would have no effect: give the options of `erase {command}` after it."
        )


def check_given(given: dict[str, Any], settings: list[str], file: Path | None, config: "RunConfig") -> None:
    """Raise ValueError if what was given contradicts itself, would do nothing, or turns one concept into another's anchor.

    `given` has the options by their dotted keys, `settings` the texts of --set, `config` is what came of them and the file.
    """
    assigned = dict(text.split("=", 1) for text in settings)
    if "recipe" in assigned:
        assigned["method.name"] = assigned.pop("recipe")
    _refuse_twice(given, assigned)
    named = {key: f"--set {key}" for key in assigned} | {key: option(key) for key in given}
    _refuse_idle(named, config)
    if file is not None:
        _refuse_borrowed(named, file, config)


def option(key: str) -> str:
    """The option that stands for a dotted key."""
    return "--method" if key == "method.name" else f"--{key.rpartition('.')[2].replace('_', '-')}"


def _refuse_twice(given: dict[str, Any], assigned: dict[str, str]) -> None:
    from erase.config import at
    from erase.reading import parse_yaml

    for (key, value), (name, text) in itertools.product(given.items(), assigned.items()):
        if key == name or key.startswith(f"{name}."):
            rest = key.removeprefix(name).removeprefix(".")
            other = at(parse_yaml(text), rest) if rest else parse_yaml(text)
            if other != value and str(other) != str(value):
                raise ValueError(
                    f"{option(key)} and --set {name} contradict each other ({value} and {text}): give only one of them."
                )


def _refuse_idle(named: dict[str, str], config: "RunConfig") -> None:
    from erase.methods import METHODS
    from erase.plan import remaps
    from pipelines.load import made_from_emoji

    if density := named.get("saliency.density"):
        if METHODS[config.method.name].remake:
            raise ValueError(
                f"{density} has no effect with {config.method.name}, which makes a new model and no mask: leave it out."
            )
        if config.saliency.method == "none":
            raise ValueError(f"{density} has no effect without a mask (saliency.method is none): leave it out.")
    anchor = named.get("method.anchor")
    chosen = getattr(config.method, "anchor", "")
    unnamed = "none" in ((chosen,) if isinstance(chosen, str) else chosen)
    if anchor and not remaps(config) and (made_from_emoji(config.model) or not unnamed):
        raise ValueError(
            f"{anchor} has no effect where labels are drawn at random (method.relabel is random_label, as in --method paper): "
            "leave it out, or give --set method.relabel=concept_remap."
        )


def _refuse_borrowed(named: dict[str, str], file: Path, config: "RunConfig") -> None:
    """For a config of one concept that another is erased with: what is the first one's own must be given anew."""
    from erase.concepts import same_name
    from erase.config import at
    from erase.reading import read_yaml
    from erase.words import guess_kind

    written = read_yaml(file)
    own = written.get("concept")
    before = [str(name) for name in (own if isinstance(own, list) else [own])]
    if own is None or (len(before) == len(config.concepts) and all(map(same_name, before, config.concepts))):
        return
    values, theirs, ours = config.model_dump(mode="json"), ", ".join(before), ", ".join(config.concepts)
    theirs_alone = [key for key in OWN if _means_something(at(written, key)) and _means_something(at(values, key))]
    kept = [key for key in theirs_alone if not {key, key.partition(".")[0]} & named.keys()]
    kind = config.prompts.kind
    if kind != "auto" and "prompts.kind" not in named and any(guess_kind(name) != kind for name in config.concepts):
        kept.append("prompts.kind")
    if kept:
        raise ValueError(
            f"{file} is about {theirs}, and its {' and '.join(kept)} would apply to {ours}: give "
            f"{'them' if kept[1:] else 'it'} too, or leave out --config."
        )
    if speaks():
        typer.echo(f"erase: {printable(f'{file} is about {theirs}: {ours} is erased instead')}", err=True)


def _means_something(value: Any) -> bool:
    """Whether a setting names something, and not only how to find it."""
    general = (None, "nearest", "next", "none")
    return value not in general and not (isinstance(value, list) and all(part in general for part in value)) and bool(value)
