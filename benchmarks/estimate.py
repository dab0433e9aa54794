"""The memory that `--dry-run` foretells for a full SD 1.4 UNet, against what `benchmarks.step_memory` measured.

    python -m benchmarks.estimate [--sizes 32,64] [--quick]

Foretold are the tensors of a training step (`erase.estimate.training_bytes`) and the activations that autograd holds, found as
`--dry-run` finds them: by one backward pass with gradient checkpointing. Measured figures are read from
results/step_memory.json, so run that first (with --quick nothing is compared). Bars: within 15 %.
"""

import json

import torch

from benchmarks.full_size import RESULTS, arguments, build_unet, report
from erase.activations import saved_bytes
from erase.estimate import training_bytes


def activations(unet: torch.nn.Module, size: int) -> int:
    """Bytes that autograd holds at most for one picture's step at that latent size."""
    latents, embeds = torch.randn(1, 4, size, size), torch.randn(1, 77, unet.config.cross_attention_dim)
    bytes_held = saved_bytes(lambda: unet(latents, torch.tensor([500]), embeds).sample.float().square().mean().backward(), unet)
    unet.zero_grad(set_to_none=True)
    return bytes_held


def main() -> None:
    options = arguments(__doc__)
    unet = build_unet("quick" if options.quick else "sd14")
    unet.enable_gradient_checkpointing()
    measured = {} if options.quick else json.loads((RESULTS / "step_memory.json").read_text())["figures"]
    figures: dict[str, float] = {}
    for size in (16,) if options.quick else [int(size) for size in options.sizes.split(",")]:
        held = activations(unet, size)
        figures[f"activations_gb_{size}"] = round(held / 1e9, 3)
        for density in (0.5, 0.1):
            tensors = sum(training_bytes(unet, density).values())
            for name, foretold in (("ours", tensors), ("ours_with_activations", tensors + held)):
                key = f"{name}_gb_{density}_{size}"
                figures[f"foretold_{key}"] = round(foretold / 1e9, 3)
                if key in measured:
                    figures[f"foretold_over_measured_{key}"] = round(foretold / 1e9 / measured[key], 3)
    unet = unet.bfloat16()
    for density in (0.5, 0.1):
        figures[f"foretold_bfloat16_gb_{density}"] = round(sum(training_bytes(unet, density).values()) / 1e9, 3)
        if measured:
            ratio = figures[f"foretold_bfloat16_gb_{density}"] / measured[f"bfloat16_gb_{density}"]
            figures[f"foretold_over_measured_bfloat16_gb_{density}"] = round(ratio, 3)
    ratios = [key for key in figures if key.startswith("foretold_over_measured")]
    report("estimate", figures, dict.fromkeys(ratios, 1.15), dict.fromkeys(ratios, 0.85), options.quick)


if __name__ == "__main__":
    main()
