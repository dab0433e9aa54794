"""`erase classifier`, `erase bench classifier`, `erase audit`: results to stdout, progress to stderr."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[str, typer.Option("--data", help="digits, breast_cancer, fashion, cifar10, or the path of an .npz file.")]
AuditData = Annotated[
    str | None, typer.Option("--data", help="As for `erase classifier` (digits); for linear models, if it moved since `fit`.")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the files of fashion or cifar10 are.")]
ForgetClass = Annotated[int | None, typer.Option("--forget-class", help="Forget all rows of this class.")]
ForgetRandom = Annotated[float | None, typer.Option("--forget-random", help="Forget this share of the rows, drawn at random.")]
ForgetIds = Annotated[str | None, typer.Option("--forget-ids", help="Forget these training rows: 17,42,100.")]
Architecture = Annotated[str | None, typer.Option("--architecture", help="mlp, cnn or resnet18 (mlp).")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes that the original and Retrain are trained for.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A YAML of settings instead of the shipped tuned.yaml.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything drawn at random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

bench_app = typer.Typer(help="Tables of methods against each other.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Put these commands into the command line."""
    app.command("classifier")(classifier)
    app.add_typer(bench_app, name="bench")


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--forget-ids {text!r} is not a list of row numbers such as 17,42,100.") from error


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
    from erase.classification.split import split_class, split_ids, split_random

    if sum(option is not None for option in (forget_class, share, ids)) != 1:
        raise ValueError("say what to forget with one of --forget-class, --forget-random and --forget-ids.")
    if ids is not None:
        return split_ids(dataset, _ids(ids))
    return split_class(dataset, forget_class) if forget_class is not None else split_random(dataset, share or 0.0, seed)


def classifier(
    data: Data = "digits",
    method: Annotated[str, typer.Option("--method", help="The method; NAME+mask is NAME on the mask.")] = "salun",
    forget_class: ForgetClass = None,
    forget_random: ForgetRandom = None,
    forget_ids: ForgetIds = None,
    model: Annotated[Path | None, typer.Option("--model", help="The model to change; none: one is trained.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="A mask of an earlier run, instead of a new one.")] = None,
    density: Annotated[float | None, typer.Option("--density", help="Share of the weights that may change.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the method.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also retrain without the rows, and print the gap.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write (runs/classifier-DATA-METHOD).")] = None,
    data_dir: DataDir = None,
    architecture: Architecture = None,
    epochs: Epochs = None,
    recipe_file: RecipeFile = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make an image classifier forget a class or rows: SalUn and its baselines."""
    from erase.classification.bench import config_for
    from erase.classification.run import forget
    from erase.config import override

    recipe = _recipe(data, forget_class, forget_random, recipe_file, {"architecture": architecture, "epochs": epochs})
    config = config_for(recipe, method)
    changes = override({} if density is None else {"density": density}, settings or [])
    recipe = recipe.model_copy(update={"methods": recipe.methods | {method: config.model_dump(exclude={"name"}) | changes}})
    dataset = _dataset(data, data_dir, recipe)
    split = _split(dataset, forget_class, forget_random, forget_ids, seed)
    out = out or Path("runs") / f"classifier-{dataset.name}-{method}"
    result = forget(dataset, split, recipe, method, out, model=model, mask=mask, compare=compare, seed=seed)
    typer.echo(json.dumps(result) if as_json else _text(result))


def _text(result: dict[str, Any]) -> str:
    lines = [f"{result['data']}, {result['forget']} forgotten with {result['method']}:", _HEAD]
    lines += [_figures(name, row) for name, row in result["models"].items()]
    if "gap" in result:
        lines.append(f"average gap to retraining: {result['gap']:.2f}")
    if result["density"] is not None:
        lines.append(f"weights outside the mask ({100 * (1 - result['density']):.1f} % of all) are unchanged bit for bit")
    return "\n".join([*lines, f"{result['seconds']:.2f} s; {result['out']}"])


_HEAD = f"  {'':<10}{'UA':>8}{'RA':>8}{'TA':>8}{'MIA':>8}{'bal. acc.':>11}{'AUC':>7}"


def _figures(name: str, row: dict[str, float]) -> str:
    shares = "".join(f"{row[key]:8.2f}" for key in ("ua", "ra", "ta", "mia"))
    return f"  {name:<10}{shares}{row['mia_balanced']:11.3f}{row['mia_auc']:7.3f}"


@bench_app.command("classifier")
def bench_classifier(
    data: Data = "digits",
    forget_class: ForgetClass = None,
    forget_random: ForgetRandom = None,
    methods: Annotated[str | None, typer.Option("--methods", help="ft,ft+mask,...,salun; none: all of them.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many: 0, 1, 2, ...")] = 3,
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file, written after each seed and gone on from.")] = None,
    data_dir: DataDir = None,
    architecture: Architecture = None,
    epochs: Epochs = None,
    recipe_file: RecipeFile = None,
    as_json: Json = False,
) -> None:
    """The table of unlearning methods against Retrain: mean +- std over seeds, (gap to Retrain)."""
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
    from erase.classification.cli_exact import linear_audit
    from erase.classification.run import load_for

    if is_linear(before):
        idle = {"--reference": reference, "--data-dir": data_dir, "--recipe": recipe_file}
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
    assert models[0] is not None and models[1] is not None
    result = compare(models[0], models[1], dataset, split, models[2], seed=seed)
    typer.echo(f"erase: {result['warning']}", err=True)
    if as_json:
        typer.echo(json.dumps(result))
        return
    lines = [f"{data}, {split.description}:", _HEAD, *(_figures(name, row) for name, row in result["models"].items())]
    figures = {key: value for key, value in result.items() if isinstance(value, float)}
    typer.echo("\n".join([*lines, *(f"  {key:<24}{value:12.4f}" for key, value in figures.items())]))
