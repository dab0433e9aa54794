"""Where a run, an evaluation, an audit and the bench report how far they are."""

from contextlib import AbstractContextManager
from typing import Protocol


class Bar(Protocol):
    """A progress bar: advance it, and show figures beside it."""

    def advance(self, num: int = 1, **figures: float) -> None:
        """Move on by num."""
        ...


class Progress(Protocol):
    """A bar for each stage, and notes; the command line draws bars, the tests count, the app draws its own."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Bar]:
        """The bar of one stage, which counts to `total`."""
        ...

    def note(self, text: str) -> None:
        """One line for the user."""
        ...
