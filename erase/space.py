"""What a run will write to the disk, known before it begins."""

from pathlib import Path
from typing import Any, cast

import torch

from erase.estimate import density_of, lookahead_share
from erase.evaluation import is_measured
from erase.export import num_bytes, patch_bytes
from erase.plan import Plan
from pipelines.family import Family


def bytes_missing(plan: Plan, family: Family, folder: Path) -> int:
    """Bytes that the run will still write: what it needs at its fullest without what lies in the folder already."""
    if (folder / "report.html").is_file():  # it was finished: at most a stage is made again, in place of what is there
        return 0
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return max(0, bytes_at_most(plan, family) - there)


def bytes_at_most(plan: Plan, family: Family) -> int:
    """Bytes that a run's folder holds when it is fullest.

    That is while training saves a state, the one before still there, or with the exported model beside everything else.
    Pictures count as if nothing compressed them, and half as much again for the report; headers are left out.
    """
    shapes = {name: tuple(p.shape) for name, p in family.denoiser.named_parameters()}
    salient = int(density_of(plan.config) * sum(p.numel() for p in family.denoiser.parameters()))
    mask, patch = patch_bytes(shapes, 0, 0), patch_bytes(shapes, salient, 4)
    state = (6 if lookahead_share(plan) else 3) * 4 * salient  # values and two moments; as many of a relearner
    states = 2 * state if plan.config.train.steps > plan.config.train.checkpoint_every else state
    height, width = family.image_size
    num_pictures = 2 * (len(plan.forget_evaluation) + len(plan.retain_evaluation)) if is_measured(plan, family) else 0
    model = num_bytes(cast(Any, family).pipeline, torch.float32)
    return _data_bytes(plan, family) + mask + patch + max(states, model + num_pictures * height * width * 3 * 3 // 2)


def _data_bytes(plan: Plan, family: Family) -> int:
    """Bytes of data.safetensors: a latent for each picture and a row of the prompt table for each prompt."""
    denoiser: Any = family.denoiser
    size = denoiser.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    pictures = len(plan.data.forget) + len(plan.data.retain)
    prompts = {p.text for p in (*plan.data.forget, *plan.data.retain, *(p for row in plan.data.relabelled for p in row))}
    prompts |= {p.text for p in plan.data.dual if p} | {p.text for p in plan.data.alone} | {""}
    row = sum(values.nbytes for values in family.encode_prompts([""]).values())
    return pictures * denoiser.config.in_channels * height * width * 4 + len(prompts) * row
