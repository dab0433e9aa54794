"""Less memory for a denoiser of full size: activations recomputed in the backward pass, and of a few rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eval.targets import is_full_size
from pipelines.family import Family

ROWS_AT_ONCE = 4  # of a full-size denoiser; of SDXL, recomputed, about 5 GB


@contextmanager
def checkpointed(family: Family) -> Iterator[None]:
    """Within the block a full-size denoiser recomputes its activations in the backward pass; a smaller one stays as it is."""
    modules: list[Any] = [one for one in family.denoiser.modules() if hasattr(one, "gradient_checkpointing")]
    before = [one.gradient_checkpointing for one in modules]
    try:
        if is_full_size(family.denoiser):
            family.checkpoint_gradients(True)
        yield
    finally:
        for one, on in zip(modules, before, strict=True):
            one.gradient_checkpointing = on


def parts(num: int, rows_at_once: int | None) -> list[slice]:
    """The rows 0 to num in parts of at most so many; None: in one."""
    size = rows_at_once or max(1, num)
    return [slice(first, first + size) for first in range(0, num, size)]
