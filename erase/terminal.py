"""What a person sees in the terminal: progress bars and notes on stderr, and nothing that would steer it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer

LABELS = {
    "generate": "pictures to forget and to keep",
    "saliency": "which weights carry it",
    "train": "forgetting",
    "export": "writing the model",
    "evaluate": "before and after",
    "report": "report",
}


class Bars:
    """Progress bars with ETA on stderr."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        """A bar for one stage."""
        from tqdm import tqdm

        label = f"{LABELS.get(name, name):<32}"
        bar = tqdm(total=total, desc=label, file=sys.stderr, leave=True, dynamic_ncols=True, disable=not speaks())

        class Advance:
            def advance(self, num: int = 1, **figures: float) -> None:
                if figures:
                    bar.set_postfix({k.removesuffix("_loss"): f"{v:.4f}" for k, v in figures.items()}, refresh=False)
                bar.update(num)

        with bar:
            yield Advance()

    def note(self, text: str) -> None:
        """A line between the bars."""
        if speaks():
            typer.echo(text, err=True)


def speaks() -> bool:
    """Whether this is the process, of those that share a run, that tells the user what happens."""
    return os.environ.get("RANK", "0") == "0"


def printable(text: str) -> str:
    """The text in one line, with what would steer a terminal written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
