"""The Family against diffusers itself: scheduler, UNet, VAE, text encoder and the stock pipeline."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from pipelines.stable_diffusion import StableDiffusion

PROMPTS = ["a dog, neon style", "", "犬 🐶", "a picture of an apple " * 20]
SAMPLING = {"num_inference_steps": 3, "guidance_scale": 3.0}


@pytest.fixture
def velocity_family(tiny_pipeline: StableDiffusionPipeline) -> StableDiffusion:
    """The tiny model as a v-prediction model."""
    scheduler = DDIMScheduler.from_config(tiny_pipeline.scheduler.config, prediction_type="v_prediction")
    parts = tiny_pipeline.components | {"scheduler": scheduler}
    return StableDiffusion(StableDiffusionPipeline(**parts, requires_safety_checker=False))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TIMESTEPS = torch.tensor([0, 1, 500, 999])


def abar(family: StableDiffusion) -> Tensor:
    """The cumulative alphas (B, 1, 1, 1) of a scaled-linear schedule, from its definition."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, family.num_train_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)[TIMESTEPS].view(-1, 1, 1, 1)


def test_add_noise_is_the_schedulers_and_the_papers(tiny_family: StableDiffusion) -> None:
    latents, noise = drawn(1, 4, 4, 8, 8), drawn(2, 4, 4, 8, 8)
    reference = DDPMScheduler.from_config(tiny_family.pipeline.scheduler.config)
    noisy_latents = tiny_family.add_noise(latents, noise, TIMESTEPS)
    assert torch.equal(noisy_latents, reference.add_noise(latents, noise, TIMESTEPS))
    by_hand = abar(tiny_family).sqrt() * latents + (1 - abar(tiny_family)).sqrt() * noise
    torch.testing.assert_close(noisy_latents.double(), by_hand, rtol=1e-4, atol=1e-4)


def test_the_target_is_the_noise_or_the_velocity(tiny_family: StableDiffusion, velocity_family: StableDiffusion) -> None:
    latents, noise = drawn(1, 4, 4, 8, 8), drawn(2, 4, 4, 8, 8)
    assert torch.equal(tiny_family.target(latents, noise, TIMESTEPS), noise)
    velocity = velocity_family.target(latents, noise, TIMESTEPS)
    by_hand = abar(velocity_family).sqrt() * noise - (1 - abar(velocity_family)).sqrt() * latents
    torch.testing.assert_close(velocity.double(), by_hand, rtol=1e-4, atol=1e-4)


def test_noisy_latents_and_velocity_give_the_latents_back(velocity_family: StableDiffusion) -> None:
    """sqrt(abar) x_t - sqrt(1 - abar) v = x_0."""
    latents, noise = drawn(1, 4, 4, 8, 8), drawn(2, 4, 4, 8, 8)
    noisy_latents = velocity_family.add_noise(latents, noise, TIMESTEPS)
    velocity = velocity_family.target(latents, noise, TIMESTEPS)
    alpha = abar(velocity_family)
    torch.testing.assert_close(
        alpha.sqrt() * noisy_latents - (1 - alpha).sqrt() * velocity, latents.double(), rtol=1e-4, atol=1e-4
    )


def test_predict_is_the_unet(tiny_family: StableDiffusion) -> None:
    conditioning = tiny_family.encode_prompts(PROMPTS)
    noisy_latents = drawn(3, 4, 4, 8, 8)
    prediction = tiny_family.predict(noisy_latents, TIMESTEPS, conditioning)
    for k in range(4):
        alone = tiny_family.denoiser(
            noisy_latents[k : k + 1], TIMESTEPS[k], encoder_hidden_states=conditioning["prompt_embeds"][k : k + 1]
        ).sample
        torch.testing.assert_close(prediction[k : k + 1], alone, rtol=1e-4, atol=1e-5)


def test_prompts_are_encoded_as_the_pipeline_does(tiny_family: StableDiffusion) -> None:
    """An empty one, another script, and one that is too long among them; and different prompts differently."""
    embeds = tiny_family.encode_prompts(PROMPTS)["prompt_embeds"]
    assert embeds.shape == (4, 24, 16)
    assert not embeds.requires_grad
    expected, _ = tiny_family.pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(embeds, expected)
    assert (torch.cdist(embeds.flatten(1), embeds.flatten(1)) + torch.eye(4) > 0.5).all()


def test_images_are_encoded_to_scaled_posterior_modes(tiny_family: StableDiffusion) -> None:
    vae = tiny_family.pipeline.vae
    images = drawn(4, 2, 3, 16, 16).clamp(-1, 1)
    expected = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    latents = tiny_family.encode_images(images)
    assert latents.shape == (2, 4, 8, 8)
    torch.testing.assert_close(latents, expected)


def test_latents_are_decoded_as_the_pipeline_does(tiny_family: StableDiffusion) -> None:
    """More than one part of 32, within [-1, 1]."""
    vae = tiny_family.pipeline.vae
    latents = 3 * drawn(5, 35, 4, 8, 8)
    pictures = tiny_family.decode_latents(latents)
    assert pictures.shape == (35, 3, 16, 16)
    assert pictures.abs().max() <= 1
    expected = vae.decode(latents[33:34] / vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(pictures[33:34], expected, rtol=1e-4, atol=1e-5)


def generate(family: StableDiffusion, prompts: list[str], seeds: list[int], batch_size: int = 8) -> Tensor:
    return family.generate(prompts, seeds, batch_size=batch_size, **SAMPLING)


def test_a_picture_depends_on_its_prompt_and_seed_and_not_on_its_place(tiny_family: StableDiffusion) -> None:
    prompts, seeds = ["a dog", "a cat", "", "a dog", "a dog"], [7, 7, 8, 9, 7]
    latents = generate(tiny_family, prompts, seeds)
    for order, batch_size in (([4, 2, 0, 1, 3], 8), ([3, 1, 0, 2, 4], 2), ([0, 1, 2, 3, 4], 1)):
        moved = generate(tiny_family, [prompts[k] for k in order], [seeds[k] for k in order], batch_size)
        torch.testing.assert_close(moved, latents[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latents[0], latents[4], rtol=1e-4, atol=1e-4)
    assert (latents[0] - latents[1]).abs().max() > 1e-3, "the prompt does not matter"
    assert (latents[0] - latents[3]).abs().max() > 0.1, "the seed does not matter"


def test_generate_is_the_stock_pipeline(tiny_family: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(11)
    expected = tiny_family.pipeline("a dog", generator=generator, output_type="latent", **SAMPLING).images
    latents = generate(tiny_family, ["a cat", "a dog"], [3, 11])
    torch.testing.assert_close(latents[1:], expected, rtol=1e-4, atol=1e-4)


def test_generate_draws_nothing_from_the_global_generator(tiny_family: StableDiffusion) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    generate(tiny_family, ["a dog"], [1])
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_told_of_every_batch(tiny_family: StableDiffusion) -> None:
    counts: list[int] = []
    tiny_family.generate([""] * 5, list(range(5)), batch_size=2, progress=counts.append, **SAMPLING)
    assert counts == [2, 2, 1]


def test_nothing_is_trainable_and_nothing_drops_out(tiny_family: StableDiffusion) -> None:
    pipeline = tiny_family.pipeline
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize(("size", "num", "parts"), [(48, 100, [100]), (512, 6, [4, 2]), (1024, 2, [1, 1])])
def test_large_pictures_are_encoded_a_few_at_a_time_and_small_ones_together(
    size: int, num: int, parts: list[int], tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded model's 48 x 48 in the batches that they always were; of 512 x 512 four, as of what is decoded."""
    taken: list[int] = []
    vae = tiny_family.pipeline.vae
    channels = vae.config.latent_channels

    def encode(images: Tensor) -> SimpleNamespace:
        taken.append(len(images))
        modes = torch.zeros(len(images), channels, 1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: modes))

    def decode(latents: Tensor) -> SimpleNamespace:
        taken.append(len(latents))
        return SimpleNamespace(sample=torch.zeros(len(latents), 3, 1, 1))

    monkeypatch.setattr(vae, "encode", encode)
    assert len(tiny_family.encode_images(torch.zeros(1, 1, 1, 1).expand(num, 3, size, size))) == num and taken == parts
    taken.clear()
    monkeypatch.setattr(vae, "decode", decode)
    side = size // tiny_family.pipeline.vae_scale_factor
    latents = torch.zeros(1, 1, 1, 1).expand(num, channels, side, side)
    assert len(tiny_family.decode_latents(latents)) == num and taken == ([32, 32, 32, 4] if size == 48 else parts)


def test_pictures_encoded_in_parts_are_those_encoded_together(tiny_family: StableDiffusion) -> None:
    images = drawn(1, 5, 3, 48, 48).clamp(-1, 1)
    vae = tiny_family.pipeline.vae
    with torch.no_grad():
        together = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    assert torch.equal(tiny_family.encode_images(images), together)
