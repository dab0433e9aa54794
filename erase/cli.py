"""The command line: results to stdout, progress to stderr, exit 2 with one sentence on a user's mistake."""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from erase import __version__
from erase.classification.cli import register

app = typer.Typer(
    name="erase",
    help="Erase a concept from a text-to-image diffusion model, and prove what was forgotten and what was kept.",
    epilog="""Try `erase --concept dog`: no download, no GPU, minutes on two cores. Its folder then holds the erased model,
a small patch, the mask, every figure, and report.html; the same command given again re-uses every stage.""",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Concept = Annotated[str | None, typer.Option("--concept", help='What to erase: "dog", "line art", "a dog, neon style".')]
Model = Annotated[str | None, typer.Option("--model", help="`emoji` (embedded, the default), a diffusers folder, or a hub id.")]
Method = Annotated[str | None, typer.Option("--method", help="The forgetting method (salun).")]
Density = Annotated[
    float | None, typer.Option("--density", help="Share of the denoiser's weights that may change, above 0 to 1 (0.5).")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything drawn at random; same seed, same result (0).")]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder (default: runs/CONCEPT).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in `--set train.steps=200`; --dry-run shows them all."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file to start from instead of the shipped recipe.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config, the prompts and the cost; do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"erase {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    concept: Concept = None,
    model: Model = None,
    method: Method = None,
    density: Density = None,
    seed: Seed = None,
    out: Out = None,
    settings: Settings = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    version: Version = False,
) -> None:
    """Erase a concept, or leave the work to a subcommand."""
    if context.invoked_subcommand is not None:
        return
    if concept is None and config is None:
        typer.echo(context.get_help())
        raise typer.Exit(2 if len(sys.argv) > 1 else 0)
    given = {"concept": concept, "model": model, "seed": seed, "method.name": method, "saliency.density": density}
    run_erase({k: v for k, v in given.items() if v is not None}, settings or [], config, out, dry_run, as_json)


def run_erase(
    given: dict[str, Any], settings: list[str], config_file: Path | None, out: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Resolve the config, load the model, do the run, print what came out."""
    from erase.config import resolve

    config = resolve(given, settings, config_file)
    quiet_libraries()
    from erase.run import execute, plan
    from pipelines.load import load, model_hash

    family = load(config.model)
    planned = plan(config, family)
    out = out or default_out(given, settings, config_file, config)
    if dry_run:
        from erase.estimate import estimate

        report = {
            "out": str(out),
            "config": config.model_dump(mode="json"),
            "concept": planned.concept.name,
            "kind": planned.concept.kind,
            "becomes": list(planned.anchors),
            "forget_prompts": sorted({p.text for p in planned.data.forget}),
            "retain_prompts": len(planned.data.retain),
            "estimate": estimate(planned, family),
        }
        typer.echo(
            json.dumps(report, indent=1) if as_json else yaml.safe_dump(report, sort_keys=False, allow_unicode=True), nl=as_json
        )
        return
    try:
        results = execute(planned, family, out, Bars(), model_hash(config.model))
    except KeyboardInterrupt:
        typer.echo(f"erase: stopped; what is done is kept in {out}: give the same command again to go on.", err=True)
        raise typer.Exit(130) from None
    typer.echo(json.dumps(results | {"out": str(out)}) if as_json else summary(results, out))


def default_out(given: dict[str, Any], settings: list[str], config_file: Path | None, config: Any) -> Path:
    """runs/<concept>, with a short hash behind it when anything but the concept was chosen."""
    from erase.files import hash_of

    slug = re.sub(r"[^a-z0-9]+", "-", config.concept.lower()).strip("-") or "concept"
    plain = not (set(given) - {"concept"} or settings or config_file)
    return Path("runs") / (slug if plain else f"{slug}-{hash_of(config.model_dump(mode='json'))[:6]}")


def summary(results: dict[str, Any], out: Path) -> str:
    """The figures a person wants first, and where the rest is."""
    base, erased, proof, seconds = (results[key] for key in ("base", "erased", "audit", "seconds"))

    def row(label: str, key: str, share: str) -> str:
        n = erased["intervals"][share]["n"]
        return f"  {label:<34}{100 * base[key]:8.1f} %{100 * erased[key]:10.1f} %   n = {n}"

    lines = [f"{results['concept']} erased from {results['model']} with {results['method']}, density {results['density']}:"]
    if results["detector"]:
        lines += [
            f"  {'':<34}{'base':>10}{'erased':>12}",
            row("pictures that still show it", "forget_accuracy", "forget"),
            row("kept, same domain (IRA)", "ira", "ira"),
            row("kept, other domain (CRA)", "cra", "cra"),
        ]
    else:
        lines.append("  forgetting and retention: not measured (no detector at hand knows this concept)")
    lines.append(
        f"  weights changed outside the mask: {proof['changed_outside_mask']}; inside: "
        f"{100 * proof['changed_inside_mask_share']:.2f} % of {proof['num_salient']:,} (of {proof['num_weights']:,})"
    )
    skipped = f"; re-used: {', '.join(results['skipped'])}" if results["skipped"] else ""
    lines.append(f"  {seconds['total']:.0f} s when it was made, peak {results['peak_rss_gb']:.1f} GB{skipped}")
    lines.append(f"report: {out / 'report.html'}")
    return "\n".join(lines)


@app.command()
def concepts(as_json: Json = False) -> None:
    """List what the embedded model knows, and the methods."""
    from pipelines.load import EMOJI_VOCABULARY

    known = EMOJI_VOCABULARY
    if as_json:
        typer.echo(json.dumps({"objects": known.objects, "styles": known.styles}))
        return
    typer.echo(f"objects: {', '.join(known.objects)}")
    typer.echo(f"styles:  {', '.join(known.styles)}")
    typer.echo('pairs:   any object in any style, as in --concept "a dog, neon style"')
    typer.echo("method:  salun   saliency mask with random labels or a concept remapped (Fan et al., ICLR 2024)")


@app.command()
def apply(
    patch: Annotated[Path, typer.Argument(help="A patch.safetensors of a run.")],
    to: Annotated[str, typer.Option("--to", help="The model to put it on: the one it was made from.")] = "emoji",
    out: Annotated[Path, typer.Option("--out", help="The diffusers folder to write.")] = Path("patched"),
    strength: Annotated[float, typer.Option(help="0 is the base, 1 the erased model, up to 1.5.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Put a patch on its base model at any strength, as a diffusers folder."""
    quiet_libraries()
    from erase.export import save_model
    from erase.patch import AppliedPatch, load_patch
    from pipelines.load import load, model_hash

    loaded = load_patch(patch)
    if out.exists():
        raise ValueError(f"{out} is there already; give another --out.")
    family = load(to)
    base = model_hash(to)
    if loaded.provenance.get("base") != base:
        raise ValueError(
            f"{patch} was made on another base (it names {loaded.provenance.get('base', '?')[:12]}, {to} is {base[:12]})."
        )
    AppliedPatch(family.denoiser, loaded, strength)
    save_model(family, out)
    result = {"out": str(out), "strength": strength, "concept": loaded.provenance.get("concept")}
    typer.echo(json.dumps(result) if as_json else f"{out}: {to} without {result['concept']!r} at strength {strength}")


def quiet_libraries() -> None:
    """Keep the libraries' chatter out of the results."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


LABELS = {
    "generate": "pictures to forget and to keep",
    "saliency": "which weights carry it",
    "train": "forgetting",
    "export": "writing the model",
    "evaluate": "before and after",
    "report": "report",
}


class Bars:
    """Progress bars with ETA on stderr."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        """A bar for one stage."""
        from tqdm import tqdm

        bar = tqdm(total=total, desc=f"{LABELS.get(name, name):<32}", file=sys.stderr, leave=True, dynamic_ncols=True)

        class Advance:
            def advance(self, num: int = 1, **figures: float) -> None:
                if figures:
                    bar.set_postfix({k.removesuffix("_loss"): f"{v:.4f}" for k, v in figures.items()}, refresh=False)
                bar.update(num)

        with bar:
            yield Advance()

    def note(self, text: str) -> None:
        """A line between the bars."""
        typer.echo(text, err=True)


def main() -> None:
    """The entry point: every ValueError is the user's mistake and becomes one sentence."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except ValueError as error:
        typer.echo(f"erase: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        typer.echo(f"erase: {error.strerror or error}{where}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
