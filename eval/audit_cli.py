"""`erase audit`: the release gate of an erased model; of two versions of a classifier, what they reveal together."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from erase.classification.cli import AuditData, DataDir, ForgetClass, ForgetIds, ForgetRandom, Json, RecipeFile, Seed
from erase.classification.cli import audit as audit_classifier
from erase.cli_load import CacheDir, ModelConfig, Revision, RunDevice, Variant, given

CLASSIFIERS = "Two versions of a classifier"
Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL", help="Folder of a run, or any erased model; or the file of a classifier before forgetting."
    ),
]
After = Annotated[Path | None, typer.Argument(metavar="[AFTER]", help="Classifiers only: the file after forgetting.")]
Baseline = Annotated[
    str | None, typer.Option("--baseline", help="Model before erasing. Default: the base recorded in the run.")
]
Retrain = Annotated[str | None, typer.Option("--retrain", help="Model trained without the concept: a run or a model folder.")]
Gate = Annotated[Path | None, typer.Option("--gate", help="YAML file of limits. Default: configs/audit/gate.yaml.")]
Only = Annotated[
    str | None,
    typer.Option(
        "--only", help="Probes to run, e.g. mask,prompts,collapse; or all. Default: all that do not repeat the erasure."
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Run each probe with few tries (1-2 min). Not sufficient for a release decision.")
]
Claims = Annotated[
    list[str] | None,
    typer.Option(
        "--claim",
        "--mask",
        help="Weights that may differ from the base: mask.safetensors, patch.safetensors, `cross-attention`, or a pattern such "
        "as `unet.*attn2*`; repeatable. Default: the run's own mask.",
    ),
]
Concepts = Annotated[
    list[str] | None,
    typer.Option("--concept", help="Concept that was erased; repeatable. Default: the one recorded in the run."),
]
Kind = Annotated[str | None, typer.Option("--kind", help="object, style, person or other; only for a model that is not a run.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PROBE.KEY=VALUE",
        help="Any setting of a probe, e.g. `prompts.tries=5`; repeatable. `scene.batch_size` (pictures per batch) affects "
        "speed and memory only. Default: 48, or the run's evaluation.batch_size (else 4) for models over 100 M parameters.",
    ),
]
Packs = Annotated[
    list[Path] | None,
    typer.Option(
        "--pack", help="CSV file of further prompts to try, as Ring-A-Bell, MMA-Diffusion and P4D publish them; repeatable."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the audit. Default: RUN/audit, or runs/audit/NAME.")]
ClassifierWeights = Annotated[
    Path | None, typer.Option("--classifier", help="File of torchvision's ResNet-50 weights, for Imagenette's classes.")
]
Reference = Annotated[
    Path | None,
    typer.Option("--reference", help="Classifier retrained without the rows.", rich_help_panel=CLASSIFIERS),
]


def audit(
    target: Target,
    after: After = None,
    baseline: Baseline = None,
    retrain: Retrain = None,
    gate: Gate = None,
    only: Only = None,
    quick: Quick = False,
    claim: Claims = None,
    concept: Concepts = None,
    kind: Kind = None,
    settings: Settings = None,
    pack: Packs = None,
    out: Out = None,
    classifier: ClassifierWeights = None,
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="Ignore cached results and recompute everything; use this for runs you did not make."),
    ] = False,
    device: RunDevice = None,
    variant: Variant = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    model_config: ModelConfig = None,
    as_json: Json = False,
    reference: Reference = None,
    data: AuditData = None,
    forget_class: ForgetClass = None,
    forget_random: ForgetRandom = None,
    forget_ids: ForgetIds = None,
    data_dir: DataDir = None,
    recipe_file: RecipeFile = None,
    seed: Seed = 0,
) -> None:
    """Attack an erased model and its base: the release gate, one line per probe, exit 1 if a limit is broken.

    Passing means that the concept is suppressed under these probes. With two files, compares versions of a classifier.
    """
    loads = {"device": device, "variant": variant, "revision": revision, "cache_dir": cache_dir, "config": model_config}
    gated = (baseline, retrain, gate, only, claim, concept, kind, settings, pack, *loads.values(), out, classifier)
    rows = (data, forget_class, forget_random, forget_ids, data_dir)
    if after is not None:
        if any(gated) or quick or no_cache:
            raise ValueError("two files are compared as classifiers: the options of the release gate do not apply to them.")
        audit_classifier(Path(target), after, reference, *rows, recipe_file, seed, as_json)
        return
    if reference or forget_class is not None or forget_random is not None or forget_ids:
        raise ValueError("classifiers are compared in pairs: give the file before forgetting and the file after.")
    chosen = tuple(name.strip() for name in (only or "").split(",") if name.strip())
    if only is not None and not chosen:
        raise ValueError("--only names no probe: name some (mask,prompts), or leave it out for the whole gate.")
    packs = [f"prompts.packs={json.dumps([str(path) for path in pack])}"] if pack else []
    about: dict[str, Any] = {"baseline": baseline, "retrain": retrain, "kind": kind}
    about |= {"concepts": tuple(concept or ()), "claim": tuple(claim or ())}
    about["asked"] = given(**loads)
    options: dict[str, Any] = {"only": chosen, "quick": quick, "cache": not no_cache, "classifier": classifier}
    options["beside"] = not quick  # a second process takes a while to start
    record = release_gate(target, about, gate, options | {"settings": (*(settings or []), *packs)}, out, as_json)
    if not record.passed:
        raise typer.Exit(1)


def release_gate(
    target: str, about: dict[str, Any], gate: Path | None, options: dict[str, Any], out: Path | None, as_json: bool
) -> Any:
    """Audit, write the page, print the table or the JSON; the record."""
    from erase.lock import locked_by_main
    from erase.quiet import quiet_libraries
    from erase.recipes import config_folder
    from erase.terminal import Bars, enough_memory, stoppable

    quiet_libraries()
    from erase.files import slug
    from erase.folder import require_recorded_base
    from eval.audit import audit
    from eval.audit_limits import read_limits
    from eval.audit_options import AuditOptions
    from eval.audit_place import place_for
    from eval.audit_report import table, write_page
    from eval.audit_subject import find_subject
    from pipelines.load import model_hash

    limits = read_limits(gate or config_folder() / "audit" / "gate.yaml")
    asked = AuditOptions(**options)
    subject = find_subject(target, **about)
    if subject.run and subject.config and subject.base == subject.config.model:
        require_recorded_base(subject.run, subject.base, model_hash(subject.base, subject.config.load))
    usual = out or (subject.run / "audit" if subject.run else Path("runs") / "audit" / slug(subject.name))
    folder, lacking = place_for(usual, subject, asked, limits)
    if lacking:
        typer.echo(
            f"erase: the audit in {usual} is kept, since it has {lacking}; this smaller one is written to {folder}.", err=True
        )
    less = "set a smaller scene.batch_size, or the probe's rows_at_once, with --set, or give --device cpu"
    with stoppable(folder), enough_memory(less), locked_by_main(folder):
        record = audit(subject, asked, limits, folder, Bars())
        write_page(folder, record)
    if subject.run is not None and folder == subject.run / "audit":
        from erase.report_again import report_again

        if not report_again(subject.run, Bars()):
            typer.echo(
                "erase: the run's report.html cannot be written again here (other versions or settings made it, or its base is "
                "not at hand): it is unchanged, and may tell of an earlier audit; README.md has this one's section, and the "
                "audit has its own page.",
                err=True,
            )
    shown = json.dumps(record.model_dump(mode="json") | {"out": str(folder)})
    typer.echo(shown if as_json else table(record) + f"\nreport: {folder / 'audit.html'}")
    return record
