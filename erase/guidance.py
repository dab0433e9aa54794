"""Classifier-free guidance outside the sampler."""

from torch import Tensor

from erase.data import TrainingData
from pipelines.family import Family


def guided(
    family: Family, data: TrainingData, noisy_latents: Tensor, timesteps: Tensor, prompts: Tensor, guidance_scale: float
) -> Tensor:
    """The float32 prediction (N, C, h, w) under prompts (N,) of the table, led away from the empty prompt's; 1: not led."""
    model_pred = family.predict(noisy_latents, timesteps, data.conditioning(prompts)).float()
    if guidance_scale == 1:
        return model_pred
    unasked = data.conditioning(data.empty_prompt.expand(len(prompts)))
    empty = family.predict(noisy_latents, timesteps, unasked).float()
    return empty + guidance_scale * (model_pred - empty)
