"""The embedded model as shipped: small, genuine, and it draws what it is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from erase.concepts import Prompt
from eval.detectors import EmojiJudge, Reading
from pipelines.emoji.judge import judge_accuracy
from pipelines.emoji.prepare import DATA
from pipelines.emoji.render import Drawings
from pipelines.load import EMOJI_VOCABULARY, EMOJI_WEIGHTS, load
from pipelines.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def family() -> StableDiffusion:
    return load("emoji")


def test_the_weights_are_small_float16_safetensors() -> None:
    files = [path for path in EMOJI_WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 26e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pth"}]


def test_the_folder_is_a_stock_pipeline_with_text_by_cross_attention_alone() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(EMOJI_WEIGHTS, local_files_only=True)
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    assert type(pipeline.text_encoder).__name__ == "CLIPTextModel"
    assert pipeline.unet.config.addition_embed_type is None
    assert pipeline.unet.config.encoder_hid_dim is None
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_it_draws_what_it_is_asked_for_and_noise_is_nothing(family: StableDiffusion) -> None:
    assert family.vocabulary is not None
    objects, styles = family.vocabulary.objects, family.vocabulary.styles
    prompts = [family.vocabulary.prompt(o, styles[i % len(styles)]) for i, o in enumerate(objects)] * 2
    latents = family.generate(
        [p.text for p in prompts], list(range(len(prompts))), num_inference_steps=20, guidance_scale=3.0, batch_size=48
    )
    readings = list(zip(prompts, EmojiJudge()(family.decode_latents(latents)), strict=True))
    assert sum(r.object == p.object for p, r in readings) >= 0.9 * len(readings)
    assert sum(r.style == p.style for p, r in readings) >= 0.85 * len(readings)
    noise = torch.randn(64, *latents.shape[1:], generator=torch.Generator().manual_seed(0))
    assert sum(r.object is None for r in EmojiJudge()(family.decode_latents(noise))) >= 58


def test_a_seed_is_a_picture(family: StableDiffusion) -> None:
    def draw(seeds: list[int]) -> torch.Tensor:
        prompt = Prompt("a dog, neon style").text
        return family.generate([prompt] * len(seeds), seeds, num_inference_steps=3, guidance_scale=3.0, batch_size=2)

    together, alone = draw([1, 2, 3]), draw([3])
    assert torch.equal(draw([1, 2, 3]), together)
    assert torch.allclose(together[2:], alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("prompt", ["", "犬", "собака", "🐶🐶", "a" * 5000, "\x00\x01", "dog " * 500, "ḍ̸̓o̴g"])
def test_any_prompt_tokenizes(family: StableDiffusion, prompt: str) -> None:
    embeds = family.encode_prompts([prompt])["prompt_embeds"]
    assert embeds.shape == (1, 24, 128)
    assert torch.isfinite(embeds).all()


def test_a_judge_that_sees_no_style_says_so() -> None:
    """The last logit of either head is "none"; what it reads goes through JSON as None."""
    detector = EmojiJudge()
    grey = [np.full((48, 48, 3), 128, np.uint8)]
    detector.judge.style_head.bias[-1] += 100
    (none,) = detector.read(grey)
    detector.judge.style_head.bias[-1] -= 200
    (some,) = detector.read(grey)
    assert none["style"] is None and some["style"] in EMOJI_VOCABULARY.styles and none["object"] == some["object"]
    assert Reading(**json.loads(json.dumps(none))).style is None


@pytest.mark.skipif(not (DATA / "sprites.npz").is_file(), reason="the data set is not there: python -m pipelines.emoji.prepare")
def test_the_judge_reads_held_out_augmentations() -> None:
    accuracy = judge_accuracy(EmojiJudge().judge, Drawings(DATA / "sprites.npz"), seed=12, num=512)
    assert accuracy["objects"] >= 0.97
    assert accuracy["styles"] >= 0.95
    assert accuracy["none"] >= 0.95
    assert accuracy["objects_elsewhere"] >= 0.95, "an object is missed on a strange ground"
    assert accuracy["styles_elsewhere"] >= 0.9, "a style is read off its ground"
    assert accuracy["no_style"] >= 0.9, "what is in no style is taken for one"


def test_the_trial_drawings_are_read_as_what_they_are() -> None:
    """An independent check on pictures the judge was not trained on: another rasterisation of the same emoji."""
    import numpy as np

    shared = Path(__file__).parents[2] / "shared" / "emoji" / "sprites.npz"
    if not shared.is_file():
        pytest.skip("the shared sprites are not on this machine")
    from pipelines.emoji.render import compose
    from pipelines.emoji.vocabulary import OBJECTS, STYLES

    with np.load(shared) as data:
        names = [str(data["concepts"][i]) for i in data["concept"]]
        styles = [str(data["styles"][i]) for i in data["style"]]
        points = [str(p) for p in data["codepoint"]]
        chosen = [
            i
            for i, name in enumerate(names)
            if name in OBJECTS and styles[i] in ("3d", "line art", "neon") and points[i] in OBJECTS[name]
        ]
        sprites = torch.from_numpy(data["rgba"][chosen]).permute(0, 3, 1, 2).float() / 255
    sprites = torch.nn.functional.interpolate(sprites, size=(44, 44), mode="area")
    sprites = torch.nn.functional.pad(sprites, (2, 2, 2, 2))
    style = torch.tensor([STYLES.index(styles[i]) for i in chosen])
    readings = EmojiJudge()(compose(sprites, style) * 2 - 1)
    right = sum(r.object == names[i] for r, i in zip(readings, chosen, strict=True))
    assert right >= 0.95 * len(chosen)
