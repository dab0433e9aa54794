"""Stable Diffusion 1.x and 2.x: one UNet2DConditionModel (epsilon or v prediction), one text encoder, one AutoencoderKL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from erase.concepts import Vocabulary
from pipelines.family import Conditioning, OnStep, Progress
from pipelines.single_file import settle_tokenizers

PIXELS = 1 << 20
"""Most pixels that the VAE takes at a time: four pictures of 512 x 512, about 1 GB an activation."""
SMALL = 96 * 96
"""Pixels of a picture up to which all pictures given are encoded together, as the embedded model's 48 x 48 are."""
ENCODED = 1 << 26
"""Most values of text encoders' hidden states at a time (256 MB in float32); pipelines keep every layer's."""


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
        return {name: module for name, module in self._attention() if module.is_cross_attention}

    def self_attention(self) -> dict[str, nn.Module]:
        """The UNet's self-attentions."""
        return {name: module for name, module in self._attention() if not module.is_cross_attention}

    def _attention(self) -> list[tuple[str, Attention]]:
        return [(name, module) for name, module in self.denoiser.named_modules() if isinstance(module, Attention)]

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

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """{"prompt_embeds": (B, L, D)}, read in parts whose hidden states have at most `ENCODED` values."""
        length = self.pipeline.tokenizer.model_max_length
        configs = [encoder.config for _, encoder in self.text_encoders()]
        rows = max(1, ENCODED // (length * sum(c.hidden_size * (c.num_hidden_layers + 1) for c in configs)))
        parts = [self._encode(prompts[k : k + rows]) for k in range(0, len(prompts), rows)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Conditioning:
        tokens = self.pipeline.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        return {"prompt_embeds": encoder(tokens.input_ids.to(encoder.device)).last_hidden_state.float().cpu()}

    def text_encoders(self) -> list[tuple[Any, Any]]:
        """Each text encoder with its tokenizer."""
        return [(self.pipeline.tokenizer, self.pipeline.text_encoder)]

    def word_tables(self) -> list[Tensor]:
        """Each text encoder's token embeddings (V, D)."""
        return [encoder.get_input_embeddings().weight.detach().float().cpu() for _, encoder in self.text_encoders()]

    def whole_words(self) -> dict[int, str]:
        """The printable tokens whose own text gives them back, by number; without those that begin and end a prompt."""
        tokenizer = self.pipeline.tokenizer
        texts = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
        read = tokenizer(texts, add_special_tokens=False).input_ids
        alone = [k for k, ids in enumerate(read) if ids == [k] and k not in tokenizer.all_special_ids]
        return {k: texts[k] for k in alone if texts[k].isprintable()}

    def encode_slots(self, prompts: list[str], vectors: list[Tensor]) -> Conditioning:
        """{"prompt_embeds": (B, L, D)}, with gradient to the vectors in the prompts' slots."""
        with slots(*self.text_encoders()[0], prompts, vectors[0]) as (encoder, ids):
            return {"prompt_embeds": encoder(ids).last_hidden_state.float().cpu()}

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

    def find_ends(self, prompts: list[str]) -> Tensor:
        """Places (B, L) from each prompt's end token on, the padding behind it included."""
        tokenizer = self.pipeline.tokenizer
        read = tokenizer(prompts, truncation=True, max_length=tokenizer.model_max_length).input_ids
        return torch.arange(tokenizer.model_max_length) >= torch.tensor([len(ids) - 1 for ids in read])[:, None]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled posterior modes (B, C, h, w), of large pictures a few at a time."""
        vae, area = self.pipeline.vae, images.shape[2] * images.shape[3]
        parts = images.split(max(1, len(images)) if area <= SMALL else max(1, PIXELS // area))
        latents = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mode() for part in parts]
        return torch.cat([(part * vae.config.scaling_factor).float().cpu() for part in latents])

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], at most 32 decoded at a time, of large ones a few."""
        vae = self.pipeline.vae
        area = latents.shape[2] * latents.shape[3] * self.pipeline.vae_scale_factor**2
        parts = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype).split(max(1, min(32, PIXELS // area)))
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
        prompts: list[str] | Conditioning,
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

        for first in range(0, len(seeds), batch_size):
            part = slice(first, first + batch_size)
            result = self.pipeline(
                **self._asked(prompts, part),
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
                progress(len(seeds[part]))
        return torch.cat(latents)

    def _asked(self, prompts: list[str] | Conditioning, part: slice) -> dict[str, Any]:
        """Some of the prompts as the pipeline's arguments."""
        if isinstance(prompts, list):
            return {"prompt": prompts[part]}
        unet = self.pipeline.unet
        return {key: values[part].to(unet.device, unet.dtype) for key, values in prompts.items()}

    def save(self, folder: object) -> None:
        """Write the whole pipeline as a diffusers folder of safetensors."""
        settle_tokenizers(self.pipeline)
        self.pipeline.save_pretrained(Path(str(folder)), safe_serialization=True)


@contextmanager
def slots(tokenizer: Any, encoder: Any, prompts: list[str], vectors: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """A text encoder and the prompts' token ids (B, L), read with vectors (B, K, D) in each prompt's `{}`, within the block."""
    length, num = tokenizer.model_max_length, vectors.shape[1]
    ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
    held = torch.zeros(ids.shape, dtype=torch.bool)
    for row, hold, prompt in zip(ids, held, prompts, strict=True):
        before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in prompt.split("{}"))
        before = before[: length - 2 - num]
        read = [*before, *[0] * num, *after][: length - 2]
        row[: len(read) + 2] = torch.tensor([tokenizer.bos_token_id, *read, tokenizer.eos_token_id])
        hold[len(before) + 1 : len(before) + 1 + num] = True
    held = held[..., None].to(encoder.device)

    def put(_module: nn.Module, _ids: object, found: Tensor) -> Tensor:
        return found.masked_scatter(held, vectors.to(found))

    hook = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield encoder, ids.to(encoder.device)
    finally:
        hook.remove()
