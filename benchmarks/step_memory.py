"""Memory of a training step of the full SD 1.4 UNet (859.5 M random weights): ours against the dense way.

    python -m benchmarks.step_memory [--sizes 32,64] [--quick]

Counted are weights, gradients, optimizer state and mask: the process's resident size at its largest from the end of the
backward pass (activations are gone) to the end of the optimizer's step, less what it was before the model was made. The dense
way is the reference's: Adam over all weights, a dense gradient for each, a float mask that is multiplied into it. Both in
float32, gradient checkpointing on, each in a process of its own whose allocator hands freed tensors back to the system at once.
The bfloat16 figures are measured the same way.
"""

import gc
import json
import time

import torch

from benchmarks.full_size import arguments, build_unet, in_a_process, peak_rss, report, rss
from erase.saliency import Mask
from erase.salient import LeanOptimizer, SalientWeights

MODULE = "benchmarks.step_memory"
# A tensor's memory goes back to the system with the tensor: the holes that activations leave in glibc's heap do not count.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def random_mask(unet: torch.nn.Module, density: float) -> Mask:
    """A mask of about that density, drawn at random."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in unet.named_parameters()}


def part(kind: str, way: str, density: float, size: int, dtype: str) -> dict[str, float]:
    """Bytes and seconds of the second of two steps."""
    torch.empty(1).normal_()
    before = rss()
    unet = build_unet(kind, getattr(torch, dtype))
    unet.enable_gradient_checkpointing()
    mask = random_mask(unet, density)
    if way == "dense":
        floats = {name: chosen.float() for name, chosen in mask.items()}
        del mask
        adam = torch.optim.Adam(unet.parameters(), 1e-5)
    else:
        salient = SalientWeights(unet, mask, lean=True)
        del mask
        lean = LeanOptimizer(salient, lambda values: torch.optim.Adam(values, 1e-5, foreach=True))
    gc.collect()
    latents = torch.randn(1, 4, size, size, dtype=getattr(torch, dtype))
    embeds = torch.randn(1, 77, unet.config.cross_attention_dim, dtype=getattr(torch, dtype))
    for _ in range(2):
        began = time.monotonic()
        with peak_rss() as whole:
            unet(latents, torch.tensor([500]), embeds).sample.float().square().mean().backward()
        backward_s = time.monotonic() - began
        with peak_rss() as peak:
            if way == "dense":
                for name, parameter in unet.named_parameters():
                    parameter.grad.mul_(floats[name])
                adam.step()
                adam.zero_grad()
            else:
                norm = lean.gradient_norm()
                lean.step(1e-5, (1 / (norm + 1e-6)).clamp(max=1))
        step_s = time.monotonic() - began - backward_s
    return {
        "bytes": peak[0] - before,
        "with_activations": max(whole[0], peak[0]) - before,
        "backward_s": backward_s,
        "step_s": step_s,
    }


def main() -> None:
    options = arguments(__doc__)
    if options.part:
        print(json.dumps(part(**options.part)))
        return
    kind = "quick" if options.quick else "sd14"
    figures: dict[str, float] = {}
    sizes = (8, 16) if options.quick else [int(size) for size in options.sizes.split(",")]
    for size in sizes:
        dense = in_a_process(MODULE, MALLOC, kind=kind, way="dense", density=0.5, size=size, dtype="float32")
        figures[f"dense_gb_{size}"] = round(dense["bytes"] / 1e9, 3)
        for density in (0.5, 0.1):
            ours = in_a_process(MODULE, MALLOC, kind=kind, way="ours", density=density, size=size, dtype="float32")
            figures[f"ours_gb_{density}_{size}"] = round(ours["bytes"] / 1e9, 3)
            figures[f"ratio_{density}_{size}"] = round(ours["bytes"] / dense["bytes"], 3)
            figures[f"ours_with_activations_gb_{density}_{size}"] = round(ours["with_activations"] / 1e9, 3)
    for density in (0.5, 0.1):
        ours = in_a_process(MODULE, MALLOC, kind=kind, way="ours", density=density, size=sizes[0], dtype="bfloat16")
        figures[f"bfloat16_gb_{density}"] = round(ours["bytes"] / 1e9, 3)
    at_most = {key: 0.62 if "_0.5_" in key else 0.40 for key in figures if key.startswith("ratio")}
    report("step_memory", figures, at_most | {"bfloat16_gb_0.5": 8.5, "bfloat16_gb_0.1": 4.5}, {}, options.quick)


if __name__ == "__main__":
    main()
