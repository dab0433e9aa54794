"""The embedded model's UNet: epsilon prediction on cached latents, text by cross-attention alone."""

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from pipelines.emoji.autoencoder import encode
from pipelines.emoji.fit import fit, share_of
from pipelines.emoji.render import Drawings
from pipelines.emoji.text import WIDTH, PromptCache
from pipelines.emoji.vocabulary import caption

BATCH_SIZE = 32
RENDERS = 48  # augmented pictures of each drawing whose latents are cached


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build_unet() -> UNet2DConditionModel:
    """A UNet2DConditionModel with cross-attention at every level."""
    return UNet2DConditionModel(
        sample_size=12,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def train_unet(
    drawings: Drawings, vae: AutoencoderKL, prompts: PromptCache, out: Path, samples: int, seed: int, init: Path | None = None
) -> UNet2DConditionModel:
    """Epsilon prediction; the loss is weighted by (1 + SNR) / SNR, at most 10, much as v prediction would.

    Plain epsilon loss all but ignores high noise, where a picture's layout is decided. Logged beside the loss: `gap`, the
    loss under another picture's caption minus the loss under the right one; it must leave 0 within the first thousand steps.
    """
    torch.manual_seed(seed)
    unet = build_unet() if init is None else UNet2DConditionModel.from_pretrained(init, subfolder="unet", dtype=torch.float32)
    unet = unet.to(memory_format=torch.channels_last).train()
    alphas = build_scheduler().alphas_cumprod
    generator = torch.Generator().manual_seed(seed + 5)
    index = drawings.known.repeat_interleave(RENDERS)
    latents = torch.cat([encode(vae, drawings.render(part, generator)) for part in index.split(256)])
    latents = latents * vae.config.scaling_factor
    weights = drawings.weight[index]
    snr = alphas / (1 - alphas)
    loss_weight = ((1 + snr) / snr).clamp(max=10)
    loss_weight = loss_weight / loss_weight.mean()

    batch_size = share_of(BATCH_SIZE)

    def loss_fn(generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        rows = index[chosen].tolist()
        embeds = prompts([caption(drawings.names[i], drawings.style_names[i], rng) for i in rows])
        strata = torch.arange(batch_size) + torch.rand(batch_size, generator=generator)
        timesteps = (strata / batch_size * len(alphas)).long().clamp(max=len(alphas) - 1)
        noise = torch.randn(latents[chosen].shape, generator=generator)
        alpha = alphas[timesteps][:, None, None, None]
        noisy_latents = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        noisy_latents = noisy_latents.contiguous(memory_format=torch.channels_last)
        errors = (unet(noisy_latents, timesteps, embeds).sample - noise).square().mean((1, 2, 3))
        loss = (errors * loss_weight[timesteps]).mean()
        record = {"loss": loss.item(), "mse": errors.mean().item()}
        if step % 20 == 0:
            with torch.no_grad():
                swapped = unet(noisy_latents, timesteps, embeds.roll(7, 0)).sample
            wrong = (swapped - noise).square().mean((1, 2, 3))
            high = timesteps > 300
            record["gap"] = ((wrong - errors) * loss_weight[timesteps])[high].mean().item()
        return loss, record

    fit(
        {"unet": unet},
        loss_fn,
        out=out,
        steps=samples // BATCH_SIZE,
        batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        seed=seed,
        ema=0.9985,
    )
    return unet.eval().requires_grad_(False)
