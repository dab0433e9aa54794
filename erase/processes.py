"""Several processes as one (`accelerate launch -m erase ...`); in a single process everything here does nothing."""

import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """The process's number, from 0."""
    return int(state().process_index) if _launched() else 0


def num_processes() -> int:
    """How many processes share the work."""
    return int(state().num_processes) if _launched() else 1


def state() -> PartialState:
    """Accelerate's account of the processes; joins them at the first call."""
    return PartialState(cpu=not torch.cuda.is_available())


def _launched() -> bool:
    return dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())


def peak_rss() -> int:
    """The most bytes that this process was resident with.

    Where the kernel tells it: `getrusage` counts in what the process was started from.
    """
    return _told("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def present_rss() -> int:
    """Bytes that this process is resident with now; where the kernel does not tell, the most that it was."""
    return _told("VmRSS") or peak_rss()


def _told(name: str) -> int:
    """Bytes by that name in the kernel's account of this process; 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def share(items: list[T]) -> list[T]:
    """The process's own items: every `num_processes`-th from `rank` on."""
    return items[rank() :: num_processes()]


def in_order(mine: list[T]) -> list[T]:
    """All items, as they stood before `share` dealt them out; on every process."""
    if num_processes() == 1:
        return mine
    hands: list[list[T]] = gather_object([mine])
    return [hands[k % len(hands)][k // len(hands)] for k in range(sum(len(hand) for hand in hands))]


def by_rank(values: Tensor) -> list[Tensor]:
    """Every process's tensor; added one after another they round as in a single process."""
    if num_processes() == 1:
        return [values]
    hands = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(num_processes())]
    dist.all_gather(hands, values.contiguous())
    return hands


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if num_processes() > 1:
        dist.all_reduce(values)
    return values


def sum_counts(counts: Counter[str]) -> Counter[str]:
    """The sums over all processes, key by key."""
    if num_processes() == 1:
        return counts
    hands: list[Counter[str]] = gather_object([counts])
    total: Counter[str] = Counter()
    for hand in hands:
        total.update(hand)
    return total


def main_first(work: Callable[[], T]) -> T:
    """The result of the main process's work, on every process; a user's mistake found there is raised on all of them."""
    if num_processes() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result
