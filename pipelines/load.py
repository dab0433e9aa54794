"""Loading a model: `emoji`, a diffusers folder, a single file in the original layout, or a hub id; safetensors only."""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, SchedulerMixin, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub.errors import StrictDataclassError

from erase.concepts import Vocabulary
from erase.config import LoadConfig
from erase.files import sha256
from erase.processes import num_processes, state
from erase.reading import parse_json, read_json
from pipelines.check import (
    PICKLES,
    check_configs,
    check_folder,
    check_links,
    check_single_file,
    hub_configs,
    safetensors_names,
    variant_of,
)
from pipelines.download import PARTS, download_configs, download_model
from pipelines.emoji import vocabulary as emoji
from pipelines.sdxl import StableDiffusionXL
from pipelines.single_file import configs_in, schedule_in, unpack_configs
from pipelines.stable_diffusion import StableDiffusion

EMOJI_WEIGHTS = Path(emoji.__file__).parent / "weights"
EMOJI_VOCABULARY = Vocabulary(
    objects=tuple(emoji.OBJECTS),
    styles=emoji.STYLES,
    plain_templates=emoji.PLAIN_TEMPLATES,
    styled_templates=emoji.STYLED_TEMPLATES,
    groups=emoji.GROUPS,
    order=emoji.NEAREST_STYLES,
)
FAMILIES: dict[str, tuple[type[Any], type[StableDiffusion]]] = {
    "StableDiffusionPipeline": (StableDiffusionPipeline, StableDiffusion),
    "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, StableDiffusionXL),
}
UNREADABLE = (
    *(OSError, LookupError, TypeError, ValueError, RuntimeError, AttributeError),
    *(StrictDataclassError, SingleFileComponentError),
)
"""What diffusers and transformers raise on files that are no model of theirs."""


def load(model: str, config: LoadConfig | None = None) -> StableDiffusion:
    """The model behind the Family protocol; raises ValueError with one sentence if it cannot be had."""
    config = config or LoadConfig()
    path = model_path(model, config)
    pipeline_class, family_class = FAMILIES[check_folder(path, config.variant) if path.is_dir() else check_single_file(path)]
    dtype = getattr(torch, config.dtype)
    with tempfile.TemporaryDirectory() as header:
        configs = path if path.is_dir() else configs_of(path, config, Path(header))
        try:
            if path.is_dir():
                pipeline = _from_folder(pipeline_class, path, dtype, config.variant)
            else:
                pipeline = _from_single_file(pipeline_class, path, dtype, configs)
        except UNREADABLE as error:
            if "meta tensor" in str(error):  # what diffusers makes of a part some of whose weights it did not find
                raise ValueError(f"{model} is not whole: some tensors of its UNet or VAE are missing.") from error
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{model} is not a Stable Diffusion pipeline that loads: {reason}") from error
    _check_pipeline(pipeline, model)
    if config.prediction_type:
        pipeline.scheduler = _with(pipeline.scheduler, {"prediction_type": config.prediction_type})
    pipeline = pipeline.to(device_of(config.device))
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    return family_class(pipeline, EMOJI_VOCABULARY if is_emoji(pipeline.tokenizer) else None)


def device_of(name: str) -> str:
    """The device to work on: for `auto` the first accelerator, or this process's own of several; else the CPU."""
    if name != "auto":
        if num_processes() > 1 and name != "cpu":
            raise ValueError(f"--device {name} would put all {num_processes()} processes on one: leave it out.")
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"there is no device {name!r} here: {str(error).splitlines()[0]}") from error
        return name
    if not torch.cuda.is_available():
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return str(state().device)


def model_path(model: str, config: LoadConfig | None = None) -> Path:
    """The folder or file of the model, downloaded or from the cache if it is a hub id; raises ValueError if there is none."""
    if model == "emoji":
        return EMOJI_WEIGHTS
    path = Path(model)
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return path
    if path.suffix in PICKLES:
        raise ValueError(
            f"{model} is a pickle, which can run code when it is loaded; convert it with diffusers' "
            "`convert_original_stable_diffusion_to_diffusers.py --checkpoint_path "
            f"{model} --to_safetensors --dump_path FOLDER` and give the folder."
        )
    if path.is_file():
        raise ValueError(f"{model} is no model: give a diffusers folder, a .safetensors checkpoint, or a hub id.")
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith((".safetensors", "/")):
        raise ValueError(
            f"there is no model {model}: give `emoji`, a diffusers folder, a .safetensors checkpoint, or a hub id "
            "such as owner/name."
        )
    return download_model(model, config or LoadConfig())


def _from_folder(pipeline_class: type[Any], folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    dtypes = {"default": dtype, "vae": torch.float32}
    return pipeline_class.from_pretrained(
        str(folder), dtype=dtypes, use_safetensors=True, local_files_only=True, variant=variant, **_left_out(pipeline_class)
    )


def _left_out(pipeline_class: type[Any]) -> dict[str, Any]:
    """The parts that a pipeline may have and that no picture depends on, as none: they are neither downloaded nor loaded."""
    left_out: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if pipeline_class is StableDiffusionPipeline:
        left_out |= {"safety_checker": None, "requires_safety_checker": False}
    return left_out


def configs_of(path: Path, config: LoadConfig, header: Path) -> Path:
    """The folder of the configs and tokenizers that a single file is loaded with; `header` is an empty folder to write to.

    They are in the file's header if this tool wrote it, but for a large tokenizer. What is not comes from `load.config`, else
    from the model that all of the file's family share theirs with. Raises ValueError if that is not at hand.
    """
    if not unpack_configs(path, header):
        found = _configs_given(path, config)
        check_configs(found)
        return found
    check_configs(header)
    index = read_json(header / "model_index.json")
    named = [part for part in ("tokenizer", "tokenizer_2") if isinstance(index.get(part), list) and index[part][1]]
    if missing := [part for part in named if not (header / part).is_dir()]:
        found = _configs_given(path, config, missing)
        for part in missing:
            if not (found / part).is_dir():
                raise ValueError(f"{found} has no folder {part}, which {path} needs: give another model of its kind.")
            shutil.copytree(found / part, header / part)
        check_configs(header)
    return header


def _configs_given(path: Path, config: LoadConfig, parts: Sequence[str] = ()) -> Path:
    """Where those parts' configs and tokenizers of a model of the file's family lie."""
    if config.config and Path(config.config).is_dir():
        check_links(Path(config.config))
        return Path(config.config)
    names = (config.config,) if config.config else hub_configs(path)
    if names[0].count("/") != 1:
        raise ValueError(f"load.config is {names[0]}: give the folder of a model, or its hub id such as owner/name.")
    return download_configs(names, config, str(path), parts)


def _from_single_file(pipeline_class: type[Any], path: Path, dtype: torch.dtype, configs: Path) -> Any:
    """By diffusers' own converter, in float32 until all but the VAE is cast.

    The noise schedule is what the file itself says it is: diffusers reads neither this tool's header nor the marks of XL models
    that predict velocity.
    """
    options = {"dtype": torch.float32, "config": str(configs), "local_files_only": True, **_left_out(pipeline_class)}
    pipeline = pipeline_class.from_single_file(str(path), **options)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if dtype != torch.float32 and (module := getattr(pipeline, part, None)):
            module.to(dtype)
    if told := schedule_in(path):
        named = getattr(diffusers, str(told.get("_class_name")), None)
        known = isinstance(named, type) and issubclass(named, SchedulerMixin)
        pipeline.scheduler = _with(pipeline.scheduler, told, named if known else None)
    return pipeline


def _with(scheduler: Any, told: dict[str, Any], kind: type[Any] | None = None) -> Any:
    """The scheduler, or one of another kind, with these settings; its own count as given, defaults too.

    Else a scheduler made from its config (the training's) would take the defaults of its own class for them.
    """
    own = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return (kind or type(scheduler)).from_config(own | told)


def _check_pipeline(pipeline: Any, model: str) -> None:
    channels = pipeline.unet.config.in_channels
    if channels != pipeline.vae.config.latent_channels:
        raise ValueError(f"{model}'s UNet takes {channels} channels: inpainting and edit models are not supported.")
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config).config
    if schedule.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"{model} predicts {schedule.prediction_type}: only epsilon and v_prediction can be trained.")
    if "beta_start" not in pipeline.scheduler.config:
        raise ValueError(f"{model} has the noise schedule {type(pipeline.scheduler).__name__}, which is not that of a DDPM.")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for name, values in getattr(pipeline, part).named_parameters() if getattr(pipeline, part, None) else ():
            if values.is_meta:
                raise ValueError(f"{model} is not whole: it lacks {part}.{name}.")
            if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
                raise ValueError(f"{model} is damaged: {part}.{name} has values that are not finite.")


def is_emoji(tokenizer: Any) -> bool:
    """Whether a tokenizer is the embedded model's: then the model is that one, or made from it."""
    return bool(tokenizer.get_vocab() == _own_vocabulary())


def made_from_emoji(model: str) -> bool:
    """Whether a name stands for the embedded model, or for a local folder or file made from it; nothing is loaded."""
    path = EMOJI_WEIGHTS if model == "emoji" else Path(model)
    text = ""
    if (path / "tokenizer" / "tokenizer.json").is_file():
        text = (path / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    elif path.is_file() and path.suffix == ".safetensors" and safetensors_names(path):
        text = configs_in(path).get("tokenizer/tokenizer.json", "")
    return bool(text) and _vocabulary(text) == _own_vocabulary()


def _own_vocabulary() -> Any:
    return _vocabulary((EMOJI_WEIGHTS / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))


def _vocabulary(text: str) -> Any:
    try:
        return parse_json(text)["model"]["vocab"]
    except (ValueError, KeyError, TypeError):
        return None


def model_hash(model: str, config: LoadConfig | None = None) -> str:
    """SHA-256 over the weights and configs that make the pictures; of a single file, its own."""
    path = model_path(model, config)
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for part in PARTS:
        for file in _taken(path / part, config.variant if config else None):
            digest.update(f"{part}/{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _taken(part: Path, variant: str | None) -> list[Path]:
    """The files of a part that make its pictures, in order: without the other variants' weights, where it has several."""
    files = [file for file in sorted(part.glob("*")) if file.suffix in (".safetensors", ".json", ".txt")]
    variants = {variant_of(file) for file in files if file.suffix == ".safetensors"}
    if len(variants) < 2 or variant not in variants:
        return files
    return [file for file in files if ".safetensors" not in file.name or variant_of(file) == variant]
