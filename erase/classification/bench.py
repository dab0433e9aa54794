"""The table of methods against retraining: the same original, split and seeds for all, settings frozen before it is run."""

import copy
import json
import logging
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import nn

from erase.classification.data import Dataset, device_of, load_dataset
from erase.classification.loop import train
from erase.classification.methods import METHODS, SECOND_ORDER, Unlearned, method_config, unlearn
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
SECTION = r"default|.+/(class|random-0\.1|random-0\.5)"
LABELS = {"original": "Original", "retrain": "Retrain"}
ROLES = ("original", "retrain", "method")
Result = dict[str, float | None]  # one model: ua, ra, ta, mia, mia_balanced, mia_auc, unseen_accuracy, seconds, gap


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
    """The recipe of this data and kind of forgetting in tuned.yaml (or `file`); its `default` where there is none.

    Raises ValueError for a file with neither, with another key than a section's name, or with an unknown setting or method.
    """
    recipes, place = read_yaml(file or TUNED), file or TUNED
    if wrong := [name for name in recipes if not re.fullmatch(SECTION, name)]:
        raise ValueError(
            f"{place}: {wrong[0]!r} is no section; accepted: default, DATA/class, DATA/random-0.1, DATA/random-0.5."
        )
    kind = "class" if forget_class is not None else f"random-{0.1 if (share or 0) < 0.25 else 0.5}"
    section = f"{data}/{kind}" if f"{data}/{kind}" in recipes else "default"
    if section not in recipes:
        raise ValueError(f"{place} has neither a section {data}/{kind} nor a default; it has {', '.join(recipes) or 'none'}.")
    try:
        recipe = Recipe.model_validate(recipes[section])
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{place}: {'.'.join(map(str, (section, *first['loc'])))}: {first['msg']}.") from error
    if unknown := [name for name in recipe.methods if name.removesuffix("+mask") not in METHODS]:
        raise ValueError(f"{place}: {section}: there is no method {unknown[0]!r}: choose one of {', '.join(METHODS)}.")
    return recipe


def config_for(recipe: Recipe, method: str, density: float = 0.5) -> ClassifierMethod:
    """The method's frozen settings; `NAME+mask` is NAME on the mask of that density.

    Retrain has the original's training settings and no others: raises ValueError where the recipe gives it some.
    """
    name = method.removesuffix("+mask")
    values = {"name": name, **recipe.methods.get(method, recipe.methods.get(name, {}))}
    if values["name"] != name:
        raise ValueError(f"the method is {name}: leave its setting `name` out.")
    if name == "retrain":
        if method != name:
            raise ValueError("retrain starts from nothing: it takes no mask.")
        keep = {"epochs", "learning_rate", "weight_decay"}
        if own := sorted(keep & values.keys()):
            raise ValueError(f"retrain is trained as the original is, its {own[0]} included: set that of the original instead.")
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


def streams(seed: int, role: str) -> list[int]:
    """Four seeds of one training: order of the forget rows, order of the retain rows, initial weights, all else.

    No two are alike, of whatever seed and role: draws of one stream would depend on those of another.
    """
    return np.random.SeedSequence([seed, ROLES.index(role)]).generate_state(4).tolist()


def fresh_model(dataset: Dataset, recipe: Recipe, seed: int) -> nn.Module:
    """An untrained model for the data, on their device."""
    model = build(recipe.original.architecture, tuple(dataset.inputs.shape[1:]), dataset.num_classes, seed)
    return model.to(dataset.inputs.device)


def train_original(dataset: Dataset, recipe: Recipe, seed: int) -> nn.Module:
    """The model trained on all training rows."""
    _, order, weights, _ = streams(seed, "original")
    model, settings = fresh_model(dataset, recipe, weights), recipe.original
    data = batches(dataset, torch.arange(len(dataset.labels)), settings.batch_size, order, settings.augment)
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
    size, role = (recipe.original.batch_size, "retrain") if name == "retrain" else (recipe.batch_size, "method")
    forget_order, retain_order, weights, draws = streams(seed, role)
    augment = recipe.original.augment and name not in SECOND_ORDER
    done = unlearn(
        model,
        config,
        forget=batches(dataset, split.forget, size, forget_order, augment),
        retain=batches(dataset, split.retain, size, retain_order, augment),
        mask=mask,
        fresh=lambda: fresh_model(dataset, recipe, weights),
        seed=draws,
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
    device: str = "cpu",
) -> dict[str, Any]:
    """The table as a mapping: its settings, and for each seed and method the figures.

    Written to `out` after each seed, and gone on from there if the file is of the same data, recipe and methods.
    """
    recipe, place = recipe or recipe_for(data, forget_class, forget_random), device_of(device)
    if out and out.is_dir():
        raise ValueError(f"{out} is a folder: --out is the JSON file to write.")
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
    table: dict[str, Any] = {**settings, "settings": hash_of(settings), "environment": environment(place), "seeds": {}}
    if out and out.is_file():
        table = _begun(out, table["settings"])
    for seed in seeds:
        if str(seed) in table["seeds"]:
            continue
        split = split_of(dataset, forget_class, forget_random, seed)
        results = dict(run_seed(dataset.to(place), split, recipe, methods, seed))
        for result in results.values():
            result["gap"] = average_gap(result, results["retrain"])
        table["seeds"][str(seed)] = results
        if out:
            write_json(table, out)
    return table


def _begun(out: Path, settings: str) -> dict[str, Any]:
    """The table in the file; raises ValueError unless it is one of the settings with that hash."""
    try:
        before = json.loads(out.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{out} is not a table of this command: {error}.") from error
    if not isinstance(before, dict) or before.get("settings") != settings:
        raise ValueError(f"{out} holds a table of other data, methods or settings: give another --out, or delete the file.")
    return before


def summary(table: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Per method and figure, (mean, standard deviation) over the seeds that have it; `ua_gap` ...: distances to Retrain."""
    found: dict[str, dict[str, list[float]]] = {}
    for results in table["seeds"].values():
        for method, result in results.items():
            figures = found.setdefault(method, {})
            for key, value in result.items():
                if value is None:
                    continue
                figures.setdefault(key, []).append(value)
                if key in METRICS and results["retrain"][key] is not None:
                    figures.setdefault(f"{key}_gap", []).append(abs(value - results["retrain"][key]))
    return {
        method: {key: (statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for key, v in figures.items()}
        for method, figures in found.items()
    }


def table_text(table: dict[str, Any]) -> str:
    """The table as the paper prints it: mean+-std (gap to Retrain), and beneath it what that means."""
    shares = {"mia_balanced": ("bal. acc.", ".3f"), "mia_auc": ("AUC", ".3f"), "unseen_accuracy": ("unseen", ".2f")}
    methods = summary(table)
    shares = {key: told for key, told in shares.items() if any(key in figures for figures in methods.values())}
    head = [
        "method",
        *(f"{key.upper()} (gap)" for key in METRICS),
        "avg. gap",
        *(name for name, _ in shares.values()),
        "RTE (s)",
    ]
    lines = [head]
    for method, figures in methods.items():
        cells = [
            f"{figures[k][0]:.2f}±{figures[k][1]:.2f} ({figures[k + '_gap'][0]:.2f})" if k + "_gap" in figures else "-"
            for k in METRICS
        ]
        cells += [f"{figures['gap'][0]:.2f}±{figures['gap'][1]:.2f}"]
        cells += [f"{figures[k][0]:{form}}" if k in figures else "-" for k, (_, form) in shares.items()]
        lines.append([LABELS.get(method, method), *cells, f"{figures['seconds'][0]:.2f}"])
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return f"{table['data']}, forget {table['forget']}, seeds {', '.join(table['seeds'])}\n{text}"


def environment(device: torch.device) -> dict[str, Any]:
    """What the seconds were measured on."""
    import platform
    from datetime import date

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"date": date.today().isoformat(), **versions, "threads": torch.get_num_threads(), "device": device.type}


ALL_METHODS = [name for name in METHODS if name != "retrain"]
