"""What a run will cost, measured on the machine at hand before it begins."""

import time

import torch

from erase.plan import Plan
from pipelines.family import Family


def estimate(plan: Plan, family: Family) -> dict[str, float]:
    """Seconds per stage and disk space, extrapolated from one timed batch of the denoiser forward and backward."""
    data, train, evaluation = plan.config.data, plan.config.train, plan.config.evaluation
    probe = min(8, data.batch_size)
    latents = family.generate(
        ["" for _ in range(probe)],
        list(range(probe)),
        num_inference_steps=1,
        guidance_scale=1.0,
        batch_size=probe,
    )
    conditioning = family.encode_prompts([plan.data.forget[0].text] * probe)
    timesteps = torch.full((probe,), family.num_train_timesteps // 2)

    def clock(backward: bool) -> float:
        began = time.monotonic()
        with torch.set_grad_enabled(backward):
            prediction = family.predict(latents, timesteps, conditioning)
            if backward:
                prediction.square().mean().backward()
        return (time.monotonic() - began) / probe

    parameters = list(family.denoiser.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    clock(True)
    backward_s, forward_s = clock(True), clock(False)
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(False)

    def sampling(num: int, steps: int, guidance: float) -> float:
        return num * steps * forward_s * (2 if guidance > 1 else 1)

    generate = sampling(len(plan.data.forget), data.num_inference_steps, data.forget_guidance_scale)
    generate += sampling(len(plan.data.retain), data.num_inference_steps, data.retain_guidance_scale)
    pictures = len(plan.forget_evaluation) + len(plan.retain_evaluation)
    seconds = {
        "generate_s": generate,
        "saliency_s": plan.config.saliency.rounds * len(plan.data.forget) * backward_s,
        "train_s": train.steps * (train.forget_batch_size + train.retain_batch_size) * (backward_s + forward_s),
        "evaluate_s": 2 * sampling(pictures, evaluation.num_inference_steps, evaluation.guidance_scale),
    }
    num_weights = sum(p.numel() for p in parameters)
    total = round(sum(seconds.values()), 1)
    disk = num_weights * 4 * (1 + plan.config.saliency.density) / 1e9
    return {key: round(value, 1) for key, value in seconds.items()} | {"total_s": total, "denoiser_disk_gb": round(disk, 3)}
