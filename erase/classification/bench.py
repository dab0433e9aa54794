"""The table of methods against retraining: the same original, split and seeds for all, settings frozen before it is run."""

import copy
import json
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import nn

from erase.classification.data import Dataset, load_dataset
from erase.classification.loop import train
from erase.classification.methods import METHODS, Unlearned, method_config, unlearn
from erase.classification.methods.base import ClassifierMethod
from erase.classification.metrics import METRICS, average_gap, forgetting_row
from erase.classification.models import build
from erase.classification.split import Batches, Split, split_class, split_random
from erase.files import hash_of, write_json
from erase.methods.base import Config
from erase.reading import read_yaml
from erase.saliency import Mask

logger = logging.getLogger(__name__)

TUNED = Path(__file__).parent / "tuned.yaml"
LABELS = {"original": "Original", "retrain": "Retrain"}
Result = dict[str, float]  # one model: ua, ra, ta, mia, mia_balanced, mia_auc, seconds, gap


class Rows(Config):
    num_train: int | None = Field(None, ge=2)
    """Training rows, the first of the file; none: all."""
    num_test: int | None = Field(None, ge=2)
    """Test rows, the first of the file; none: all."""
    size: int | None = Field(None, ge=1)
    """Pictures are averaged down to this many pixels a side; none: as they are."""


class Original(Config):
    architecture: str = "mlp"
    """mlp, cnn or resnet18."""
    epochs: int = Field(40, ge=1)
    """Passes over the training rows, for the original and for Retrain."""
    learning_rate: float = Field(0.1, gt=0)
    """SGD's first learning rate."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty."""
    batch_size: int = Field(64, ge=1)
    """Rows per step."""
    augment: bool = False
    """Flip and shift pictures, in every training (for CIFAR-10)."""


class Recipe(Config):
    rows: Rows = Rows()
    """Which rows are used."""
    original: Original = Original()
    """How the original, and Retrain, are trained."""
    batch_size: int = Field(64, ge=1)
    """Forget rows, and retain rows, per step of the other methods."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of the methods; `ft+mask` are those of ft on the mask. What is not named has its default."""


def recipe_for(data: str, forget_class: int | None, share: float | None, file: Path | None = None) -> Recipe:
    """The recipe of this data and kind of forgetting in tuned.yaml (or `file`); its `default` where there is none."""
    recipes = read_yaml(file or TUNED)
    kind = "class" if forget_class is not None else f"random-{0.1 if (share or 0) < 0.25 else 0.5}"
    try:
        return Recipe.model_validate(recipes.get(f"{data}/{kind}", recipes.get("default", {})))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{file or TUNED}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def config_for(recipe: Recipe, method: str, density: float = 0.5) -> ClassifierMethod:
    """The method's frozen settings; `NAME+mask` is NAME on the mask of that density."""
    name = method.removesuffix("+mask")
    values = {"name": name, **recipe.methods.get(method, recipe.methods.get(name, {}))}
    if name == "retrain":
        if method != name:
            raise ValueError("retrain starts from nothing: it takes no mask.")
        keep = {"epochs", "learning_rate", "weight_decay"}
        values |= recipe.original.model_dump(include=keep)
    if method != name:
        values.setdefault("density", density)
    return method_config(values)


def split_of(dataset: Dataset, forget_class: int | None, share: float | None, seed: int) -> Split:
    """The split that the options ask for."""
    if (forget_class is None) == (share is None):
        raise ValueError("give one of --forget-class and --forget-random.")
    return split_class(dataset, forget_class) if forget_class is not None else split_random(dataset, share or 0.0, seed)


def batches(dataset: Dataset, rows: torch.Tensor, batch_size: int, seed: int, augment: bool = False) -> Batches:
    """Shuffled batches of these training rows."""
    return Batches(dataset.inputs[rows], dataset.labels[rows], batch_size, torch.Generator().manual_seed(seed), augment)


def fresh_model(dataset: Dataset, recipe: Recipe, seed: int) -> nn.Module:
    """An untrained model for the data."""
    return build(recipe.original.architecture, tuple(dataset.inputs.shape[1:]), dataset.num_classes, seed)


def train_original(dataset: Dataset, recipe: Recipe, seed: int) -> nn.Module:
    """The model trained on all training rows."""
    model, settings = fresh_model(dataset, recipe, seed), recipe.original
    data = batches(dataset, torch.arange(len(dataset.labels)), settings.batch_size, seed, settings.augment)
    train(model, data, epochs=settings.epochs, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    return model


def run_method(
    original: nn.Module,
    config: ClassifierMethod,
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    seed: int,
    mask: Mask | None = None,
) -> tuple[nn.Module, Unlearned]:
    """(the unlearned copy of the original, seconds and mask). Retrain draws its weights from another seed than Original."""
    model = copy.deepcopy(original)
    name = config.name  # type: ignore[attr-defined]
    size, other = (recipe.original.batch_size, seed + 10_000) if name == "retrain" else (recipe.batch_size, seed + 20_000)
    augment = recipe.original.augment
    done = unlearn(
        model,
        config,
        forget=batches(dataset, split.forget, size, other, augment),
        retain=batches(dataset, split.retain, size, other + 1, augment),
        mask=mask,
        fresh=lambda: fresh_model(dataset, recipe, other),
        seed=other,
    )
    return model, done


def run_seed(dataset: Dataset, split: Split, recipe: Recipe, methods: list[str], seed: int) -> Iterator[tuple[str, Result]]:
    """(method, its figures): Original and Retrain first, then every method from a copy of the same original."""
    began = time.monotonic()
    original = train_original(dataset, recipe, seed)
    seconds = time.monotonic() - began
    for method in ["original", "retrain", *[m for m in methods if m not in LABELS]]:
        if method == "original":
            model = original
        else:
            model, done = run_method(original, config_for(recipe, method), dataset, split, recipe, seed)
            seconds = done.seconds
        row: Result = forgetting_row(model, dataset, split, seed=seed).asdict() | {"seconds": seconds}
        logger.info("seed %d, %s: %s", seed, method, row)
        yield method, row


def bench(
    data: str,
    *,
    forget_class: int | None = None,
    forget_random: float | None = None,
    methods: list[str],
    seeds: list[int],
    out: Path | None = None,
    data_dir: Path | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """The table as a mapping: its settings, and for each seed and method the figures.

    Written to `out` after each seed, and gone on from there if the file is of the same data, recipe and methods.
    """
    recipe = recipe or recipe_for(data, forget_class, forget_random)
    for method in methods:
        config_for(recipe, method)  # a mistake in a name shows before the first training
    rows = recipe.rows
    dataset = load_dataset(data, data_dir, num_train=rows.num_train, num_test=rows.num_test, size=rows.size)
    forget = f"class {forget_class}" if forget_class is not None else f"random {forget_random}"
    settings = {
        "data": data,
        "data_sha256": dataset.sha256,
        "forget": forget,
        "methods": methods,
        "recipe": recipe.model_dump(),
    }
    table: dict[str, Any] = {**settings, "settings": hash_of(settings), "environment": environment(), "seeds": {}}
    if out and out.is_file():
        before = json.loads(out.read_text(encoding="utf-8"))
        if before.get("settings") != table["settings"]:
            raise ValueError(f"{out} holds a table of other data, methods or settings: give another --out, or delete the file.")
        table = before
    for seed in seeds:
        if str(seed) in table["seeds"]:
            continue
        split = split_of(dataset, forget_class, forget_random, seed)
        results = dict(run_seed(dataset, split, recipe, methods, seed))
        for result in results.values():
            result["gap"] = average_gap(result, results["retrain"])
        table["seeds"][str(seed)] = results
        if out:
            write_json(table, out)
    return table


def summary(table: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Per method and figure, (mean, standard deviation) over the seeds; `ua_gap` and so on are distances to Retrain."""
    per_method: dict[str, list[Result]] = {}
    for results in table["seeds"].values():
        for method, result in results.items():
            gaps = {f"{key}_gap": abs(result[key] - results["retrain"][key]) for key in METRICS}
            per_method.setdefault(method, []).append(result | gaps)
    return {
        method: {
            key: (statistics.fmean(r[key] for r in rows), statistics.stdev(r[key] for r in rows) if len(rows) > 1 else 0.0)
            for key in rows[0]
        }
        for method, rows in per_method.items()
    }


def table_text(table: dict[str, Any]) -> str:
    """The table as the paper prints it: mean+-std (gap to Retrain), and beneath it what that means."""
    head = ["method", *(f"{key.upper()} (gap)" for key in METRICS), "avg. gap", "bal. acc.", "AUC", "RTE (s)"]
    lines = [head]
    for method, figures in summary(table).items():
        cells = [f"{figures[k][0]:.2f}±{figures[k][1]:.2f} ({figures[k + '_gap'][0]:.2f})" for k in METRICS]
        cells += [f"{figures['gap'][0]:.2f}±{figures['gap'][1]:.2f}"]
        cells += [f"{figures[k][0]:.3f}" for k in ("mia_balanced", "mia_auc")] + [f"{figures['seconds'][0]:.2f}"]
        lines.append([LABELS.get(method, method), *cells])
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return f"{table['data']}, forget {table['forget']}, seeds {', '.join(table['seeds'])}\n{text}"


def environment() -> dict[str, Any]:
    """What the seconds were measured on."""
    import platform
    from datetime import date

    today = date.today().isoformat()
    return {"date": today, "python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}


ALL_METHODS = [name for name in METHODS if name != "retrain"]
