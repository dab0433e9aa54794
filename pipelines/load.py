"""Loading a model: `emoji`, a diffusers folder, a single file in the original layout, or a hub id; safetensors only."""

import hashlib
import tempfile
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
from erase.reading import parse_json
from pipelines.check import PICKLES, check_configs, check_folder, check_single_file, hub_config, safetensors_names, variant_of
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
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def load(model: str, config: LoadConfig | None = None) -> StableDiffusion:
    """The model behind the Family protocol; raises ValueError with one sentence if it cannot be had."""
    config = config or LoadConfig()
    path = model_path(model, config)
    pipeline_class, family_class = FAMILIES[check_folder(path, config.variant) if path.is_dir() else check_single_file(path)]
    dtype = getattr(torch, config.dtype)
    try:
        if path.is_dir():
            pipeline = _from_folder(pipeline_class, path, dtype, config.variant)
        else:
            pipeline = _from_single_file(pipeline_class, path, dtype, config)
    except UNREADABLE as error:
        if "meta tensor" in str(error):  # what diffusers makes of a part some of whose weights it did not find
            raise ValueError(f"{model} is not whole: some tensors of its UNet or VAE are missing.") from error
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{model} is not a Stable Diffusion pipeline that loads: {reason}") from error
    _check_pipeline(pipeline, model)
    if config.prediction_type:
        pipeline.scheduler = _with(pipeline.scheduler, {"prediction_type": config.prediction_type})
    pipeline.vae.to(torch.float32)
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
    return _from_hub(model, config or LoadConfig())


def _from_hub(model: str, config: LoadConfig) -> Path:
    """The snapshot folder of a hub id: configs, tokenizers, and weights as safetensors of the asked variant."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    weights = f"*.{config.variant}.safetensors" if config.variant else "*.safetensors"
    patterns = ["model_index.json", *(f"{part}/{name}" for part in PARTS for name in ("*.json", "*.txt", weights))]
    ignored = [] if config.variant else ["*.fp16.safetensors", "*.non_ema.safetensors"]
    try:
        folder = snapshot_download(
            model,
            revision=config.revision,
            cache_dir=config.cache_dir,
            allow_patterns=patterns,
            ignore_patterns=ignored,
        )
    except HFValidationError as error:
        raise ValueError(f"there is no model {model}: it is no file or folder here, and no hub id has such a name.") from error
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        revision = f" --revision {config.revision}" if config.revision else ""
        raise ValueError(
            f"there is no folder or file {model} here; as a hub id it is not in the local cache and could not be downloaded "
            f"({type(error).__name__}): if it is one, run `hf download {model}{revision} --local-dir {model.split('/')[1]}` "
            "on a machine with network access, copy that folder here and give it instead."
        ) from error
    return Path(folder)


def _from_folder(pipeline_class: type[Any], folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    left_out = _left_out(pipeline_class)
    return pipeline_class.from_pretrained(
        str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant, **left_out
    )


def _left_out(pipeline_class: type[Any]) -> dict[str, Any]:
    """The parts that a pipeline may have and that no picture depends on, as none: they are neither downloaded nor loaded."""
    left_out: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if pipeline_class is StableDiffusionPipeline:
        left_out |= {"safety_checker": None, "requires_safety_checker": False}
    return left_out


def _from_single_file(pipeline_class: type[Any], path: Path, dtype: torch.dtype, config: LoadConfig) -> Any:
    """By diffusers' own converter; configs come from the file's header if this tool wrote it, else from hub or cache.

    The noise schedule is what the file itself says it is: diffusers reads neither this tool's header nor the marks of XL models
    that predict velocity.
    """
    options = {"dtype": dtype, "cache_dir": config.cache_dir, **_left_out(pipeline_class)}
    with tempfile.TemporaryDirectory() as folder:
        if unpack_configs(path, Path(folder)) and (Path(folder) / "tokenizer").is_dir():
            check_configs(Path(folder))
            options |= {"config": folder, "local_files_only": True}
        try:
            pipeline = pipeline_class.from_single_file(str(path), **options)
        except OSError as error:
            raise ValueError(
                f"its configs and tokenizer are not at hand: on a machine with network access run `hf download "
                f"{hub_config(path)} --exclude '*.safetensors' '*.bin' '*.ckpt'`, or convert it there and give the folder"
            ) from error
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
