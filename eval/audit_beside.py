"""The base attacked in a process of its own while this one attacks the model.

A small denoiser gains little from a second thread on a CPU, and nearly twice as much is done by two processes of half the
threads. What the other process finds it keeps in the audit's folder, as every audit does; this one takes it from there.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erase.progress import Progress
from erase.quiet import quiet_libraries

SMALL = 100_000_000  # parameters of a denoiser of which two at once are no matter of memory


class Silent:
    """Progress of a process that nobody watches, which ends when the process that started it is gone."""

    def __init__(self) -> None:
        self.parent = os.getppid()

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator["Silent"]:
        """No bar."""
        yield self

    def advance(self, num: int = 1, **figures: float) -> None:
        """Nothing to show."""
        if os.getppid() != self.parent:
            raise SystemExit(1)

    def note(self, text: str) -> None:
        """Nothing to say."""


def gains(denoiser: nn.Module) -> bool:
    """Whether two processes do more than one: for a small denoiser on a CPU with threads to share."""
    weights = list(denoiser.parameters())
    return weights[0].device.type == "cpu" and torch.get_num_threads() > 1 and sum(w.numel() for w in weights) <= SMALL


@contextmanager
def beside(work: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[BaseProcess]:
    """A process that does `work(*arguments, Silent())` with half of the threads; it does not outlive the block."""
    threads = torch.get_num_threads()
    other = get_context("spawn").Process(target=_do, args=(work, arguments, threads // 2), daemon=True)
    other.start()
    torch.set_num_threads(threads - threads // 2)
    try:
        yield other
    finally:
        torch.set_num_threads(threads)
        if other.is_alive():
            other.kill()
        other.join()


def _do(work: Callable[..., None], arguments: tuple[Any, ...], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other's to answer: it ends this process
    quiet_libraries()
    torch.set_num_threads(threads)
    work(*arguments, Silent())


def wait_for(other: BaseProcess, folder: Path, bars: Progress, total: int) -> None:
    """Wait, under a bar of the outcomes in the folder, until the process has ended."""
    with bars.stage("base: what is left", total) as bar:
        shown = 0
        while other.is_alive():
            time.sleep(0.2)
            found = min(total, len(list(folder.glob("*/*/base/outcome.json"))))
            bar.advance(found - shown)
            shown = found
        bar.advance(total - shown)
