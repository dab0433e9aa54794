"""The original layout: names and shapes at full size against diffusers' readers and counts by hand; the same pictures back."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures as full
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines.emoji.denoiser import build_scheduler
from pipelines.load import load
from pipelines.single_file import (
    Parts,
    config_files,
    original_layout,
    unet_parts,
    unpack_configs,
    vae_parts,
    write_single_file,
)


def joined(parts: Parts) -> dict[str, Tensor]:
    return {name: torch.cat(values) if len(values) > 1 else values[0] for name, values in parts.items()}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in state.items()}


def pipeline_of(unet: dict[str, Any], **text_encoders: Any) -> Any:
    """What `original_layout` looks at, on the meta device."""
    parts = {"unet": full.unet(unet), "vae": full.vae(), **text_encoders}
    scheduler = SimpleNamespace(config={"prediction_type": "epsilon"})
    return SimpleNamespace(**parts, components=parts, scheduler=scheduler)


FAMILIES: dict[str, Callable[[], Any]] = {
    "v1": lambda: pipeline_of(full.UNET_1, text_encoder=full.text_encoder(full.CLIP_L)),
    "v2": lambda: pipeline_of(full.UNET_2, text_encoder=full.text_encoder(full.OPEN_CLIP_H)),
    "xl_base": lambda: pipeline_of(
        full.UNET_XL,
        text_encoder=full.text_encoder(full.CLIP_L),
        text_encoder_2=full.text_encoder(full.OPEN_CLIP_G, projection=True),
    ),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, Tensor]]:
    """(diffusers' name of the family, pipeline at full size, its original layout), without weights."""
    pipeline = FAMILIES[request.param]()
    return request.param, pipeline, joined(original_layout(pipeline))


def test_diffusers_reads_back_exactly_the_unet_and_the_vae(family: tuple[str, Any, dict[str, Tensor]]) -> None:
    name, pipeline, original = family
    assert infer_diffusers_model_type(original) == name
    unet = convert_ldm_unet_checkpoint(dict(original), pipeline.unet.config)
    assert shapes(unet) == shapes(pipeline.unet.state_dict())
    vae = convert_ldm_vae_checkpoint(dict(original), pipeline.vae.config)
    assert shapes(vae) == shapes(pipeline.vae.state_dict())


def test_diffusers_reads_back_exactly_the_text_encoders(family: tuple[str, Any, dict[str, Tensor]]) -> None:
    name, pipeline, original = family

    def plain(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {key.removeprefix("text_model."): shape for key, shape in shapes(state).items()}

    first = pipeline.text_encoder
    own = dict(original)
    back = convert_open_clip_checkpoint(first, own) if name == "v2" else convert_ldm_clip_checkpoint(own)
    assert plain(back) == plain(first.state_dict())
    if name == "xl_base":
        second = pipeline.text_encoder_2
        back = convert_open_clip_checkpoint(second, dict(original), prefix="conditioner.embedders.1.model.")
        assert plain(back) == plain(second.state_dict())


# From the published checkpoints: (UNet weights, UNet tensors, VAE tensors, text tensors). The text encoder's: 12 layers x 16
# tensors + 2 embeddings + 2 of the last norm in 1.x; 12 a layer once query, key and value are one, and XL's projection.
COUNTS = {
    "v1": (859_520_964, 686, 248, 12 * 16 + 4),
    "v2": (865_910_724, 686, 248, 23 * 12 + 4),
    "xl_base": (2_567_463_684, 1680, 248, 12 * 16 + 4 + 32 * 12 + 5),
}


def test_the_numbers_of_tensors_and_weights_are_the_published_ones(family: tuple[str, Any, dict[str, Tensor]]) -> None:
    name, _, original = family
    groups = {"model.diffusion_model.": [], "first_stage_model.": [], "text": []}
    for key, values in original.items():
        groups[next((prefix for prefix in groups if key.startswith(prefix)), "text")].append(values)
    unet, vae, text = groups.values()
    assert (sum(values.numel() for values in unet), len(unet), len(vae), len(text)) == COUNTS[name]


# Names and shapes as they stand in the published files, one of each kind of place.
U, V, T, O = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model.model."  # noqa: E741
X, Y = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
PLACES: dict[str, dict[str, tuple[int, ...]]] = {
    "v1": {
        U + "time_embed.0.weight": (1280, 320),
        U + "time_embed.2.bias": (1280,),
        U + "input_blocks.0.0.weight": (320, 4, 3, 3),
        U + "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
        U + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        U + "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        U + "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        U + "input_blocks.5.1.proj_in.weight": (640, 640, 1, 1),
        U + "input_blocks.8.0.emb_layers.1.weight": (1280, 1280),
        U + "input_blocks.9.0.op.bias": (1280,),
        U + "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        U + "middle_block.0.in_layers.0.weight": (1280,),
        U + "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        U + "middle_block.2.out_layers.0.bias": (1280,),
        U + "output_blocks.0.0.in_layers.0.weight": (2560,),
        U + "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        U + "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        U + "output_blocks.8.2.conv.bias": (640,),
        U + "output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        U + "output_blocks.11.1.proj_out.bias": (320,),
        U + "out.0.weight": (320,),
        U + "out.2.weight": (4, 320, 3, 3),
        V + "encoder.conv_in.weight": (128, 3, 3, 3),
        V + "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        V + "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        V + "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        V + "encoder.norm_out.bias": (512,),
        V + "decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        V + "decoder.mid.attn_1.norm.weight": (512,),
        V + "decoder.mid.block_2.conv2.weight": (512, 512, 3, 3),
        V + "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        V + "decoder.up.1.upsample.conv.weight": (256, 256, 3, 3),
        V + "decoder.up.3.block.2.conv1.weight": (512, 512, 3, 3),
        V + "decoder.conv_out.weight": (3, 128, 3, 3),
        V + "quant_conv.weight": (8, 8, 1, 1),
        V + "post_quant_conv.weight": (4, 4, 1, 1),
        T + "text_model.embeddings.token_embedding.weight": (49408, 768),
        T + "text_model.embeddings.position_embedding.weight": (77, 768),
        T + "text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        T + "text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
        T + "text_model.final_layer_norm.bias": (768,),
    },
    "v2": {
        U + "input_blocks.1.1.proj_in.weight": (320, 320),
        U + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        U + "output_blocks.11.1.transformer_blocks.0.norm1.bias": (320,),
        O + "positional_embedding": (77, 1024),
        O + "token_embedding.weight": (49408, 1024),
        O + "transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
        O + "transformer.resblocks.22.attn.in_proj_bias": (3072,),
        O + "transformer.resblocks.22.attn.out_proj.weight": (1024, 1024),
        O + "transformer.resblocks.3.ln_1.weight": (1024,),
        O + "transformer.resblocks.3.mlp.c_fc.weight": (4096, 1024),
        O + "transformer.resblocks.3.mlp.c_proj.weight": (1024, 4096),
        O + "ln_final.weight": (1024,),
    },
    "xl_base": {
        U + "label_emb.0.0.weight": (1280, 2816),
        U + "label_emb.0.2.weight": (1280, 1280),
        U + "input_blocks.2.0.in_layers.0.weight": (320,),
        U + "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        U + "input_blocks.8.1.transformer_blocks.9.ff.net.2.weight": (1280, 5120),
        U + "middle_block.1.transformer_blocks.9.norm3.weight": (1280,),
        U + "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        U + "output_blocks.5.1.transformer_blocks.1.attn1.to_out.0.bias": (640,),
        U + "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        U + "output_blocks.8.0.out_layers.3.weight": (320, 320, 3, 3),
        X + "text_model.embeddings.position_embedding.weight": (77, 768),
        Y + "positional_embedding": (77, 1280),
        Y + "text_projection": (1280, 1280),
        Y + "transformer.resblocks.9.mlp.c_proj.bias": (1280,),
        Y + "transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
    },
}


def test_names_and_shapes_are_those_of_the_published_files(family: tuple[str, Any, dict[str, Tensor]]) -> None:
    name, _, original = family
    have = shapes(original)
    assert {key: have.get(key) for key in PLACES[name]} == PLACES[name]
    assert not any(".attentions." in key or ".resnets." in key or "self_attn.out_proj" in key for key in have if key[0] != "c")


def test_the_text_projection_is_turned_and_query_key_value_follow_one_another(tokenizer: CLIPTokenizer) -> None:
    """By hand: OpenCLIP computes x @ text_projection, transformers x @ weight.T; rows of q, then of k, then of v."""
    pipeline = tiny_xl(tokenizer)
    second = pipeline.text_encoder_2
    original = joined(original_layout(pipeline))
    assert torch.equal(original[Y + "text_projection"], second.text_projection.weight.T)
    attention = second.text_model.encoder.layers[1].self_attn
    fused = original[Y + "transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(fused[:12], attention.q_proj.weight)
    assert torch.equal(fused[12:24], attention.k_proj.weight)
    assert torch.equal(fused[24:], attention.v_proj.weight)


def test_an_unknown_tensor_is_refused_and_never_left_out() -> None:
    unet = full.unet(full.UNET_1)
    state = unet.state_dict() | {"down_blocks.0.motion_modules.0.weight": torch.empty(1, device="meta")}
    with pytest.raises(ValueError, match=r"motion_modules\.0\.weight has no place in the single-file layout"):
        unet_parts(unet.config, state)
    with pytest.raises(ValueError, match="no place"):
        vae_parts(full.vae().config, {"encoder.mid_block.temporal.weight": torch.empty(1)})


def tiny_text(width: int, act: str, size: int, projection: bool = False) -> torch.nn.Module:
    model_class = CLIPTextModelWithProjection if projection else CLIPTextModel
    text_encoder = model_class(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=24,
            projection_dim=10,
            hidden_act=act,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )
    with torch.no_grad():
        for parameter in text_encoder.parameters():
            parameter.normal_(0, 0.5)
    return text_encoder


def tiny_unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
        **more,
    )


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        sample_size=16,
    )


def tiny_2(tokenizer: CLIPTokenizer, prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    """2.x in small: OpenCLIP, linear projections, velocity."""
    torch.manual_seed(1)
    scheduler = DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction_type)
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text(16, "gelu", len(tokenizer)),
        tokenizer=tokenizer,
        unet=tiny_unet(
            cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_xl(tokenizer: CLIPTokenizer, **scheduler: Any) -> StableDiffusionXLPipeline:
    """XL in small: two text encoders of different width, pooled embeddings, a block without attention first."""
    torch.manual_seed(2)
    size = len(tokenizer)
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text(8, "quick_gelu", size),
        text_encoder_2=tiny_text(12, "gelu", size, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=tiny_unet(
            cross_attention_dim=20,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=10 + 6 * 4,
        ),
        scheduler=DDIMScheduler.from_config(build_scheduler().config, **scheduler),
    )


def picture(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    side = pipeline.unet.config.sample_size * 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    drawn = pipeline(
        "a dog", num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="np", height=side, width=side
    )
    return drawn.images


@pytest.mark.parametrize("kind", ["emoji", "1.x", "2.x", "xl"])
def test_the_single_file_draws_the_same_pixels(
    kind: str, tiny_pipeline: StableDiffusionPipeline, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """Bit for bit in float32, loaded offline by diffusers with the configs of the folder, or those of the file's own header."""
    made: dict[str, Callable[[], Any]] = {
        "emoji": lambda: load("emoji").pipeline,
        "1.x": lambda: tiny_pipeline,
        "2.x": lambda: tiny_2(tokenizer),
        "xl": lambda: tiny_xl(tokenizer),
    }
    pipeline = made[kind]()
    pipeline.save_pretrained(tmp_path / "folder")
    pipeline = type(pipeline).from_pretrained(tmp_path / "folder")
    write_single_file(pipeline, tmp_path / "model.safetensors", {}, None, "t")
    assert unpack_configs(tmp_path / "model.safetensors", tmp_path / "configs")
    configs = tmp_path / ("folder" if kind == "1.x" else "configs")
    loaded = type(pipeline).from_single_file(str(tmp_path / "model.safetensors"), config=str(configs), local_files_only=True)
    expected = picture(pipeline)
    assert expected.std() > 0.001
    assert np.array_equal(picture(loaded), expected)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if part in pipeline.components:
            before, after = getattr(pipeline, part).state_dict(), getattr(loaded, part).state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before), part


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_has_the_asked_dtype_and_the_nearest_value(
    dtype: torch.dtype, tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    write_single_file(tiny_pipeline, tmp_path / "file", {}, dtype, "t")
    original, written = joined(original_layout(tiny_pipeline)), load_file(tmp_path / "file")
    assert written.keys() == original.keys()
    for name, values in written.items():
        assert values.dtype == dtype
        assert torch.equal(values, original[name].to(dtype)), name


def test_a_channels_last_model_writes_the_same_bytes(tiny_pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    write_single_file(tiny_pipeline, tmp_path / "plain", {"base": "b"}, None, "t")
    parts = {
        name: copy.deepcopy(getattr(tiny_pipeline, name)).to(memory_format=torch.channels_last) for name in ("unet", "vae")
    }
    other = StableDiffusionPipeline(**(tiny_pipeline.components | parts), requires_safety_checker=False)
    write_single_file(other, tmp_path / "last", {"base": "b"}, None, "t")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "last").read_bytes()


def test_the_header_says_where_the_file_is_from(tiny_pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    write_single_file(tiny_pipeline, tmp_path / "file", {"base": "abc", "concept": "dog — 犬"}, torch.float16, "t")
    with safe_open(tmp_path / "file", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["erase"]) == {"base": "abc", "concept": "dog — 犬", "format": "erase-model-1"}
    assert not any(key.startswith("modelspec.") for key in metadata), "a tiny model is no stable-diffusion-v1"


@pytest.mark.parametrize(
    ("unet", "prediction_type", "expected"),
    [
        (full.UNET_1, "epsilon", ("stable-diffusion-v1", "512x512", "epsilon")),
        (full.UNET_2 | {"sample_size": 64}, "epsilon", ("stable-diffusion-v2-512", "512x512", "epsilon")),
        (full.UNET_2, "v_prediction", ("stable-diffusion-v2-768-v", "768x768", "v")),
        (full.UNET_XL, "epsilon", ("stable-diffusion-xl-v1-base", "1024x1024", "epsilon")),
        (full.UNET_1 | {"cross_attention_dim": 777}, "epsilon", None),
    ],
)
def test_modelspec_names_the_published_sizes_only(
    unet: dict[str, Any], prediction_type: str, expected: tuple[str, str, str] | None
) -> None:
    from pipelines.single_file import modelspec

    pipeline = SimpleNamespace(
        unet=SimpleNamespace(config=unet),
        vae=SimpleNamespace(config=full.VAE),
        scheduler=SimpleNamespace(config={"prediction_type": prediction_type}),
    )
    keys = modelspec(pipeline, "dog erased")
    if expected is None:
        assert keys == {}
        return
    assert keys["modelspec.title"] == "dog erased" and keys["modelspec.sai_model_spec"] == "1.0.0"
    assert tuple(keys[f"modelspec.{key}"] for key in ("architecture", "resolution", "prediction_type")) == expected


@pytest.mark.parametrize(
    ("scheduler", "flags"),
    [
        ({"prediction_type": "epsilon"}, set()),
        ({"prediction_type": "v_prediction"}, {"v_pred"}),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}),
    ],
)
def test_an_xl_model_that_predicts_velocity_says_so(
    scheduler: dict[str, Any], flags: set[str], tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    write_single_file(tiny_xl(tokenizer, **scheduler), tmp_path / "file", {}, torch.float16, "t")
    assert {"v_pred", "ztsnr"} & load_file(tmp_path / "file").keys() == flags


def test_configs_name_no_folder_and_a_large_tokenizer_stays_out(
    tiny_pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "folder")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    files = config_files(pipeline)
    assert {path.split("/")[0] for path in files} == {
        "model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler",
    }  # fmt: skip
    assert str(tmp_path) not in "".join(files.values())
    monkeypatch.setattr("pipelines.single_file.TOKENIZER_LIMIT", 1000)
    assert {path.split("/")[0] for path in config_files(pipeline)} == {
        "model_index.json", "unet", "vae", "text_encoder", "scheduler",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../evil.json", "/evil.json", "a/b/c.json", "unet/run.py"])
def test_a_header_cannot_write_outside_the_folder(name: str, tmp_path: Path) -> None:
    from erase.files import stream_safetensors

    stream_safetensors({"a": [torch.zeros(1)]}, tmp_path / "file", {"erase.configs": json.dumps({name: "{}"})})
    with pytest.raises(ValueError, match="not a plain file name"):
        unpack_configs(tmp_path / "file", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_without_configs_says_so_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    from erase.files import stream_safetensors

    stream_safetensors({"a": [torch.zeros(1)]}, tmp_path / "file", {})
    assert not unpack_configs(tmp_path / "file", tmp_path / "out")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="not a safetensors file"):
        unpack_configs(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_do_not_fit_the_dtype_are_refused_and_nothing_is_written(
    tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    unet = copy.deepcopy(tiny_pipeline.unet)
    other = StableDiffusionPipeline(**(tiny_pipeline.components | {"unet": unet}), requires_safety_checker=False)
    with torch.no_grad():
        unet.conv_out.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"out\.2\.bias has values too large for float16; give --dtype bfloat16"):
        write_single_file(other, tmp_path / "file", {}, torch.float16, "t")
    write_single_file(other, tmp_path / "file", {}, torch.bfloat16, "t")
    before = (tmp_path / "file").read_bytes()
    with torch.no_grad():
        unet.conv_out.bias[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        write_single_file(other, tmp_path / "file", {}, torch.bfloat16, "t")
    assert (tmp_path / "file").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
