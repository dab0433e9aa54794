"""What a model's files are, read from the files themselves; and the sentence for each that is no model of ours."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

SD, XL = KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
UNET = "model.diffusion_model."


def check_folder(folder: Path, variant: str | None = None) -> str:
    """The pipeline's class; raises ValueError if a part that it needs is missing, damaged or only there as a pickle."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} has no model_index.json: it is not a diffusers folder.")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind = index.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'model_index.json'} is damaged; is the download complete?") from error
    if kind not in KINDS:
        raise ValueError(f"{folder} is a {kind}; this version erases from {' and '.join(KINDS)}.")
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
    if variant and not any(f".{variant}." in p.name for p in found):
        raise ValueError(f"{part} has no weights of the variant {variant!r}, only {', '.join(p.name for p in found[:3])}.")
    if not variant and not plain:
        raise ValueError(f"{part} has {found[0].name} alone: give --variant {found[0].name.split('.')[1]}.")
    for index in part.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())):
            if Path(name).name != name or not (part / name).is_file():
                raise ValueError(f"{part} lacks {name}, which its index names: is the download complete?")
    for path in found:
        safetensors_names(path)


def safetensors_names(path: Path) -> set[str]:
    """The tensors' names; raises ValueError if the file is empty, cut short or not safetensors."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise ValueError(f"{path} is not a whole safetensors file ({size:,} bytes): download it again.") from error


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
    with safe_open(path, "pt") as file:
        channels = file.get_slice(f"{UNET}input_blocks.0.0.weight").get_shape()[1]
    if channels != 4:
        raise ValueError(f"{path}'s UNet takes {channels} channels: inpainting and edit models are not supported.")
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return XL
    if any(name.startswith("conditioner.") for name in names):
        raise ValueError(f"{path} is an SDXL refiner, which takes no part in what is drawn at first: give the base model.")
    return SD


def hub_config(path: Path) -> str:
    """The hub id that diffusers takes a checkpoint's configs and tokenizer from."""
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        text = f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
        width = file.get_slice(text).get_shape()[1] if text in names else 0
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return "stabilityai/stable-diffusion-xl-base-1.0"
    return "stabilityai/stable-diffusion-2-1" if width == 1024 else "stable-diffusion-v1-5/stable-diffusion-v1-5"
