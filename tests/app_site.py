"""A page with one small finished run, for the tests that ask it through its API and through a browser."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from erase.app.command import open_page, prepare
from erase.config import resolve
from erase.plan import plan
from erase.run import execute
from pipelines.load import load, model_hash

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
]


class Silent:
    """Progress that nobody watches."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        class Bar:
            def advance(self, num: int = 1, **figures: float) -> None: ...

        yield Bar()

    def note(self, text: str) -> None: ...


def make_run(out: Path, concept: str = "dog", *more: str) -> None:
    """A finished run, by the functions that the command line calls."""
    config = resolve({"concept": concept}, [*QUICK, "train.steps=4", *more])
    family = load(config.model, config.load)
    execute(plan(config, family), family, out, Silent(), model_hash(config.model, config.load))


@contextlib.contextmanager
def site(runs: Path, **options: Any) -> Iterator[tuple[str, Any]]:
    """(the page's address, its actions)."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    settings = {"names": [], "runs": runs, "blur": [], "screen": True, "load": {}} | options
    actions = prepare(**settings)
    page, address, _ = open_page(actions)
    try:
        yield address, actions
    finally:
        page.close()
        actions.jobs.close()
        actions.files.close()
