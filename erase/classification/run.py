"""One classifier made to forget: a folder with the original, the erased model, the mask and the figures."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from erase import __version__
from erase.classification.bench import Recipe, config_for, run_method, train_original
from erase.classification.data import Dataset
from erase.classification.metrics import average_gap, forgetting_row
from erase.classification.models import load_classifier, save_classifier
from erase.classification.split import Split
from erase.files import hash_of, sha256, write_json
from erase.saliency import Mask, density_of, load_mask, save_mask


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

    Nothing is written before everything has been done. Raises ValueError if `out` holds a result already, or the model was
    trained on other rows.
    """
    if (out / "results.json").exists():
        raise ValueError(f"{out} already holds a result; give another --out.")
    config = config_for(recipe, method)
    given, provenance = load_mask(mask) if mask else (None, {})
    original = load_for(model, dataset) if model else train_original(dataset, recipe, seed)
    erased, done = run_method(original, config, dataset, split, recipe, seed, mask=given)
    models = {"original": original, "erased": erased}
    if compare:
        models["retrained"], _ = run_method(original, config_for(recipe, "retrain"), dataset, split, recipe, seed)
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
    _write(out, models, done.mask, result, _architecture(model, recipe), dataset, provenance)
    return result


def load_for(path: Path, dataset: Dataset) -> nn.Module:
    """The classifier in a file; raises ValueError if the rows it was trained on are not the data set's."""
    model, provenance = load_classifier(path)
    if provenance.get("data_sha256") != dataset.sha256:
        raise ValueError(
            f"{path} was trained on rows with the hash {provenance.get('data_sha256', '?')[:12]}, {dataset.name} has "
            f"{dataset.sha256[:12]}: the data file or the choice of rows has changed since."
        )
    return model


def _architecture(model: Path | None, recipe: Recipe) -> str:
    return load_classifier(model)[1]["architecture"] if model else recipe.original.architecture


def _write(
    out: Path,
    models: dict[str, nn.Module],
    mask: Mask | None,
    result: dict[str, Any],
    architecture: str,
    dataset: Dataset,
    mask_provenance: dict[str, str],
) -> None:
    header = {
        "architecture": architecture,
        "shape": json.dumps(list(dataset.inputs.shape[1:])),
        "num_classes": str(dataset.num_classes),
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "erase_version": __version__,
    }
    save_classifier(models["original"], out / "original.safetensors", header)
    header |= {"base": sha256(out / "original.safetensors"), "forget": result["forget"]}
    if mask is not None:
        save_mask(mask, out / "mask.safetensors", mask_provenance | header)
    for name in models.keys() - {"original"}:
        method = "retrain" if name == "retrained" else result["method"]
        config = hash_of(result["settings"])
        save_classifier(models[name], out / f"{name}.safetensors", header | {"method": method, "config": config})
    write_json(result, out / "results.json")
