"""Loading a model by name: `emoji`, a diffusers folder, or a hub id; safetensors only."""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from erase.concepts import Vocabulary
from pipelines.emoji import vocabulary as emoji
from pipelines.stable_diffusion import StableDiffusion

EMOJI_WEIGHTS = Path(emoji.__file__).parent / "weights"
EMOJI_VOCABULARY = Vocabulary(
    objects=tuple(emoji.OBJECTS),
    styles=emoji.STYLES,
    plain_templates=emoji.PLAIN_TEMPLATES,
    styled_templates=emoji.STYLED_TEMPLATES,
    groups=emoji.GROUPS,
)
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


def model_folder(model: str) -> Path | None:
    """The folder that the name stands for, or None if it looks like a hub id; raises ValueError if it is neither."""
    if model == "emoji":
        return EMOJI_WEIGHTS
    path = Path(model)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{model} has no model_index.json: it is not a diffusers folder.")
        return path
    if path.suffix in PICKLES:
        raise ValueError(
            f"{model} is a pickle, which can run code when it is loaded; convert it with diffusers' "
            "`convert_original_stable_diffusion_to_diffusers.py --to_safetensors` and give the folder."
        )
    if path.is_file():
        raise ValueError(f"{model} is a file; give a diffusers folder (one with model_index.json) or a hub id.")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ValueError(f"there is no model {model}: give `emoji`, a diffusers folder, or a hub id such as owner/name.")
    return None


def load(model: str, device: str = "cpu") -> StableDiffusion:
    """The model in float32 on the device; raises ValueError with one sentence if it cannot be had."""
    folder = model_folder(model)
    if folder is not None:
        check_folder(folder)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(folder or model),
            dtype=torch.float32,
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=folder is not None,
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if folder is None:
            raise ValueError(
                f"{model} is not in the local cache and could not be downloaded; on a machine with network access run "
                f"`hf download {model}`, then give the folder as --model."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{model} is not a Stable Diffusion pipeline that loads: {reason}") from error
    channels = pipeline.unet.config.in_channels
    if channels != pipeline.vae.config.latent_channels:
        raise ValueError(f"{model}'s UNet takes {channels} channels: inpainting and edit models are not supported.")
    pipeline = pipeline.to(device)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    known = EMOJI_VOCABULARY if is_emoji(folder) else None
    return StableDiffusion(pipeline, known)


def is_emoji(folder: Path | None) -> bool:
    """Whether the folder holds the embedded model or one made from it: its tokenizer is the embedded one."""
    if folder is None:
        return False
    own, other = EMOJI_WEIGHTS / "tokenizer", folder / "tokenizer"
    files = [f for f in ("vocab.json", "tokenizer.json") if (own / f).is_file() and (other / f).is_file()]
    return bool(files) and all((own / f).read_bytes() == (other / f).read_bytes() for f in files)


def check_folder(folder: Path) -> None:
    """Raise ValueError if a part that the pipeline needs is missing or only there as a pickle."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise ValueError(f"{folder} is a {index.get('_class_name')}; this version erases from StableDiffusionPipeline.")
    for part in ("unet", "vae", "text_encoder"):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no folder {part}: is the download complete?")
        if not any((folder / part).glob("*.safetensors")):
            pickles = [p.name for p in (folder / part).iterdir() if p.suffix in PICKLES]
            why = f"only the pickle {pickles[0]}, which is refused" if pickles else "no weights"
            raise ValueError(f"{folder / part} has {why}: a .safetensors file is needed.")


def model_hash(model: str) -> str:
    """SHA-256 over the weights and configs that make the pictures (for a hub id, over its cached files)."""
    import hashlib

    from erase.files import sha256

    folder = model_folder(model)
    if folder is None:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, local_files_only=True))
    digest = hashlib.sha256()
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        for path in sorted((folder / part).glob("*")):
            if path.suffix in (".safetensors", ".json", ".txt"):
                digest.update(f"{part}/{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()
