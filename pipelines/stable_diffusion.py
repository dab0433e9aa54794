"""Stable Diffusion 1.x and its like: one UNet2DConditionModel, one CLIP text encoder, one AutoencoderKL."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from erase.concepts import Vocabulary
from pipelines.family import Conditioning, Progress


class StableDiffusion:
    """A StableDiffusionPipeline behind the Family protocol."""

    name = "stable-diffusion"

    def __init__(self, pipeline: StableDiffusionPipeline, vocabulary: Vocabulary | None = None) -> None:
        self.pipeline = pipeline
        self.vocabulary = vocabulary
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.num_train_timesteps: int = self.noise_scheduler.config.num_train_timesteps
        pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)

    @property
    def denoiser(self) -> nn.Module:
        """The UNet."""
        return self.pipeline.unet

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """{"prompt_embeds": (B, L, D)}."""
        tokens = self.pipeline.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        return {"prompt_embeds": encoder(tokens.input_ids.to(encoder.device)).last_hidden_state}

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled posterior modes (B, C, h, w)."""
        vae = self.pipeline.vae
        return vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode() * vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], 32 decoded at a time."""
        vae = self.pipeline.vae
        parts = (latents / vae.config.scaling_factor).to(vae.dtype).split(32)
        return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in parts])

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The scheduler's forward process."""
        return self.noise_scheduler.add_noise(latents, noise, timesteps)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (B, C, h, w)."""
        noisy_latents = noisy_latents.contiguous(memory_format=torch.channels_last)
        return self.pipeline.unet(noisy_latents, timesteps, conditioning["prompt_embeds"]).sample

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise, or the velocity of a v-prediction model."""
        if self.noise_scheduler.config.prediction_type == "v_prediction":
            return self.noise_scheduler.get_velocity(latents, noise, timesteps)
        return noise

    @torch.no_grad()
    def generate(
        self,
        prompts: list[str],
        seeds: list[int],
        *,
        num_inference_steps: int,
        guidance_scale: float,
        batch_size: int,
        progress: Progress | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> Tensor:
        """Latents (N, C, h, w) by the stock pipeline; every picture has its own generator on the CPU."""
        latents = []
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            result = self.pipeline(
                prompts[part],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                output_type="latent",
                width=width,
                height=height,
            )
            latents.append(result.images)
            if progress:
                progress(len(prompts[part]))
        return torch.cat(latents)

    def save(self, folder: object) -> None:
        """Write the whole pipeline as a diffusers folder of safetensors."""
        self.pipeline.save_pretrained(Path(str(folder)), safe_serialization=True)
