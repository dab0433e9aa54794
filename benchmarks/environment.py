"""What a figure was measured on."""

import os
import platform

import diffusers

from erase.benching.code import machine


def environment() -> dict[str, object]:
    """Date, processor, threads, cores and versions."""
    return {**machine(), "cores": os.cpu_count(), "python": platform.python_version(), "diffusers": diffusers.__version__}
