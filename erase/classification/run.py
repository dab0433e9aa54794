"""One classifier made to forget: a folder with the original, the erased model, the mask and the figures."""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from erase import __version__
from erase.classification.bench import Original, Recipe, config_for, run_method, train_original
from erase.classification.data import Dataset
from erase.classification.metrics import average_gap, forgetting_row
from erase.classification.models import load_classifier, save_classifier
from erase.classification.split import Split
from erase.files import hash_of, sha256, write_json
from erase.lock import locked
from erase.saliency import Mask, density_of, load_mask, save_mask

logger = logging.getLogger(__name__)


def forget(
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    method: str,
    out: Path,
    *,
    model: Path | None = None,
    mask: Path | None = None,
    compare: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Train or load the original, unlearn, measure, and write original, mask, erased (and retrained) safetensors, results.json.

    Nothing is written before everything has been done, and the folder is locked. Raises ValueError if `out` holds a result
    already, or if the model, or the mask, is of other rows. `recipe` says how a given model was trained (see `trained_as`).
    """
    with locked(out):
        if (out / "results.json").exists():
            raise ValueError(f"{out} already holds a result; give another --out.")
        return _forget(dataset, split, recipe, method, out, model, mask, compare, seed)


def _forget(
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    method: str,
    out: Path,
    model: Path | None,
    mask: Path | None,
    compare: bool,
    seed: int,
) -> dict[str, Any]:
    config, retrain = config_for(recipe, method), config_for(recipe, "retrain")
    given, made_for = _mask_for(mask, dataset, split) if mask else (None, None)
    original = load_for(model, dataset) if model else train_original(dataset, recipe, seed)
    erased, done = run_method(original, config, dataset, split, recipe, seed, mask=given)
    models = {"original": original, "erased": erased}
    if compare:
        models["retrained"], _ = run_method(original, retrain, dataset, split, recipe, seed)
    rows = {name: forgetting_row(each, dataset, split, seed=seed).asdict() for name, each in models.items()}
    result: dict[str, Any] = {
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "forget": split.description,
        "num_forget": len(split.forget),
        "num_retain": len(split.retain),
        "method": method,
        "settings": config.model_dump(),
        "density": density_of(done.mask) if done.mask else None,
        "seed": seed,
        "models": rows,
        "seconds": done.seconds,
        "out": str(out),
    }
    if compare:
        result["gap"] = average_gap(rows["erased"], rows["retrained"])
    if made_for is not None:
        result["mask_made_to_forget"] = made_for.get("forget")
    configs = {"erased": hash_of(result["settings"]), "retrained": hash_of(retrain.model_dump())}
    _write(out, models, done.mask, result, recipe, dataset, made_for, configs, rows_named(split))
    return result


def _mask_for(path: Path, dataset: Dataset, split: Split) -> tuple[Mask, dict[str, str]]:
    """A mask and where it comes from; raises ValueError if it was made on other rows, and says so if to forget others."""
    mask, made_for = load_mask(path)
    if made_for.get("data_sha256", dataset.sha256) != dataset.sha256:
        raise ValueError(f"{path} was made on other rows than those of {dataset.name}: leave --mask out to make a new one.")
    if made_for.get("forget", split.description) != split.description:
        logger.warning("%s was made to forget %s; now it serves to forget %s.", path, made_for["forget"], split.description)
    return mask, made_for


def trained_as(path: Path, recipe: Recipe, given: dict[str, Any]) -> Recipe:
    """The recipe with the settings that the model in the file was trained with, so that Retrain is trained alike.

    Raises ValueError if one that was `given` (None: it was not) is another. An older file says its architecture alone.
    """
    _, header = load_classifier(path)
    if method := header.get("method"):
        logger.warning(
            "%s was made by %s to forget %s: it serves as the original here, and Retrain still sees those rows.",
            path,
            method,
            header.get("forget"),
        )
    try:
        known = Original.model_validate_json(header["original"]).model_dump() if "original" in header else {}
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: its training settings are {error.errors()[0]['msg']}.") from error
    if not known:
        known = {"architecture": header["architecture"]}
        logger.warning("%s does not say how it was trained: Retrain is trained as the recipe and the options say.", path)
    for name, value in given.items():
        if value is not None and known.get(name, value) != value:
            raise ValueError(f"--{name} is {value}, and {path} was trained with {known[name]}: leave --{name} or --model out.")
    original = Original.model_validate(recipe.original.model_dump() | known)
    return recipe.model_copy(update={"original": original})


def rows_named(split: Split) -> str:
    """A hash of which training rows are forgotten: a description as short as `4 rows by number` does not say which."""
    return hash_of(split.forget.tolist())


def check_versions(before: Path, after: Path, reference: Path | None, split: Split) -> None:
    """Raise ValueError where the files' headers say that they are not what `erase audit` is told they are.

    `before` must be no unlearned model, `after` and `reference` made from it, and to forget the rows of the split. What a file
    does not say (those of older versions name no rows) is not held against it.
    """
    headers = {path: load_classifier(path)[1] for path in (before, after, reference) if path}
    if method := headers[before].get("method"):
        raise ValueError(
            f"{before} was made by {method} to forget {headers[before].get('forget')}: give the model from before."
        )
    base = sha256(before)
    for path in (after, reference):
        if path is None:
            continue
        header = headers[path]
        if header.get("forget", split.description) != split.description:
            raise ValueError(f"{path} was made to forget {header['forget']}, and the options say {split.description}.")
        if header.get("forget_rows", rows_named(split)) != rows_named(split):
            raise ValueError(f"{path} was made to forget other rows than the options name ({split.description}).")
        if header.get("base", base) != base:
            raise ValueError(
                f"{path} was not made from {before}: its header names the model {header['base'][:12]} as its base."
            )


def load_for(path: Path, dataset: Dataset) -> nn.Module:
    """The classifier in a file; raises ValueError if the rows it was trained on are not the data set's."""
    model, provenance = load_classifier(path)
    if provenance.get("data_sha256") != dataset.sha256:
        raise ValueError(
            f"{path} was trained on rows with the hash {provenance.get('data_sha256', '?')[:12]}, {dataset.name} has "
            f"{dataset.sha256[:12]}: the data file or the choice of rows has changed since."
        )
    return model.to(dataset.inputs.device)


def _write(
    out: Path,
    models: dict[str, nn.Module],
    mask: Mask | None,
    result: dict[str, Any],
    recipe: Recipe,
    dataset: Dataset,
    made_for: dict[str, str] | None,
    configs: dict[str, str],
    forgotten: str,
) -> None:
    header = {
        "architecture": recipe.original.architecture,
        "original": recipe.original.model_dump_json(),
        "shape": json.dumps(list(dataset.inputs.shape[1:])),
        "num_classes": str(dataset.num_classes),
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "erase_version": __version__,
    }
    save_classifier(models["original"], out / "original.safetensors", header)
    header |= {"base": sha256(out / "original.safetensors"), "forget": result["forget"], "forget_rows": forgotten}
    if mask is not None:
        save_mask(mask, out / "mask.safetensors", header if made_for is None else made_for)
    for name in models.keys() - {"original"}:
        method = "retrain" if name == "retrained" else result["method"]
        save_classifier(models[name], out / f"{name}.safetensors", header | {"method": method, "config": configs[name]})
    write_json(result, out / "results.json")
