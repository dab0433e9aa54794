"""Sums and products that need more than float32."""

import torch
from torch import Tensor, nn


def exact_device(device: torch.device) -> torch.device:
    """Where float64 is computed: there, or on the CPU for Apple's devices, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def exact(values: Tensor) -> Tensor:
    """The values in float64, on the device where that can be computed."""
    return values.to(exact_device(values.device)).double()


HALF_SCALE = 256.0  # small gradients would be zero in float16


def loss_scale(model: nn.Module) -> float:
    """What a loss whose gradients are only ranked is multiplied by: 1, but for a float16 model; their order stays as it is."""
    return HALF_SCALE if next(model.parameters()).dtype == torch.float16 else 1.0
