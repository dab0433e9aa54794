"""Sums and products that need more than float32."""

import torch
from torch import Tensor


def exact_device(device: torch.device) -> torch.device:
    """Where float64 is computed: there, or on the CPU for Apple's devices, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def exact(values: Tensor) -> Tensor:
    """The values in float64, on the device where that can be computed."""
    return values.to(exact_device(values.device)).double()
