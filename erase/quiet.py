"""Nothing shown: the libraries' chatter kept out of the results, and a progress that nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager


class Silent:
    """A run's progress, and each of its bars, where nobody watches."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator["Silent"]:
        """It is its own bar."""
        yield self

    def advance(self, num: int = 1, **figures: float) -> None:
        """Nobody is told."""

    def note(self, text: str) -> None:
        """Nobody is told."""


def quiet_libraries() -> None:
    """Keep the libraries' chatter out of the results."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
