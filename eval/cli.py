"""`erase eval` and `erase compare`: measure any model, ours or anyone's, beside its base."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from erase.cli_load import CacheDir, ModelConfig, Revision, RunDevice, Variant, given

Suite = Annotated[
    str, typer.Option("--suite", help="Prompt list: `emoji`, `imagenette`, `i2p`, or `prompts` (your own, see --prompts).")
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline", help="Model before erasing, or a folder of its pictures. Default: the base recorded in the run."
    ),
]
Concepts = Annotated[
    list[str] | None,
    typer.Option("--concept", help="Concept that was erased; repeatable. Default: the one recorded in the run."),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="CSV file with a column `prompt`; the other columns of I2P are used if present."),
]
Num = Annotated[
    int | None,
    typer.Option(
        "--n",
        help="Rows of the list, evenly spaced, or pictures per cell or class. Default: emoji 4, imagenette 10, else all.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder, new or of an earlier evaluation. Default: runs/eval/NAME-SUITE.")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option("--dtype", help="Number format in which both models draw; the VAE stays in float32. Default: float32."),
]
Json = Annotated[bool, typer.Option("--json", help="Print results.json instead of the table.")]


def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A model, the folder of a run, or a folder of pictures.")],
    suite: Suite = "emoji",
    baseline: Baseline = None,
    concept: Concepts = None,
    prompts: Prompts = None,
    num: Num = None,
    out: Out = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps. Default: 20 for emoji, else 50.", min=1)] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale where the list has none. Default: 3 for emoji, else 7.5.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture where the list has none.", min=0)] = 5000,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Pictures per batch; affects speed and memory only. Default: 48, or the run's evaluation.batch_size (else 4) "
            "for models over 100 M parameters.",
            min=1,
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Draw the base's pictures again instead of using cached ones.")
    ] = False,
    inception: Annotated[Path | None, typer.Option(help="File of Inception weights, for FID and KID.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="File of torchvision's ResNet-50 weights, for imagenette.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP model, a folder or a Hub id.")] = None,
    few: Annotated[bool, typer.Option("--few", help="Compute FID even with fewer than 2,048 pictures.")] = False,
    dtype: Dtype = None,
    device: RunDevice = None,
    variant: Variant = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    model_config: ModelConfig = None,
    as_json: Json = False,
) -> None:
    """Measure a model beside its base: forgetting, retention, quality and collapse, with intervals and a report."""
    from erase.lock import locked_by_main
    from erase.quiet import quiet_libraries
    from erase.terminal import Bars, enough_memory, stoppable

    quiet_libraries()
    from erase.files import slug
    from eval.evaluate import EvaluationOptions
    from eval.evaluate import evaluate as run
    from eval.evaluation_report import write_evaluation
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
        load=given(dtype=dtype, device=device, variant=variant, revision=revision, cache_dir=cache_dir, config=model_config),
        cache=not no_cache,
        inception=inception,
        classifier=classifier,
        clip=clip,
        few=few,
    )
    folder = out or Path("runs") / "eval" / f"{slug(find_target(target).name)}-{suite}"
    with (
        stoppable(folder),
        enough_memory("give a smaller --batch-size, --dtype bfloat16, or --device cpu"),
        locked_by_main(folder),
    ):
        results = run(target, baseline, options, folder, Bars())
        if results is None:  # another process speaks
            return
        write_evaluation(folder, results)
    from eval.evaluation_report import table

    shown = json.dumps(results.model_dump(mode="json") | {"out": str(folder)})
    typer.echo(shown if as_json else table(results) + f"\nreport: {folder / 'report.html'}")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Two or more folders written by `erase eval` or `erase --concept`.")
    ],
    out: Annotated[Path, typer.Option(help="Page to write; must not exist yet.")] = Path("compare.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the columns as JSON instead of the table.")] = False,
) -> None:
    """Put several evaluations side by side, as a table and as a page."""
    from erase.files import require_new, write_text
    from eval.compare import columns, page, text, warnings

    if len(runs) < 2:
        raise ValueError(f"{runs[0]} alone cannot be compared: give two or more folders.")
    require_new(out)
    found = columns(runs)
    write_text(page(found), out)
    told = {"warnings": warnings(found)}  # of all columns together, beside each
    shown = json.dumps([column.model_dump(mode="json") | told for column in found])
    typer.echo(shown if as_json else text(found) + f"\npage: {out}")
