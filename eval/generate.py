"""Pictures for prompts, as PNG files with a manifest; the same seeds for the base and for the erased model."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erase.concepts import Prompt
from erase.config import EvaluationConfig
from erase.files import write_text
from pipelines.family import Family, Progress


def draw(
    family: Family, prompts: list[Prompt], config: EvaluationConfig, folder: Path, progress: Progress | None = None
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of the prompts, as 8-bit values; written to `folder` with one manifest line each."""
    seeds = [config.seed + k for k in range(len(prompts))]
    latents = family.generate(
        [p.text for p in prompts],
        seeds,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
        progress=progress,
    )
    pixels = to_pixels(family.decode_latents(latents))
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for k, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        name = f"{k:05d}.png"
        Image.fromarray(pixels[k]).save(folder / name)
        record = {"file": name, "prompt": prompt.text, "object": prompt.object, "style": prompt.style, "seed": seed}
        settings = {"steps": config.num_inference_steps, "guidance": config.guidance_scale}
        lines.append(json.dumps(record | settings) + "\n")
    write_text("".join(lines), folder / "manifest.jsonl")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(pictures: Tensor) -> np.ndarray:
    """Pictures (N, 3, H, W) in [-1, 1] as uint8 (N, H, W, 3)."""
    scaled = (pictures.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
