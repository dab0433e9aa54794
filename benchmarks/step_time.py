"""Time of a training step at SD 1.4's full size (random weights): ours against the reference's procedure, part by part.

    python -m benchmarks.step_time [--quick]

One forget and one retain picture at 64 x 64 latents (512 x 512 pixels), the paper's loss. The reference's procedure, written
from its description: VAE encodes three pictures and the text encoder three prompts at every step; forget, pseudo and retain
predictions one after another, each with its graph, the target from the model being trained and then detached; attention without
the fused kernel; an int64 copy of the mask is made at every step and multiplied into the gradients (the reference holds 6.9 GB
of it; here it lies as bool, or the reference would not fit into 24 GB); Adam over all weights. Ours: latents and
embeddings come from the cache, one forward for both pictures, the target under no_grad with the originals swapped in (once for
eight steps: an eighth of the swap counts), Adam over the salient half. Gradient checkpointing on in both, for the same reason.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.full_size import arguments, build_unet, in_a_process, random_weights, report
from benchmarks.step_memory import random_mask
from erase.salient import LeanOptimizer, SalientWeights
from erase.train import AHEAD

MODULE = "benchmarks.step_time"
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time to the part."""
        began = time.monotonic()
        yield
        self.parts[name] += time.monotonic() - began


def reference_step(quick: bool) -> dict[str, float]:
    """Seconds by part of the reference's step."""
    unet = build_unet("quick" if quick else "sd14")
    unet.set_attn_processor(AttnProcessor())
    unet.enable_gradient_checkpointing()
    small = {"block_out_channels": (32, 32, 32, 32)} if quick else {}
    with init_empty_weights():
        vae = AutoencoderKL(**(VAE | small))
    vae, text = random_weights(vae), CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    width = unet.config.cross_attention_dim
    adam = torch.optim.Adam(unet.parameters(), 1e-5)
    mask = random_mask(unet, 0.5)
    pictures = torch.randn(3, 1, 3, *[128 if quick else 512] * 2)
    clock = Clock()
    for step in range(2):
        clock = Clock() if step else clock  # the first step builds the optimizer's state

        def predict(latents: Tensor, embeds: Tensor) -> Tensor:
            return unet(latents, torch.tensor([500]), embeds).sample

        with clock.part("vae"), torch.no_grad():
            latents = [vae.encode(picture).latent_dist.sample() * 0.18 for picture in pictures]
        with clock.part("text"), torch.no_grad():
            embeds = [text(torch.randint(0, 49000, (1, 77))).last_hidden_state[..., :width] for _ in range(3)]
        with clock.part("unet forward"):
            noise = torch.randn_like(latents[0])
            forget = predict(latents[0] + noise, embeds[0])
            pseudo = predict(latents[1] + noise, embeds[1]).detach()
            loss = F.mse_loss(forget, pseudo) + 0.1 * F.mse_loss(predict(latents[2] + noise, embeds[2]), noise)
        with clock.part("unet backward"):
            loss.backward()
        with clock.part("mask"):
            for name, parameter in unet.named_parameters():
                parameter.grad *= mask[name].long()
        with clock.part("optimizer"):
            adam.step()
            adam.zero_grad()
    return dict(clock.parts)


def our_step(quick: bool) -> dict[str, float]:
    """Seconds by part of our step."""
    unet = build_unet("quick" if quick else "sd14").to(memory_format=torch.channels_last)
    unet.enable_gradient_checkpointing()
    salient = SalientWeights(unet, random_mask(unet, 0.5), lean=True)
    optimizer = LeanOptimizer(salient, lambda values: torch.optim.Adam(values, 1e-5, foreach=True))
    size = 16 if quick else 64
    noisy = torch.randn(2, 4, size, size).contiguous(memory_format=torch.channels_last)
    embeds = torch.randn(3, 77, unet.config.cross_attention_dim)
    timesteps = torch.tensor([500, 500])
    clock = Clock()
    for step in range(2):
        clock = Clock() if step else clock
        with clock.part("swap"), salient.original():
            began = time.monotonic()
            with torch.no_grad():
                target = unet(noisy[:1], timesteps[:1], embeds[2:]).sample
            teacher = time.monotonic() - began
        clock.parts["swap"] -= teacher
        clock.parts["unet forward"] += teacher
        clock.parts["swap"] /= AHEAD
        with clock.part("unet forward"):
            prediction = unet(noisy, timesteps, embeds[:2]).sample
            loss = F.mse_loss(prediction[:1], target) + 0.1 * F.mse_loss(prediction[1:], noisy[1:])
        with clock.part("unet backward"):
            loss.backward()
        with clock.part("optimizer"):
            norm = optimizer.gradient_norm()
            optimizer.step(1e-5, (1 / (norm + 1e-6)).clamp(max=1))
    return dict(clock.parts)


def main() -> None:
    options = arguments(__doc__)
    if options.part:
        print(json.dumps((our_step if options.part["ours"] else reference_step)(options.part["quick"])))
        return
    reference, ours = (in_a_process(MODULE, ours=ours, quick=options.quick) for ours in (False, True))
    figures = {f"reference_{name}_s": round(value, 3) for name, value in reference.items()}
    figures |= {f"ours_{name}_s": round(value, 3) for name, value in ours.items()}
    totals = sum(reference.values()), sum(ours.values())
    figures |= {
        "reference_s": round(totals[0], 2),
        "ours_s": round(totals[1], 2),
        "times_faster": round(totals[0] / totals[1], 2),
    }
    report("step_time", figures, {}, {"times_faster": 1.5}, options.quick)


if __name__ == "__main__":
    main()
