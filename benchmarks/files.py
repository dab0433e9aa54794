"""Sizes of the mask and the patch of a full-size SD 1.4 UNet (random weights), and the time to put the patch on and dial it.

    python -m benchmarks.files [--quick]

The files are really written and read back. Times are wall-clock seconds, the best of five, beside the processor's seconds. The
last line is one JSON object with the figures, the bars and `ok`; without --quick it is kept in results/.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import nn

from benchmarks.environment import environment
from erase.applied_patch import AppliedPatch
from erase.patch import Patch, load_patch, save_patch
from erase.quiet import quiet_libraries
from erase.saliency import save_mask
from pipelines.load import load

RESULTS = Path(__file__).parent / "results"
DENSITY = 0.1
BARS = {"mask_gb": 0.12, "patch_fp16_gb": 0.30, "apply_s": 1.5, "apply_channels_last_s": 1.5, "emoji_apply_s": 0.05}
SD_1_4: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def random_unet(config: dict[str, Any], generator: torch.Generator) -> nn.Module:
    """A UNet of random weights, without the library's slower initialisation."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**config)
    unet.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.uniform_(-0.05, 0.05, generator=generator)
    return unet.requires_grad_(False)


def random_patch(model: nn.Module, density: float, generator: torch.Generator) -> tuple[Patch, dict[str, torch.Tensor]]:
    """(a patch of that share of the weights at random places, its mask)."""
    mask, positions, values = {}, {}, {}
    for name, p in model.named_parameters():
        mask[name] = torch.rand(p.shape, generator=generator) < density
        positions[name] = mask[name].reshape(-1).nonzero()[:, 0]
        values[name] = torch.rand(len(positions[name]), generator=generator) - 0.5
    return Patch(values, positions, {name: tuple(chosen.shape) for name, chosen in mask.items()}, {}), mask


def best_of(times: int, work: Callable[[], object]) -> tuple[float, float]:
    """(fewest wall-clock seconds, fewest processor seconds)."""
    wall, processor = [], []
    for _ in range(times):
        began, began_processor = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - began_processor)
    return min(wall), min(processor)


def apply_times(model: nn.Module, patch: Patch, prefix: str) -> dict[str, float]:
    """Seconds to put the patch on (and to dial it to 0.5) in the model's memory format."""
    applied = AppliedPatch(model, patch, 0.0)
    put_on = best_of(5, lambda: AppliedPatch(model, patch))
    dialled = best_of(2, lambda: applied.dial(0.5))
    applied.undo()
    figures = {"apply_s": put_on[0], "apply_processor_s": put_on[1], "dial_s": dialled[0], "dial_processor_s": dialled[1]}
    return {prefix.format(key): round(value, 4) for key, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a UNet of a tenth of the width; nothing kept, sizes without bars")
    arguments = parser.parse_args()
    quiet_libraries()
    generator = torch.Generator().manual_seed(0)
    config = SD_1_4 | ({"block_out_channels": (32, 64, 128, 128)} if arguments.quick else {})
    unet = random_unet(config, generator)
    patch, mask = random_patch(unet, DENSITY, generator)
    num_weights = sum(p.numel() for p in unet.parameters())
    figures: dict[str, Any] = {"num_weights": num_weights, "num_tensors": len(mask), "density": DENSITY}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "file.safetensors"
        save_mask(mask, file, {})
        figures["mask_gb"] = file.stat().st_size / 1e9
        del mask
        for key, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            began = time.perf_counter()
            save_patch(patch, file, dtype)
            figures[f"patch_{key}_gb"] = file.stat().st_size / 1e9
            figures[f"patch_{key}_save_s"] = round(time.perf_counter() - began, 2)
        began = time.perf_counter()
        read = load_patch(file)
        figures["patch_fp16_load_s"] = round(time.perf_counter() - began, 2)
    assert all(torch.equal(read.positions[name].long(), patch.positions[name]) for name in patch.positions)
    del read
    figures |= apply_times(unet, patch, "{}")
    unet.to(memory_format=torch.channels_last)
    times = apply_times(unet, patch, "{}")
    figures |= {key.replace("_", "_channels_last_", 1): value for key, value in times.items()}
    del unet, patch
    emoji = load("emoji").denoiser
    for density in (DENSITY, 0.5):
        times = apply_times(emoji, random_patch(emoji, density, generator)[0], "emoji_{}")
        figures |= times if density == DENSITY else {f"{key}_density_{density}": value for key, value in times.items()}
    bars = {key: bar for key, bar in BARS.items() if not (arguments.quick and key.endswith("_gb"))}
    ok = all(figures[key] <= bar for key, bar in bars.items())
    report = {"figures": figures, "bars": bars, "ok": ok, "environment": environment()}
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "files.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
