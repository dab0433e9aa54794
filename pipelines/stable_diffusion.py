"""Stable Diffusion 1.x and 2.x: one UNet2DConditionModel (epsilon or v prediction), one text encoder, one AutoencoderKL."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from erase.concepts import Vocabulary
from pipelines.family import Conditioning, OnStep, Progress
from pipelines.single_file import settle_tokenizers


class StableDiffusion:
    """A StableDiffusionPipeline behind the Family protocol.

    Latents, embeddings and pictures go in and come out as float32 on the CPU; the denoiser computes on its own device and in
    its own dtype, the VAE in float32.
    """

    name = "stable-diffusion"
    encoders: tuple[str, ...] = ("vae", "text_encoder")

    def __init__(self, pipeline: StableDiffusionPipeline, vocabulary: Vocabulary | None = None) -> None:
        self.pipeline = pipeline
        self.vocabulary = vocabulary
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.num_train_timesteps: int = self.noise_scheduler.config.num_train_timesteps
        pipeline.set_progress_bar_config(disable=True)
        for name in ("unet", *self.encoders):
            getattr(pipeline, name).eval().requires_grad_(False)

    @property
    def denoiser(self) -> nn.Module:
        """The UNet."""
        return self.pipeline.unet

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the model was made for."""
        size = self.pipeline.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor

    def cross_attention(self) -> dict[str, nn.Module]:
        """The UNet's cross-attentions."""
        named = self.denoiser.named_modules()
        return {name: module for name, module in named if isinstance(module, Attention) and module.is_cross_attention}

    def release_encoders(self) -> None:
        """Put VAE and text encoders on the CPU: training needs the denoiser alone."""
        for name in self.encoders:
            getattr(self.pipeline, name).to("cpu")

    def fetch_encoders(self) -> None:
        """Bring VAE and text encoders back to the denoiser's device."""
        for name in self.encoders:
            getattr(self.pipeline, name).to(self.pipeline.unet.device)

    def checkpoint_gradients(self, on: bool) -> None:
        """Recompute the denoiser's activations in the backward pass instead of keeping them."""
        unet = self.pipeline.unet
        unet.enable_gradient_checkpointing() if on else unet.disable_gradient_checkpointing()

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
        return {"prompt_embeds": encoder(tokens.input_ids.to(encoder.device)).last_hidden_state.float().cpu()}

    def find_words(self, prompts: list[str], words: tuple[str, ...]) -> Tensor:
        """Tokens (B, L) that spell one of the words; of a prompt with none of them, all between its start and its end."""
        tokenizer = self.pipeline.tokenizer
        spelt = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
        found = torch.zeros(len(prompts), tokenizer.model_max_length, dtype=torch.bool)
        for row, prompt in zip(found, prompts, strict=True):
            ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
            for word in spelt:
                for k in range(len(ids) - len(word) + 1):
                    row[k : k + len(word)] |= bool(word) and ids[k : k + len(word)] == word
            if not row.any():
                row[1 : len(ids) - 1] = True
        return found

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled posterior modes (B, C, h, w)."""
        vae = self.pipeline.vae
        latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
        return latents.float().cpu()

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], 32 decoded at a time."""
        vae = self.pipeline.vae
        parts = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype).split(32)
        return torch.cat([vae.decode(part).sample.clamp(-1, 1).float().cpu() for part in parts])

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The scheduler's forward process."""
        return self.noise_scheduler.add_noise(latents, noise, timesteps)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (B, C, h, w), in its dtype and on its device."""
        noisy_latents, timesteps, conditioning = self.to_denoiser(noisy_latents, timesteps, conditioning)
        return self.pipeline.unet(noisy_latents, timesteps, conditioning["prompt_embeds"]).sample

    def to_denoiser(
        self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """The three in the denoiser's dtype and on its device."""
        device, dtype = self.pipeline.unet.device, self.pipeline.unet.dtype
        noisy_latents = noisy_latents.to(device, dtype, memory_format=torch.channels_last)
        return noisy_latents, timesteps.to(device), {key: value.to(device, dtype) for key, value in conditioning.items()}

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
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents (N, C, h, w) by the stock pipeline; every picture has its own generator on the CPU."""
        latents = []

        def stepped(_pipeline: object, _index: int, _timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if on_step:
                on_step(tensors["latents"].float().cpu())
            return {}

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
                callback_on_step_end=stepped if on_step else None,
            )
            latents.append(result.images.float().cpu())
            if progress:
                progress(len(prompts[part]))
        return torch.cat(latents)

    def save(self, folder: object) -> None:
        """Write the whole pipeline as a diffusers folder of safetensors."""
        settle_tokenizers(self.pipeline)
        self.pipeline.save_pretrained(Path(str(folder)), safe_serialization=True)
