"""Pictures for probes: each depends on its own request alone, and is what its PNG file holds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erase.concepts import Prompt
from eval.attacks.base import Bar, Scene
from eval.detectors import to_tensor
from eval.generate import draw as draw_batch
from eval.pictures import Request, chunks
from pipelines.family import Family


def ask(scene: Scene, prompt: Prompt | str, seed: int, guidance_scale: float | None = None) -> Request:
    """The request for one picture with the scene's settings."""
    text = prompt if isinstance(prompt, str) else prompt.text
    guidance = scene.guidance_scale if guidance_scale is None else guidance_scale
    return Request(prompt=text, seed=seed, guidance=guidance, steps=scene.num_inference_steps)


def draw(family: Family, requests: Sequence[Request], batch_size: int, bar: Bar) -> Tensor:
    """The pictures (N, 3, H, W) in [-1, 1], rounded to 8 bits as in a file."""
    drawn: dict[int, Tensor] = {}
    groups: dict[tuple[float, int], list[int]] = {}
    for k, request in enumerate(requests):
        groups.setdefault((request.guidance, request.steps), []).append(k)
    for group in groups.values():
        for part in chunks(group, batch_size):
            pictures = to_tensor(list(draw_batch(family, [requests[k] for k in part], batch_size)))
            drawn |= dict(zip(part, pictures, strict=True))
            bar.advance(len(part))
    return torch.stack([drawn[k] for k in range(len(requests))])
