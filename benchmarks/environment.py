"""What a figure was measured on."""

import platform

import diffusers

from erase.benching.machine import machine


def environment() -> dict[str, object]:
    """Date, machine and versions."""
    return {**machine(), "python": platform.python_version(), "diffusers": diffusers.__version__}
