"""`erase eval` and `erase compare`: measure any model, ours or anyone's, beside its base."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

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
Out = Annotated[Path | None, typer.Option("--out", help="Folder (default: runs/eval/NAME-SUITE).")]
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
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at a time, for speed and memory alone.", min=1)] = 48,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Draw the base's pictures anew.")] = False,
    inception: Annotated[Path | None, typer.Option(help="Inception weights for FID and KID.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="torchvision ResNet-50 weights for imagenette.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP model, a folder or a hub id.")] = None,
    few: Annotated[bool, typer.Option("--few", help="Compute FID on fewer than 2,048 pictures too.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a model beside its base: forgotten, kept, quality, collapse; with intervals and a report."""
    from erase.lock import locked_by_main
    from erase.quiet import quiet_libraries
    from erase.terminal import Bars, stoppable

    quiet_libraries()
    from eval.evaluate import Options, find_target
    from eval.evaluate import evaluate as run
    from eval.report import write_evaluation

    options = Options(
        suite=suite,
        concepts=tuple(concept or ()),
        prompts=prompts,
        num=num,
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch_size=batch_size,
        cache=not no_cache,
        inception=inception,
        classifier=classifier,
        clip=clip,
        few=few,
    )
    name = re.sub(r"[^a-z0-9]+", "-", find_target(target).name.lower()).strip("-")
    folder = out or Path("runs") / "eval" / f"{name}-{suite}"
    with stoppable(folder), locked_by_main(folder):
        results = run(target, baseline, options, folder, Bars())
        write_evaluation(folder, results)
    from eval.report import table

    shown = json.dumps(results.model_dump(mode="json") | {"out": str(folder)})
    typer.echo(shown if as_json else table(results) + f"\nreport: {folder / 'report.html'}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of `erase eval` or of `erase --concept`.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    as_json: Json = False,
) -> None:
    """Put several evaluations side by side, as a table and as a page."""
    from erase.files import write_text
    from eval.compare import columns, page, text

    found = columns(runs)
    write_text(page(found), out)
    typer.echo(json.dumps([column.model_dump(mode="json") for column in found]) if as_json else text(found) + f"\npage: {out}")
