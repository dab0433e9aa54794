"""Stable Diffusion XL: two text encoders, pooled embeddings and time ids beside the prompt's own."""

from typing import Any

import torch
from torch import Tensor

from pipelines.family import Conditioning
from pipelines.stable_diffusion import StableDiffusion, slots


class StableDiffusionXL(StableDiffusion):
    """A StableDiffusionXLPipeline behind the Family protocol."""

    name = "stable-diffusion-xl"
    encoders = ("vae", "text_encoder", "text_encoder_2")

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """{"prompt_embeds": (B, L, D1 + D2), "pooled_prompt_embeds": (B, P)}.

        Where the pipeline guides away from zeros (`force_zeros_for_empty_prompt`), the empty prompt's are zeros here too.
        """
        return super().encode_prompts(prompts)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Conditioning:
        device = self.pipeline.text_encoder.device
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        heard = torch.ones(len(prompts), device=device)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            heard = torch.tensor([float(bool(prompt)) for prompt in prompts], device=device)
        return {
            "prompt_embeds": (embeds * heard[:, None, None]).float().cpu(),
            "pooled_prompt_embeds": (pooled * heard[:, None]).float().cpu(),
        }

    def text_encoders(self) -> list[tuple[Any, Any]]:
        """Both text encoders with their tokenizers, which read the same tokens."""
        pipeline = self.pipeline
        return [(pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)]

    def encode_slots(self, prompts: list[str], vectors: list[Tensor]) -> Conditioning:
        """As `encode_prompts`, with gradient to the vectors that stand in the prompts' slots for each encoder."""
        embeds = []
        for (tokenizer, encoder), own in zip(self.text_encoders(), vectors, strict=True):
            with slots(tokenizer, encoder, prompts, own) as (read, ids):
                answer = read(ids, output_hidden_states=True)
            embeds.append(answer.hidden_states[-2])
        return {"prompt_embeds": torch.cat(embeds, dim=-1).float().cpu(), "pooled_prompt_embeds": answer[0].float().cpu()}

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (B, C, h, w), told that the picture is whole and of the model's own size."""
        noisy_latents, timesteps, conditioning = self.to_denoiser(noisy_latents, timesteps, conditioning)
        pooled = conditioning["pooled_prompt_embeds"]
        time_ids = torch.tensor([[*self.image_size, 0, 0, *self.image_size]], device=pooled.device, dtype=pooled.dtype)
        added = {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}
        unet = self.pipeline.unet
        return unet(noisy_latents, timesteps, conditioning["prompt_embeds"], added_cond_kwargs=added).sample
