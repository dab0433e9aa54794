"""Ordinary fine-tuning of a model under probe, from which it comes back bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from eval.attacks.denoising import denoising_losses, levels, noise_for
from pipelines.family import Conditioning, Family


@contextmanager
def borrowed(family: Family) -> Iterator[None]:
    """Within the block all weights of the denoiser may be trained; after it they are as they were.

    The one copy of the weights is kept on the CPU. Flags, mode and gradients come back as well, also after an error.
    """
    denoiser = family.denoiser
    weights = list(denoiser.parameters())
    kept = [values.detach().to("cpu", copy=True) for values in weights]
    flags, gradients = [values.requires_grad for values in weights], [values.grad for values in weights]
    modes = [(module, module.training) for module in denoiser.modules()]
    try:
        for values in weights:
            values.grad = None
        denoiser.requires_grad_(True)
        yield
    finally:
        with torch.no_grad():
            for values, before, flag, gradient in zip(weights, kept, flags, gradients, strict=True):
                values.copy_(before)
                values.requires_grad_(flag)
                values.grad = gradient
        for module, training in modes:
            module.training = training


def finetune(
    family: Family,
    latents: Tensor,
    conditioning: Conditioning,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Iterator[int]:
    """AdamW (weight decay 0.01, constant rate) on the denoising loss of latents (N, C, h, w), as long as steps are asked for.

    Yields the number of steps taken after each. Pictures go by in shuffled rounds; noise levels are spread over the schedule.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(family.denoiser.parameters(), lr=learning_rate)
    order = torch.empty(0, dtype=torch.long)
    taken = 0
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(latents), generator=generator)])
        rows, order = order[:batch_size], order[batch_size:]
        asked = {key: values[rows] for key, values in conditioning.items()}
        timesteps, noise = levels(family, len(rows), generator), noise_for(latents[rows], generator)
        optimizer.zero_grad()
        denoising_losses(family, latents[rows], asked, timesteps, noise).mean().backward()
        torch.nn.utils.clip_grad_norm_(family.denoiser.parameters(), 1.0)
        optimizer.step()
        taken += 1
        yield taken
