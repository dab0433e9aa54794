"""Ordinary fine-tuning of a model under probe, from which it comes back bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from eval.attacks.denoising import denoising_losses, levels, noise_for
from eval.attacks.lean import checkpointed, parts
from eval.targets import is_full_size
from pipelines.family import Conditioning, Family

FULL_SIZE_RATE = 1e-5
"""AdamW's rate for a denoiser of full size, as its fine-tuning usually has: the small model's may wreck it."""


@contextmanager
def borrowed(family: Family) -> Iterator[None]:
    """Within the block all weights of the denoiser may be trained; after it they are as they were.

    The one copy of the weights is kept on the CPU. Flags, mode and gradients come back as well, also after an error. A
    denoiser of full size recomputes its activations meanwhile.
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
        with checkpointed(family):
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
    rows_at_once: int | None = None,
) -> Iterator[int]:
    """AdamW (weight decay 0.01, constant rate) on the denoising loss of latents (N, C, h, w), as long as steps are asked for.

    Yields the number of steps taken after each. Pictures go by in shuffled rounds; noise levels are spread over the schedule.
    Activations are held of `rows_at_once` rows at a time (None: of the whole batch); the gradient is the same up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    one_by_one = False if is_full_size(family.denoiser) else None  # all weights together would need a copy of them at each step
    optimizer = torch.optim.AdamW(family.denoiser.parameters(), lr=learning_rate, foreach=one_by_one)
    order = torch.empty(0, dtype=torch.long)
    taken = 0
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(latents), generator=generator)])
        rows, order = order[:batch_size], order[batch_size:]
        asked = {key: values[rows] for key, values in conditioning.items()}
        timesteps, noise = levels(family, len(rows), generator), noise_for(latents[rows], generator)
        optimizer.zero_grad()
        for part in parts(len(rows), rows_at_once):
            conditioned = {key: values[part] for key, values in asked.items()}
            losses = denoising_losses(family, latents[rows][part], conditioned, timesteps[part], noise[part])
            (losses.mean() * (len(losses) / len(rows))).backward()
        torch.nn.utils.clip_grad_norm_(family.denoiser.parameters(), 1.0)
        optimizer.step()
        taken += 1
        yield taken
