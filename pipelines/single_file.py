"""Stable Diffusion 1.x, 2.x and XL in one safetensors file, under the names of the original LDM and SGM code.

That is the layout that ComfyUI, A1111 and diffusers' `from_single_file` read. The names follow from the config (blocks,
layers per block, block types), so a model of any size goes the same way. Every tensor is given as parts that follow one
another along dimension 0: OpenCLIP's fused projections then need no copy of their own.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erase.files import stream_safetensors, write_text
from erase.reading import check_safetensors, parse_json

Parts = dict[str, list[Tensor]]

FORMAT = "erase-model-1"
CONFIGS = "erase.configs"
TOKENIZER_LIMIT = 256 * 1024
"""A tokenizer up to this many bytes goes into the header. CLIP's own has 1.5 MB and more: every interface has it, and every
interface reads the whole header of every file it lists."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _within(module: str, original: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{module}.{ours}": f"{original}.{theirs}" for ours, theirs in names.items()}


def unet_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Original module of each module of a UNet2DConditionModel; what lies below a module has the same name in both."""
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
        **_within("mid_block.resnets.0", "middle_block.0", _RESNET),
        **_within("mid_block.resnets.1", "middle_block.2", _RESNET),
    }
    num_blocks = len(config["down_block_types"])
    layers = config["layers_per_block"]
    layers = [layers] * num_blocks if isinstance(layers, int) else list(layers)
    number = 1
    for i in range(num_blocks):
        for j in range(layers[i]):
            modules |= _within(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0", _RESNET)
            modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if i < num_blocks - 1:
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, kind in enumerate(config["up_block_types"]):
        for j in range(layers[-1 - i] + 1):
            modules |= _within(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0", _RESNET)
            modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        behind = 2 if "CrossAttn" in kind else 1  # the upsampler stands behind the last layer's attention, if it has one
        modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{behind}.conv"
    return modules


def vae_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Original module of each module of an AutoencoderKL; the original counts the decoder's levels from the picture inwards."""
    num_blocks, layers = len(config["block_out_channels"]), config["layers_per_block"]
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        modules |= _within(side, side, {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"})
        modules |= _within(f"{side}.mid_block.resnets.0", f"{side}.mid.block_1", _VAE_RESNET)
        modules |= _within(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", _VAE_ATTENTION)
        modules |= _within(f"{side}.mid_block.resnets.1", f"{side}.mid.block_2", _VAE_RESNET)
    for i in range(num_blocks):
        for j in range(layers):
            modules |= _within(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}", _VAE_RESNET)
        modules[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"encoder.down.{i}.downsample.conv"
        level = num_blocks - 1 - i
        for j in range(layers + 1):
            modules |= _within(f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{level}.block.{j}", _VAE_RESNET)
        modules[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"decoder.up.{level}.upsample.conv"
    return modules


def open_clip_modules(num_layers: int) -> dict[str, str]:
    """OpenCLIP's module of each module of a CLIP text model, but for the fused and the transposed tensors."""
    modules = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    for i in range(num_layers):
        modules |= _within(f"encoder.layers.{i}", f"transformer.resblocks.{i}", _CLIP_LAYER)
    return modules


def _renamed(names: Iterable[str], modules: Mapping[str, str]) -> dict[str, str]:
    """Original name of each tensor, by the longest module that leads its name; raises ValueError if a tensor has no place."""
    originals = {}
    for name in names:
        words = name.split(".")
        cuts = (cut for cut in range(len(words) - 1, 0, -1) if ".".join(words[:cut]) in modules)
        if (cut := next(cuts, None)) is None:
            raise ValueError(
                f"{name} has no place in the single-file layout, which is that of Stable Diffusion 1.x, 2.x and XL; "
                "give --to diffusers."
            )
        originals[name] = ".".join([modules[".".join(words[:cut])], *words[cut:]])
    return originals


def unet_parts(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Parts:
    """A UNet's tensors under their original names."""
    names = _renamed(state, unet_modules(config))
    return {names[name]: [values] for name, values in state.items()}


def vae_parts(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Parts:
    """An autoencoder's tensors under their original names; its attention is 1 x 1 convolutions there."""
    names = _renamed(state, vae_modules(config))
    return {
        names[name]: [values[..., None, None] if ".attentions." in name and values.ndim == 2 else values]
        for name, values in state.items()
    }


def clip_parts(state: Mapping[str, Tensor]) -> Parts:
    """A CLIP text model's tensors as in 1.x: the names of transformers, with or without the newer versions' shorter ones."""
    state = _text_model(state)
    return {name if name.startswith("text_projection.") else f"text_model.{name}": [state[name]] for name in state}


def open_clip_parts(state: Mapping[str, Tensor], num_layers: int) -> Parts:
    """A CLIP text model's tensors in OpenCLIP's layout: query, key and value fused, the projection transposed."""
    rest = _text_model(state)
    parts = {"positional_embedding": [rest.pop("embeddings.position_embedding.weight")]}
    if "text_projection.weight" in rest:
        parts["text_projection"] = [rest.pop("text_projection.weight").T]
    for i in range(num_layers):
        for kind in ("weight", "bias"):
            fused = [rest.pop(f"encoder.layers.{i}.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
            parts[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = fused
    names = _renamed(rest, open_clip_modules(num_layers))
    return parts | {names[name]: [values] for name, values in rest.items()}


def _text_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # position_ids are 0, 1, 2 ...: a buffer of older versions, which every reader makes itself
    return {name.removeprefix("text_model."): values for name, values in state.items() if not name.endswith("position_ids")}


def original_layout(pipeline: Any) -> Parts:
    """Every tensor of a Stable Diffusion pipeline under its original name; raises ValueError if one has no place."""
    unet, vae, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    parts = _under("model.diffusion_model.", unet_parts(unet.config, unet.state_dict()))
    parts |= _under("first_stage_model.", vae_parts(vae.config, vae.state_dict()))
    if "text_encoder_2" in pipeline.components:
        second = pipeline.text_encoder_2
        parts |= _under("conditioner.embedders.0.transformer.", clip_parts(text_encoder.state_dict()))
        second_parts = open_clip_parts(second.state_dict(), second.config.num_hidden_layers)
        return parts | _under("conditioner.embedders.1.model.", second_parts) | _flags(pipeline.scheduler.config)
    if text_encoder.config.hidden_act == "gelu":  # 2.x has OpenCLIP's encoder, 1.x OpenAI's with its quick_gelu
        own = open_clip_parts(text_encoder.state_dict(), text_encoder.config.num_hidden_layers)
        return parts | _under("cond_stage_model.model.", own)
    return parts | _under("cond_stage_model.transformer.", clip_parts(text_encoder.state_dict()))


def _under(prefix: str, parts: Parts) -> Parts:
    return {prefix + name: values for name, values in parts.items()}


def _flags(scheduler: Mapping[str, Any]) -> Parts:
    """Empty tensors by which interfaces know an XL model that predicts velocity, and zero terminal SNR."""
    flags = {"v_pred": scheduler.get("prediction_type") == "v_prediction", "ztsnr": scheduler.get("rescale_betas_zero_snr")}
    return {name: [torch.empty(0)] for name, present in flags.items() if present and flags["v_pred"]}


_ARCHITECTURES = {  # (block_out_channels, cross_attention_dim, predicts velocity): (ModelSpec's name, the code it is from)
    ((320, 640, 1280, 1280), 768, False): ("stable-diffusion-v1", "https://github.com/CompVis/stable-diffusion"),
    ((320, 640, 1280, 1280), 1024, False): ("stable-diffusion-v2-512", "https://github.com/Stability-AI/stablediffusion"),
    ((320, 640, 1280, 1280), 1024, True): ("stable-diffusion-v2-768-v", "https://github.com/Stability-AI/stablediffusion"),
    ((320, 640, 1280), 2048, False): ("stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
    ((320, 640, 1280), 2048, True): ("stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
}


def modelspec(pipeline: Any, title: str) -> dict[str, str]:
    """ModelSpec 1.0.0 keys, which interfaces show; none for a size that has no name there. No date: same input, same bytes."""
    config, velocity = pipeline.unet.config, pipeline.scheduler.config.get("prediction_type") == "v_prediction"
    known = _ARCHITECTURES.get((tuple(config["block_out_channels"]), config["cross_attention_dim"], velocity))
    if known is None:
        return {}
    side = config["sample_size"] * 2 ** (len(pipeline.vae.config["block_out_channels"]) - 1)
    keys = {
        "sai_model_spec": "1.0.0",
        "architecture": known[0],
        "implementation": known[1],
        "title": title,
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if velocity else "epsilon",
    }
    return {f"modelspec.{key}": value for key, value in keys.items()}


def settle_tokenizers(pipeline: Any) -> None:
    """Take the last call's padding and truncation out of the tokenizers, which would write them: what is saved is the model."""
    for part, tokenizer in pipeline.components.items():
        backend = getattr(tokenizer, "backend_tokenizer", None) if part.startswith("tokenizer") else None
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()


def config_files(pipeline: Any) -> dict[str, str]:
    """Text of each config and of a small tokenizer's files, by its path in a diffusers folder, without where it came from."""
    settle_tokenizers(pipeline)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline.save_config(folder)
        for part, component in pipeline.components.items():
            if component is None or part == "safety_checker":
                continue
            if hasattr(component, "save_config"):
                component.save_config(folder / part)
            elif part.startswith("text_encoder"):
                component.config.save_pretrained(folder / part)
            elif part.startswith("tokenizer"):
                component.save_pretrained(folder / part)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    tokenizers = [path for path in texts if path.startswith("tokenizer")]
    if sum(len(texts[path].encode()) for path in tokenizers) > TOKENIZER_LIMIT:
        texts = {path: text for path, text in texts.items() if path not in tokenizers}
    return {path: _without_origin(text) if path.endswith(".json") else text for path, text in texts.items()}


def _without_origin(text: str) -> str:
    value = json.loads(text)
    for key in ("_name_or_path", "name_or_path"):
        value.pop(key, None)
    return json.dumps(value, indent=1, ensure_ascii=False)


def write_single_file(pipeline: Any, path: Path, provenance: dict[str, str], dtype: torch.dtype | None, title: str) -> None:
    """Write the whole pipeline as one safetensors file in the original layout, with one tensor at a time beside the model.

    The header holds the provenance, the configs (`unpack_configs` gives them back) and ModelSpec's keys.
    """
    metadata = {
        "format": "pt",
        "erase": json.dumps({**provenance, "format": FORMAT}, sort_keys=True),
        CONFIGS: json.dumps(config_files(pipeline), sort_keys=True),
        **modelspec(pipeline, title),
    }
    stream_safetensors(original_layout(pipeline), path, metadata, dtype)


def configs_in(path: Path) -> dict[str, str]:
    """The configs in a single file's header by their names; raises ValueError for a file that is not safetensors."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            texts = parse_json((file.metadata() or {}).get(CONFIGS, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a safetensors file that can be read: {error}.") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{path} has no texts as configs in its header.")
    return texts


def unpack_configs(path: Path, folder: Path) -> bool:
    """Write the configs in a single file's header as a folder for `from_single_file(config=...)`; False if it holds none."""
    texts = configs_in(path)
    for name, text in texts.items():
        place = PurePosixPath(name)
        inside = not place.is_absolute() and ".." not in place.parts and 1 <= len(place.parts) <= 2
        if not inside or not name.isprintable() or place.suffix not in (".json", ".txt"):
            raise ValueError(f"{path} has a config in its header that is not a plain file name: {name!r}.")
        write_text(text, folder / place)
    return bool(texts)


def schedule_in(path: Path) -> dict[str, Any]:
    """What a single file says of its noise schedule, in the words of a scheduler's config; {} if nothing.

    That is the scheduler's config in this tool's header, else what the tensors or ModelSpec's key that mark a model which
    predicts velocity stand for.
    """
    text = configs_in(path).get("scheduler/scheduler_config.json")
    if text is not None:
        told = parse_json(text)
        if not isinstance(told, dict):
            raise ValueError(f"{path} has a scheduler's config in its header that is none.")
        return told
    with safe_open(path, "pt") as file:
        marks, spec = set(file.keys()) & {"v_pred", "ztsnr"}, (file.metadata() or {}).get("modelspec.prediction_type")
    told = {"prediction_type": "v_prediction"} if "v_pred" in marks or spec == "v" else {}
    if told and "ztsnr" in marks:
        told |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return told
