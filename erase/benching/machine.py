"""What the rows of the table were made on."""

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from erase.processes import peak_rss


def machine() -> dict[str, Any]:
    """Date, processor, cores, threads of this process, how busy the machine was over the last minutes, and torch.

    `load`: mean number of busy processes, this one among them; seconds beside other work are not those of an idle machine.
    """
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[1], 1) if hasattr(os, "getloadavg") else None,
        "torch": str(torch.__version__),
    }


def reset_peak() -> None:
    """Let the process's peak memory count from here on, where the kernel allows it."""
    file = Path("/proc/self/clear_refs")
    if file.is_file() and peak_rss():
        try:
            file.write_text("5")
        except OSError:
            return
