"""`erase classifier`, `erase bench classifier`, `erase audit`: results to stdout, progress to stderr."""

import json
import logging
import re
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[str, typer.Option("--data", help="digits, breast_cancer, fashion, cifar10, or the path of an .npz file.")]
AuditData = Annotated[
    str | None, typer.Option("--data", help="As for `erase classifier`. Default: digits; for linear models, the data of `fit`.")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder with the files of fashion or cifar10.")]
ForgetClass = Annotated[int | None, typer.Option("--forget-class", help="Forget all rows of this class.")]
ForgetRandom = Annotated[float | None, typer.Option("--forget-random", help="Forget this share of the rows, drawn at random.")]
ForgetIds = Annotated[str | None, typer.Option("--forget-ids", help="Forget these training rows: 17,42,100-120.")]
Architecture = Annotated[str | None, typer.Option("--architecture", help="mlp, cnn or resnet18. Default: mlp.")]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Epochs of the original and of Retrain. Default: the recipe's.")
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, ... or auto.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file of settings. Default: the shipped tuned.yaml.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Random seed.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

bench_app = typer.Typer(help="Compare methods in tables.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Put these commands into the command line."""
    app.command("classifier")(classifier)
    app.add_typer(bench_app, name="bench")


def _recipe(data: str, forget_class: int | None, share: float | None, file: Path | None, changes: dict[str, Any]) -> Any:
    """The recipe with what the options change of the original."""
    from erase.classification.bench import Recipe, recipe_for

    recipe = recipe_for(data, forget_class, share, file)
    changes = {key: value for key, value in changes.items() if value is not None}
    return Recipe.model_validate(recipe.model_dump() | {"original": recipe.original.model_dump() | changes})


def _dataset(data: str, data_dir: Path | None, recipe: Any) -> Any:
    from erase.classification.data import load_dataset

    return load_dataset(data, data_dir, **recipe.rows.model_dump())


def _split(dataset: Any, forget_class: int | None, share: float | None, ids: str | None, seed: int) -> Any:
    from erase.classification.rows import parse_ids
    from erase.classification.split import split_class, split_ids, split_random

    if sum(option is not None for option in (forget_class, share, ids)) != 1:
        raise ValueError("say what to forget with one of --forget-class, --forget-random and --forget-ids.")
    if ids is not None:
        return split_ids(dataset, parse_ids(ids))
    return split_class(dataset, forget_class) if forget_class is not None else split_random(dataset, share or 0.0, seed)


def classifier(
    data: Data = "digits",
    method: Annotated[str, typer.Option("--method", help="Forgetting method; NAME+mask restricts NAME to the mask.")] = "salun",
    forget_class: ForgetClass = None,
    forget_random: ForgetRandom = None,
    forget_ids: ForgetIds = None,
    model: Annotated[Path | None, typer.Option("--model", help="Model to change. Default: one is trained first.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Mask of an earlier run. Default: a new one is computed.")] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="Fraction of weights allowed to change, in (0, 1]. Default: the method's.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the method; repeatable.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also retrain without the rows, and print the gap.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: runs/classifier-DATA-METHOD-TARGET.")
    ] = None,
    data_dir: DataDir = None,
    architecture: Architecture = None,
    epochs: Epochs = None,
    recipe_file: RecipeFile = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make an image classifier forget a class or rows: SalUn and its baselines."""
    from erase.classification.bench import config_for
    from erase.classification.data import device_of
    from erase.classification.run import forget, trained_as
    from erase.config import override

    given = {"architecture": architecture, "epochs": epochs}
    recipe = _recipe(data, forget_class, forget_random, recipe_file, given)
    if model is not None:
        recipe = trained_as(model, recipe, given)
    changes = override({} if density is None else {"density": density}, settings or [])
    if mask is not None and "density" in changes:
        raise ValueError("a mask has its density: leave --density or --mask out.")
    usual = recipe.methods.get(method, recipe.methods.get(method.removesuffix("+mask"), {}))
    recipe = recipe.model_copy(update={"methods": recipe.methods | {method: usual | changes}})
    config_for(recipe, method)  # a mistake shows before data are read
    place = device_of(device)
    dataset = _dataset(data, data_dir, recipe)
    split = _split(dataset, forget_class, forget_random, forget_ids, seed)
    out = out or Path("runs") / f"classifier-{dataset.name}-{method}-{_target(split, forget_ids)}"
    result = forget(dataset.to(place), split, recipe, method, out, model=model, mask=mask, compare=compare, seed=seed)
    typer.echo(json.dumps(result) if as_json else _text(result))


def _target(split: Any, ids: str | None) -> str:
    """What is forgotten, as a part of a folder's name: `class-3`, `random-0.1-seed-0`, `rows-1f2e3d4c`."""
    from erase.files import hash_of

    return f"rows-{hash_of(split.forget.tolist())[:8]}" if ids is not None else re.sub("[, ]+", "-", split.description)


def _text(result: dict[str, Any]) -> str:
    lines = [f"{result['data']}, {result['forget']} forgotten with {result['method']}:", *_table(result["models"])]
    if "gap" in result:
        lines.append(f"average gap to retraining: {result['gap']:.2f}")
    if result["density"] is not None:
        lines.append(f"weights outside the mask ({100 * (1 - result['density']):.1f} % of all) are unchanged bit for bit")
    return "\n".join([*lines, f"{result['seconds']:.2f} s; {result['out']}"])


_COLUMNS = {key: (key.upper(), 8, 2) for key in ("ua", "ra", "ta", "mia")}
_COLUMNS |= {"mia_balanced": ("bal. acc.", 11, 3), "mia_auc": ("AUC", 7, 3), "unseen_accuracy": ("unseen", 8, 2)}


def _table(rows: dict[str, dict[str, float | None]]) -> list[str]:
    """A line of figures for each model, `-` for what there are too few rows for, and what that means."""
    columns = {
        key: told
        for key, told in _COLUMNS.items()
        if key != "unseen_accuracy" or any(row[key] is not None for row in rows.values())
    }
    lines = ["  " + " " * 10 + "".join(f"{head:>{width}}" for head, width, _ in columns.values())]
    for name, row in rows.items():
        cells = [(row[key], width, digits) for key, (_, width, digits) in columns.items()]
        lines.append(
            f"  {name:<10}" + "".join(f"{'-':>{w}}" if value is None else f"{value:{w}.{d}f}" for value, w, d in cells)
        )
    if any(row[key] is None for row in rows.values() for key in columns):
        lines.append("  -: membership inference needs two or more forgotten rows, and two or more unseen ones to compare with")
    return lines


@bench_app.command("classifier")
def bench_classifier(
    data: Data = "digits",
    forget_class: ForgetClass = None,
    forget_random: ForgetRandom = None,
    methods: Annotated[str | None, typer.Option("--methods", help="Methods, e.g. ft,ft+mask,salun. Default: all.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds: 0, 1, 2, ...")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file, written after each seed; an existing one is continued.")
    ] = None,
    data_dir: DataDir = None,
    architecture: Architecture = None,
    epochs: Epochs = None,
    recipe_file: RecipeFile = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compare unlearning methods with Retrain: mean +- std over seeds, and the gap to Retrain."""
    from erase.classification.bench import ALL_METHODS, bench, table_text

    logging.getLogger("erase.classification.bench").setLevel(logging.INFO)
    recipe = _recipe(data, forget_class, forget_random, recipe_file, {"architecture": architecture, "epochs": epochs})
    table = bench(
        data,
        forget_class=forget_class,
        forget_random=forget_random,
        methods=methods.split(",") if methods else ALL_METHODS,
        seeds=list(range(seeds)),
        out=out,
        data_dir=data_dir,
        recipe=recipe,
        device=device,
    )
    typer.echo(json.dumps(table) if as_json else table_text(table))


def audit(
    before: Annotated[Path, typer.Argument(help="The model from before: original.safetensors, or a linear model's file.")],
    after: Annotated[Path, typer.Argument(help="The model from after: erased.safetensors, or that linear model's.")],
    reference: Annotated[Path | None, typer.Option("--reference", help="A model retrained without the rows.")] = None,
    data: AuditData = None,
    forget_class: ForgetClass = None,
    forget_random: ForgetRandom = None,
    forget_ids: ForgetIds = None,
    data_dir: DataDir = None,
    recipe_file: RecipeFile = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare versions of a classifier, and warn of what two of them reveal together."""
    from erase.classification.audit import audit as compare
    from erase.classification.certified import is_linear
    from erase.classification.cli_linear import linear_audit
    from erase.classification.run import check_versions, load_for

    if is_linear(before):
        idle: dict[str, Any] = {"--reference": reference, "--data-dir": data_dir, "--recipe": recipe_file}
        idle |= {"--forget-class": forget_class, "--forget-random": forget_random, "--forget-ids": forget_ids}
        if named := [option for option, value in idle.items() if value is not None]:
            raise ValueError(f"{', '.join(named)} would have no effect: two linear models say themselves which rows went.")
        linear_audit(before, after, data, as_json)
        return
    data = data or "digits"
    recipe = _recipe(data, forget_class, forget_random, recipe_file, {})
    dataset = _dataset(data, data_dir, recipe)
    split = _split(dataset, forget_class, forget_random, forget_ids, seed)
    models = [load_for(path, dataset) if path else None for path in (before, after, reference)]
    check_versions(before, after, reference, split)
    assert models[0] is not None and models[1] is not None
    result = compare(models[0], models[1], dataset, split, models[2], seed=seed)
    typer.echo(f"erase: {result['warning']}", err=True)
    if as_json:
        typer.echo(json.dumps(result))
        return
    lines = [f"{data}, {split.description}:", *_table(result["models"])]
    figures = {key: value for key, value in result.items() if isinstance(value, float)}
    typer.echo("\n".join([*lines, *(f"  {key:<24}{value:12.4f}" for key, value in figures.items())]))
