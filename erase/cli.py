"""The command line: results to stdout, progress to stderr, exit 2 with one sentence on a user's mistake."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from erase import __version__
from erase.app.command import app as serve
from erase.classification import cli_forest, cli_linear, cli_sisa
from erase.classification.cli import bench_app, register
from erase.cli_bench import bench_methods
from erase.cli_files import apply, export
from erase.cli_given import Commands, check_given, refuse_before
from erase.cli_load import Device, Dtype
from erase.quiet import quiet_libraries
from erase.terminal import (
    STOPPED,
    Bars,
    debug,
    enough_memory,
    less_for_training,
    printable,
    sentence_of,
    speaks,
    stoppable,
)
from eval.audit_cli import audit
from eval.cli import compare, evaluate

app = typer.Typer(
    name="erase",
    cls=Commands,
    help="Erase a concept from a text-to-image diffusion model, and prove what was forgotten and what was kept.",
    epilog="""Try `erase --concept dog`: no download, no GPU, minutes on two cores. Its folder then holds the erased model,
a small patch, the mask, every figure, and report.html. Run the same command again and finished stages are reused.""",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(cli_linear.linear, name="linear")
app.add_typer(cli_sisa.sisa, name="sisa")
app.add_typer(cli_forest.forest, name="forest")

Model = Annotated[
    str | None,
    typer.Option("--model", help="`emoji` (embedded), a diffusers folder, a .safetensors file, or a Hub id. Default: emoji."),
]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant", help="Weight variant of a diffusers folder or Hub model, e.g. fp16. Default: the one without a suffix."
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub model. Default: its main branch.")
]
CacheDir = Annotated[
    str | None, typer.Option("--cache-dir", help="Folder for downloaded models. Default: the Hub library's cache.")
]
Concept = Annotated[
    list[str] | None,
    typer.Option(
        "--concept", help='Concept to erase: "dog", "line art", "a dog, neon style". Repeat the option to erase several.'
    ),
]
Anchor = Annotated[
    list[str] | None,
    typer.Option(
        "--anchor",
        help="What the concept becomes; with several concepts, one for each in the same order. Default: proposed for you.",
    ),
]
Kind = Annotated[
    str | None,
    typer.Option("--kind", help="object, style, person or other; for models other than emoji. Default: guessed from the name."),
]
ForgetImages = Annotated[
    Path | None, typer.Option("--forget-images", help="Folder of pictures of the concept, used instead of generated ones.")
]
RetainImages = Annotated[
    Path | None,
    typer.Option(
        "--retain-images",
        help="Folder of pictures to keep, used instead of generated ones; cat.txt holds the prompt of cat.png.",
    ),
]
Method = Annotated[str | None, typer.Option("--method", help="Forgetting method; `--method help` lists them. Default: salun.")]
Density = Annotated[
    float | None, typer.Option("--density", help="Fraction of denoiser weights allowed to change, in (0, 1]. Default: 0.5.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed; the same seed gives the same result. Default: 0.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder of the run. Default: runs/CONCEPT, followed by a short hash if any other setting is given."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any setting, e.g. `--set train.steps=200`; --dry-run lists them all. Repeatable."
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file to start from instead of the shipped recipe; its values replace the defaults given here."
    ),
]
ForceNew = Annotated[
    bool,
    typer.Option("--force-new-run", help="If the folder holds a run with another config, use FOLDER-2, FOLDER-3, ... instead."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the resolved config, the cost and some prompts (with --json, all of them), then stop."
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Draw the base's pictures again instead of using cached ones.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"erase {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")]


register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    concept: Concept = None,
    model: Model = None,
    anchor: Anchor = None,
    kind: Kind = None,
    forget_images: ForgetImages = None,
    retain_images: RetainImages = None,
    method: Method = None,
    density: Density = None,
    seed: Seed = None,
    out: Out = None,
    settings: Settings = None,
    config: ConfigFile = None,
    dtype: Dtype = None,
    device: Device = None,
    variant: Variant = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    force_new_run: ForceNew = False,
    dry_run: DryRun = False,
    no_cache: NoCache = False,
    as_json: Json = False,
    version: Version = False,
) -> None:
    """Erase a concept, or leave the work to a subcommand."""
    if context.invoked_subcommand is not None:
        refuse_before(context)
        return
    if method == "help":
        from erase.methods import method_lines

        typer.echo("\n".join(method_lines()))
        return
    if not concept and config is None:
        typer.echo(context.get_help())
        raise typer.Exit(2 if len(sys.argv) > 1 else 0)
    given = {
        "concept": concept[0] if concept and len(concept) == 1 else concept or None,
        "model": model,
        "seed": seed,
        "method.name": method,
        "method.anchor": anchor[0] if anchor and len(anchor) == 1 else anchor or None,
        "prompts.kind": kind,
        "data.forget_images": str(forget_images) if forget_images else None,
        "data.retain_images": str(retain_images) if retain_images else None,
        "saliency.density": density,
        "load.dtype": dtype,
        "load.device": device,
        "load.variant": variant,
        "load.revision": revision,
        "load.cache_dir": cache_dir,
    }
    chosen = {k: v for k, v in given.items() if v is not None}
    run_erase(chosen, settings or [], config, out, dry_run, as_json, not no_cache, force_new_run)


def run_erase(
    given: dict[str, Any],
    settings: list[str],
    config_file: Path | None,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    cache: bool = True,
    force_new_run: bool = False,
) -> None:
    """Resolve the config, load the model, do the run, print what came out."""
    from erase.recipes import default_out, resolve

    config = resolve(given, settings, config_file)
    check_given(given, settings, config_file, config)
    out = out or default_out(given, settings, config_file, config)
    quiet_libraries()
    folder = None if dry_run else out
    with stoppable(folder), enough_memory(less_for_training(folder)):
        _run(config, out, dry_run, as_json, cache, force_new_run)


def _run(config: Any, out: Path, dry_run: bool, as_json: bool, cache: bool, force_new_run: bool) -> None:
    from erase.folder import free_folder
    from erase.plan import plan
    from erase.processes import main_first
    from erase.run import execute
    from pipelines.load import load, model_hash

    family = load(config.model, config.load)
    planned = plan(config, family)
    if force_new_run:
        first = out
        out = main_first(lambda: free_folder(first, config))
    if dry_run:
        from erase.dry_run import report, shortened

        found = report(planned, family, out)
        text = json.dumps(found, indent=1) if as_json else yaml.safe_dump(shortened(found), sort_keys=False, allow_unicode=True)
        if speaks():
            typer.echo(text, nl=as_json)
        return
    results = execute(planned, family, out, Bars(), model_hash(config.model, config.load), cache)
    if speaks():
        from erase.telling import summary

        typer.echo(json.dumps(results | {"out": str(out)}) if as_json else summary(results, config, out))


@app.command()
def concepts(as_json: Json = False) -> None:
    """List what the embedded model knows, and the methods."""
    from erase.methods import METHODS, method_lines
    from pipelines.load import EMOJI_VOCABULARY

    known = EMOJI_VOCABULARY
    if as_json:
        typer.echo(json.dumps({"objects": known.objects, "styles": known.styles, "methods": list(METHODS)}))
        return
    typer.echo(f"objects: {', '.join(known.objects)}")
    typer.echo(f"styles:  {', '.join(known.styles)}")
    typer.echo('pairs:   any object in any style, as in --concept "a dog, neon style"')
    typer.echo("\n".join(["methods:", *(f"  {line}" for line in method_lines())]))


bench_app.command("methods")(bench_methods)
app.command()(apply)
app.command()(export)
app.command()(audit)
app.command("eval")(evaluate)
app.command("compare")(compare)
app.command("app")(serve)


def main() -> None:
    """The entry point: a ValueError or OSError becomes one sentence and exit 2; ERASE_DEBUG=1 shows where it came from."""
    # torch's threads wait for each other in a loop; beside a program that keeps a core busy they take it from the one at work
    if "OMP_WAIT_POLICY" not in os.environ:  # which the count would overrule
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with enough_memory("end other programs, or use a machine with more"):
            app()
    except ValueError as error:
        debug(error)
        if speaks():
            typer.echo(f"erase: {printable(sentence_of(error))}", err=True)
        sys.exit(2)
    except OSError as error:
        from erase.files import FULL

        debug(error)
        where = f" ({error.filename})" if error.filename else ""
        kept = (
            ": existing files are unchanged; free some disk space and run the same command again" if error.errno in FULL else ""
        )
        typer.echo(f"erase: {printable(f'{error.strerror or error}{where}{kept}')}", err=True)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == STOPPED:  # all is written, and taking the libraries down would cost seconds more
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(STOPPED)
        raise


if __name__ == "__main__":
    main()
