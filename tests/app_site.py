"""A page with one small finished run, for the tests that ask it through its API and through a browser."""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.app import make_run
from erase.app.command import open_page, prepare

# A run of seconds whose patch still changes every picture.
QUICK = [
    "data.num_forget=4",
    "data.num_retain=4",
    "data.num_anchor=2",
    "data.num_inference_steps=1",
    "saliency.rounds=1",
    "train.learning_rate=0.003",
    "train.warmup_steps=1",
    "train.forget_batch_size=4",
    "train.retain_batch_size=2",
    "evaluation.num_forget=6",
    "evaluation.num_inference_steps=1",
    "train.steps=4",
]


@cache
def finished_run() -> Path:
    """A finished run of dog, made once for all tests of a process."""
    out = Path(tempfile.mkdtemp(prefix="erase-app-tests-")) / "dog"
    atexit.register(shutil.rmtree, out.parent, ignore_errors=True)
    make_run(out, "dog", QUICK)
    return out


@contextlib.contextmanager
def site(runs: Path, **options: Any) -> Iterator[tuple[str, Any]]:
    """(the page's address, its actions)."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    settings = {"names": [], "runs": runs, "blur": [], "screen": True, "load": {}} | options
    actions = prepare(**settings)
    page, address, _ = open_page(actions)
    actions.page = page
    try:
        yield address, actions
    finally:
        page.close()
        actions.orders.jobs.close()
        actions.files.close()
