"""What a person sees in the terminal: progress and notes on stderr, how to go on after Ctrl-C, nothing that would steer it."""

import contextlib
import dis
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

STOPPED = 130
"""The exit code of what was stopped: a shell's for Ctrl-C."""
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


@contextlib.contextmanager
def stoppable(out: Path | None) -> Iterator[None]:
    """Ctrl-C, and SIGTERM as when the machine is taken away, end the block with a sentence on how to go on in `out`.

    `out` None: the block keeps nothing.
    """
    caught = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if caught else None
    try:
        yield
    except KeyboardInterrupt:
        kept = f" Finished work is kept in {out}; run the same command again to resume." if out else ""
        typer.echo(f"erase: stopped.{kept}", err=True)
        raise typer.Exit(STOPPED) from None
    finally:
        if caught:
            signal.signal(signal.SIGTERM, before)


LESS_FOR_TRAINING = (
    "set a smaller data.batch_size, saliency.batch_size or evaluation.batch_size, train.accumulate=2 or more, or "
    "train.gradient_checkpointing=true, each with --set, or give --dtype bfloat16; --dry-run says what training needs"
)
"""What makes a run need less memory."""


def less_for_training(out: Path | None) -> str:
    """What makes a run need less memory, and how it goes on in its folder with that."""
    if out is None:
        return LESS_FOR_TRAINING
    return (
        f"{LESS_FOR_TRAINING}. Finished stages are kept in {out}: the same command with --out {out} and such settings "
        "continues behind them, all but --dtype, which needs a new run"
    )


@contextlib.contextmanager
def enough_memory(less: str) -> Iterator[None]:
    """What runs out of memory in the block becomes an OSError of one sentence; `less` says what makes it need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (whose := short_of_memory(error)) is None:
            raise
        raise OSError(errno.ENOMEM, f"{whose} does not have enough memory for this: {less}.") from error


def short_of_memory(error: BaseException) -> str | None:
    """Whose memory is full, in words, if that is what the error says; torch need not be imported."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's own allocator has no error class
        return "the machine"
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower():
        return "the graphics card"
    return None


OURS = ("erase", "eval", "pipelines", "__main__")
"""The packages whose code raises what a user is to read; `python -m erase.cli` is __main__."""
READERS = (
    "codecs",
    "diffusers",
    "huggingface_hub",
    "json",
    "numpy.lib",
    "PIL",
    "pydantic",
    "safetensors",
    "transformers",
    "yaml",
)
"""What reads users' files and names: their errors are about these, and nothing is wrong with the program."""


def sentence_of(error: ValueError) -> str:
    """The error as it is told: the sentence that was raised for the user, or that it is an internal one."""
    origin = error.__traceback__
    while origin is not None and origin.tb_next is not None:
        origin = origin.tb_next
    if origin is None or isinstance(error, UnicodeError):
        return str(error)
    code, module = origin.tb_frame.f_code.co_code, f"{origin.tb_frame.f_globals.get('__name__')}."
    raised = dis.opname[code[origin.tb_lasti]] == "RAISE_VARARGS"  # else by C code called there, as zip(strict=True) is
    if module.startswith(tuple(f"{name}." for name in READERS)) or (raised and module.partition(".")[0] in OURS):
        return str(error)
    return f"internal error: {error}; set ERASE_DEBUG=1 to see where"


def debug(error: BaseException) -> None:
    """Print the traceback, where ERASE_DEBUG is set in the environment."""
    if os.environ.get("ERASE_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)


def printable(text: str) -> str:
    """The text in one line, with what would steer a terminal written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
