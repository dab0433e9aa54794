"""Tiny models of the real diffusers and transformers classes, made once, copied for each test that changes them."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test waits for a network

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from erase.concepts import Concept
from erase.data import TrainingData, make_data, plan_data
from pipelines.emoji.denoiser import build_scheduler
from pipelines.emoji.tokenizer import build_tokenizer
from pipelines.load import EMOJI_VOCABULARY
from pipelines.stable_diffusion import StableDiffusion

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kept pictures of this session's tests alone, for the commands that the tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """The embedded model's tokenizer."""
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tiny_text_encoder(size: int, kind: type = CLIPTextModel, width: int = 16) -> CLIPTextModel:
    """A CLIP text encoder of one layer that hears its prompt."""
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2 if kind is CLIPTextModelWithProjection else 1,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=width,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    text_encoder = kind(config)
    with torch.no_grad():  # the library's 0.02 makes all prompts all but equal
        text_encoder.get_input_embeddings().weight.normal_(0, 1)
    return text_encoder


def tiny_vae() -> AutoencoderKL:
    """An autoencoder between 16 x 16 pictures and 8 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


def tiny_unet(**more: Any) -> UNet2DConditionModel:
    """A UNet of two levels that listens to its prompt."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        **{"cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4, **more},
    )
    with torch.no_grad():  # nor does a fresh UNet listen to its prompt
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                parameter.mul_(20)
    return unet


@pytest.fixture(scope="session")
def tiny_pipeline(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x of some 50 thousand weights that draws 16 x 16 pictures; not to be changed."""
    return build_tiny_pipeline(tokenizer)


def build_tiny_pipeline(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The same weights at every call."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        text_encoder=tiny_text_encoder(len(tokenizer)),
        vae=tiny_vae(),
        unet=tiny_unet(),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_v_pipeline(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """A tiny Stable Diffusion 2.x: v prediction, linear projections, heads of its own at every level; not to be changed."""
    torch.manual_seed(1)
    scheduler = build_scheduler()
    scheduler.register_to_config(prediction_type="v_prediction")
    return StableDiffusionPipeline(
        text_encoder=tiny_text_encoder(len(tokenizer)),
        vae=tiny_vae(),
        unet=tiny_unet(use_linear_projection=True, attention_head_dim=[2, 4]),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_xl_pipeline(tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    """A tiny Stable Diffusion XL: two text encoders, pooled embeddings, time ids; not to be changed."""
    torch.manual_seed(2)
    unet = tiny_unet(
        use_linear_projection=True,
        cross_attention_dim=32,
        transformer_layers_per_block=[2, 1],
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        text_encoder=tiny_text_encoder(len(tokenizer)),
        text_encoder_2=tiny_text_encoder(len(tokenizer), CLIPTextModelWithProjection),
        vae=tiny_vae(),
        unet=unet,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=build_scheduler(),
        add_watermarker=False,
    )


@pytest.fixture
def tiny_family(tiny_pipeline: StableDiffusionPipeline) -> StableDiffusion:
    """The tiny model behind the Family protocol, with a UNet of its own that a test may change."""
    return family_of(tiny_pipeline)


@pytest.fixture
def new_family(tiny_pipeline: StableDiffusionPipeline) -> Callable[[], StableDiffusion]:
    """Makes as many equal tiny families as a test compares."""
    return lambda: family_of(tiny_pipeline)


def family_of(pipeline: StableDiffusionPipeline) -> StableDiffusion:
    """A family whose UNet is a copy of the pipeline's."""
    parts = pipeline.components | {"unet": copy.deepcopy(pipeline.unet)}
    return StableDiffusion(StableDiffusionPipeline(**parts, requires_safety_checker=False), EMOJI_VOCABULARY)


@pytest.fixture(scope="session")
def tiny_data(tiny_pipeline: StableDiffusionPipeline) -> TrainingData:
    """Data for forgetting dogs, remapped to cats: 4 forget pictures, 3 anchor and 5 retain pictures."""
    plan = plan_data(Concept("dog", "object", object="dog"), EMOJI_VOCABULARY, ("cat",), 4, 5, 3)
    return make_data(
        family_of(tiny_pipeline),
        plan,
        seed=0,
        forget_guidance_scale=2.0,
        retain_guidance_scale=1.0,
        num_inference_steps=2,
        batch_size=8,
    )


@pytest.fixture
def audited_run() -> Callable[..., None]:
    """Puts an audit into a run's folder: one probe, whose pictures show the concept where `seen` says so."""
    return put_audit


def put_audit(run: Path, seen: tuple[bool, ...], only: str = "prompts", **more: Any) -> None:
    """audit.json of the model that is there, with the outcomes and pictures of base and model; `more`: fields of the record."""
    from erase.folder import versions
    from eval.attacks.base import Outcome
    from eval.audit import Audit
    from eval.audit_gate import Line
    from eval.audit_limits import Limits
    from eval.audit_store import save
    from eval.measure import Share
    from pipelines.load import model_hash

    pictures = torch.zeros(len(seen), 3, 8, 8)
    captions = tuple(f"try {k + 1}" for k in range(len(seen)))
    for role, found in (("base", (True,) * len(seen)), ("model", seen)):
        outcome = Outcome(Share(sum(found), len(found)), pictures, found, captions)
        save(outcome, run / "audit" / "dog" / only / role, "key", 1.0)
    after, before = (Share(count, len(seen)).record() for count in (sum(seen), len(seen)))
    line = Line(probe=only, status="FAIL" if any(seen) else "PASS", reason="", concept="dog", before=before, after=after)
    record = Audit(
        **{
            "name": "run",
            "concepts": ("dog",),
            "model": {"name": "model", "sha256": model_hash(str(run / "model"))},
            "base": {"name": "emoji", "sha256": "0"},
            "quick": False,
            "passed": not any(seen),
            "lines": (line,),
            "limits": Limits(require=()),
            "seconds": 1.0,
            "versions": versions(),
        }
        | more
    )
    (run / "audit" / "audit.json").write_text(record.model_dump_json())
