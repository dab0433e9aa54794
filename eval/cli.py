"""`erase eval` and `erase compare`: measure any model, ours or anyone's, beside its base."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from erase.cli_load import CacheDir, Device, Revision, Variant, given

Suite = Annotated[str, typer.Option("--suite", help="`emoji`, `imagenette`, `i2p`, or `prompts` (your own list).")]
Baseline = Annotated[
    str | None, typer.Option("--baseline", help="The model before erasing (a run knows its own), or a folder of its pictures.")
]
Concepts = Annotated[
    list[str] | None, typer.Option("--concept", help="What was erased (a run knows it); may be given several times.")
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="A CSV with a column `prompt`; I2P's other columns are obeyed."),
]
Num = Annotated[int | None, typer.Option("--n", help="Rows of the list at equal distances, or pictures per cell or class.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder, new or an evaluation's (default: runs/eval/NAME-SUITE).")]
Json = Annotated[bool, typer.Option("--json", help="Print results.json instead of the table.")]


def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A model, a run's folder, or a folder of pictures.")],
    suite: Suite = "emoji",
    baseline: Baseline = None,
    concept: Concepts = None,
    prompts: Prompts = None,
    num: Num = None,
    out: Out = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps (emoji: 20, others: 50).", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale where the list has none.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture where the list has none.", min=0)] = 5000,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Pictures drawn at a time, for speed and memory alone (48; by a denoiser of over 100 M weights as the run's "
            "evaluation.batch_size says, else 4).",
            min=1,
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Draw the base's pictures anew.")] = False,
    inception: Annotated[Path | None, typer.Option(help="Inception weights for FID and KID.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="torchvision ResNet-50 weights for imagenette.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP model, a folder or a hub id.")] = None,
    few: Annotated[bool, typer.Option("--few", help="Compute FID on fewer than 2,048 pictures too.")] = False,
    device: Device = None,
    variant: Variant = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Measure a model beside its base: forgotten, kept, quality, collapse; with intervals and a report."""
    from erase.lock import locked_by_main
    from erase.quiet import quiet_libraries
    from erase.terminal import Bars, enough_memory, stoppable

    quiet_libraries()
    from eval.evaluate import EvaluationOptions
    from eval.evaluate import evaluate as run
    from eval.report import write_evaluation
    from eval.targets import find_target

    options = EvaluationOptions(
        suite=suite,
        concepts=tuple(concept or ()),
        prompts=prompts,
        num=num,
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch_size=batch_size,
        load=given(device=device, variant=variant, revision=revision, cache_dir=cache_dir),
        cache=not no_cache,
        inception=inception,
        classifier=classifier,
        clip=clip,
        few=few,
    )
    name = re.sub(r"[^a-z0-9]+", "-", find_target(target).name.lower()).strip("-")
    folder = out or Path("runs") / "eval" / f"{name}-{suite}"
    with stoppable(folder), enough_memory("give a smaller --batch-size, or --device cpu"), locked_by_main(folder):
        results = run(target, baseline, options, folder, Bars())
        write_evaluation(folder, results)
    from eval.report import table

    shown = json.dumps(results.model_dump(mode="json") | {"out": str(folder)})
    typer.echo(shown if as_json else table(results) + f"\nreport: {folder / 'report.html'}")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Two or more folders of `erase eval` or of `erase --concept`.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write; not one that is there already.")] = Path("compare.html"),
    as_json: Json = False,
) -> None:
    """Put several evaluations side by side, as a table and as a page."""
    from erase.files import require_new, write_text
    from eval.compare import columns, page, text

    if len(runs) < 2:
        raise ValueError(f"{runs[0]} alone is compared with nothing: give two or more folders.")
    require_new(out)
    found = columns(runs)
    write_text(page(found), out)
    typer.echo(json.dumps([column.model_dump(mode="json") for column in found]) if as_json else text(found) + f"\npage: {out}")
