"""What the rows of the table were made by: the code that decides how a model is trained, and the machine."""

import platform
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

from erase.files import hash_of
from erase.source import code_alone

TRAINING = ("train", "best", "salient", "saliency", "data")  # modules that decide how a model is trained, beside the methods


@cache
def code_hash() -> str:
    """A hash of the code that decides how a model is trained: rows of other code do not count."""
    here = Path(__file__).parent.parent
    files = [*sorted((here / "methods").glob("*.py")), *(here / f"{name}.py" for name in TRAINING)]
    return hash_of([code_alone(path.read_text(encoding="utf-8")) for path in files])


def machine() -> dict[str, Any]:
    """Date, processor, threads and torch of this process: what a row's seconds and gigabytes are of."""
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
