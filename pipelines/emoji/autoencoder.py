"""The embedded model's AutoencoderKL: 48 x 48 x 3 pictures <-> 12 x 12 x 4 latents."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from pipelines.emoji.fit import fit, share_of
from pipelines.emoji.render import SIZE, Drawings

BATCH_SIZE = 8


def build_autoencoder() -> AutoencoderKL:
    """An AutoencoderKL with f = 4, started as a nearly linear down- and up-sampler."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=SIZE,
    )
    _start_linear(vae)
    return vae


@torch.no_grad()
def _start_linear(vae: AutoencoderKL) -> None:
    """Residual branches near 0, skip paths identity or average; +colour / -colour channel pairs pass norm and SiLU.

    silu(x) - silu(-x) = x, so a pair of channels with opposite signs carries a colour linearly. From the library's own
    initialisation the same training stays 8-10 dB lower.
    """
    pairs = [(c, c, 1.0) for c in range(3)] + [(c + 3, c, -1.0) for c in range(3)]
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(0.02)
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                _set_rows(module.conv_shortcut, [(c, c, 1.0) for c in range(6)], (0, 0))
        elif isinstance(module, Downsample2D):
            _set_rows(module.conv, [(c, c, 0.25) for c in range(6)], (slice(0, 2), slice(0, 2)))
        elif isinstance(module, Upsample2D):
            _set_rows(module.conv, [(c, c, 1.0) for c in range(6)], (1, 1))
    heads = [(c, c, 1.0) for c in range(3)] + [(c, c + 3, -1.0) for c in range(3)]
    for part in (vae.encoder, vae.decoder):
        _set_rows(part.conv_in, pairs, (1, 1))
        _set_rows(part.conv_out, heads, (1, 1))
    channels = vae.config.latent_channels
    vae.encoder.conv_out.weight[channels:].mul_(0.05)
    vae.encoder.conv_out.bias[channels:] = -5.0
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight.copy_(torch.eye(len(convolution.weight))[:, :, None, None])
        convolution.bias.zero_()


def _set_rows(convolution: torch.nn.Conv2d, entries: list[tuple[int, int, float]], where: tuple[int | slice, ...]) -> None:
    """Rows named in (output, input, value) entries are zeroed, then given the value at the kernel position."""
    rows = sorted({output for output, _, _ in entries})
    convolution.weight[rows] = 0
    assert convolution.bias is not None
    convolution.bias[rows] = 0
    for output, source, value in entries:
        convolution.weight[(output, source, *where)] = value


def gradient_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of finite differences, at full and at half size."""
    loss = torch.zeros(())
    for scale in range(2):
        d = a - b if scale == 0 else F.avg_pool2d(a - b, 2)
        loss = loss + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    return loss / 2


def train_autoencoder(drawings: Drawings, out: Path, samples: int, seed: int) -> AutoencoderKL:
    """L1 + MSE + gradient + 3e-4 KL; the first half of training sees random 24 x 24 crops, twice as many a batch."""
    torch.manual_seed(seed)
    vae = build_autoencoder().to(memory_format=torch.channels_last)
    steps, batch_size = samples // BATCH_SIZE, share_of(BATCH_SIZE)

    def loss_fn(generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        crop = step < steps // 2
        pictures = drawings.render(drawings.sample(batch_size * (2 if crop else 1), generator), generator)
        if crop:
            y, x = torch.randint(0, SIZE // 2 + 1, (2,), generator=generator).tolist()
            pictures = pictures[..., y : y + SIZE // 2, x : x + SIZE // 2]
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        mse, l1 = F.mse_loss(decoded, pictures), F.l1_loss(decoded, pictures)
        kl = posterior.kl().mean() / (pictures.shape[-1] // 4) ** 2
        loss = l1 + mse + 0.5 * gradient_loss(decoded, pictures) + 3e-4 * kl
        return loss, {"psnr_db": 10 * math.log10(4 / mse.item()), "l1": l1.item(), "kl": kl.item()}

    fit({"vae": vae}, loss_fn, out=out, steps=steps, batch_size=BATCH_SIZE, learning_rate=1.5e-3, seed=seed, ema=0.995)
    vae.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed + 999)
    pictures = drawings.render(drawings.sample(512, generator), generator)
    latents = encode(vae, pictures)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    decoded = torch.cat([vae.decode(batch).sample for batch in latents.split(64)])
    psnr = 10 * math.log10(4 / F.mse_loss(decoded, pictures).item())
    print(f"autoencoder: {psnr:.2f} dB on held-out augmentations, scaling factor {vae.config.scaling_factor}")
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Posterior modes (B, 4, h, w) of pictures, unscaled."""
    batches = pictures.contiguous(memory_format=torch.channels_last).split(64)
    return torch.cat([vae.encode(batch).latent_dist.mode() for batch in batches])
