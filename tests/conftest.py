"""Tiny models of the real diffusers and transformers classes, made once, copied for each test that changes them."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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


@pytest.fixture(scope="session")
def tiny_pipeline(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """A Stable Diffusion of some 50 thousand weights that draws 16 x 16 pictures; not to be changed."""
    torch.manual_seed(0)
    size = len(tokenizer)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=16,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )
    with torch.no_grad():  # the library's 0.02 makes all prompts all but equal
        text_encoder.get_input_embeddings().weight.normal_(0, 1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    with torch.no_grad():  # nor does a fresh UNet listen to its prompt
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                parameter.mul_(20)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
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
