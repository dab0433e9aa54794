"""One erase run in a process of its own, for the page: the functions that the command line calls, told as JSON lines.

The first line of stdin is the order. When stdin ends the run stops as at Ctrl-C, with its state kept; so it does when the app
that started it is gone.
"""

import _thread
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from erase.app.screen import Screen
from erase.terminal import LESS_FOR_TRAINING, enough_memory

PREVIEW_STEPS = 12
"""Sampler steps of a preview picture."""
STEP_S = 10
"""How long a run that is to stop may take to the end of its step; then it is interrupted in the midst, and the step is lost."""


class Reporter:
    """A run's progress as JSON lines, with preview pictures every so many training steps."""

    def __init__(self, out: TextIO, every: int, screen: Screen, folder: Path) -> None:
        self.out = out
        self.folder = folder
        self.screen = screen
        self.every = every
        self.family: Any = None
        self.prompts: list[str] = []
        self.stopping = False
        self.noticed = threading.Event()
        self._step = self._resumed = 0
        self._said = time.monotonic()

    def say(self, event: str, **facts: Any) -> None:
        """One line."""
        self.out.write(json.dumps({"event": event, **facts}) + "\n")
        self.out.flush()

    def note(self, text: str) -> None:
        """One line for the user."""
        self.say("note", text=text)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        """The stage's bar."""
        self._stop()
        self.say("stage", name=name, total=total)
        if name == "train":
            self._resumed = steps_done(self.folder)
            self.preview()
        reporter = self

        class Bar:
            done = 0

            def advance(self, num: int = 1, **figures: float) -> None:
                self.done += num
                reporter.advanced(name, self.done, total, figures)

        yield Bar()

    def advanced(self, name: str, done: int, total: int, figures: dict[str, float]) -> None:
        """Every training step is told; of other stages' progress, five lines a second."""
        self._stop()
        now = time.monotonic()
        if figures or done >= total or now - self._said > 0.2:
            self.say("advance", done=done, **figures)
            self._said = now
        if name == "train":
            self._step = done
            # a resumed run tells its old steps first, when the weights are those of the last of them already
            if self.every and (done % self.every == 0 or done == total) and done > self._resumed:
                self.preview()

    def _stop(self) -> None:
        """Stop here if that was asked for: between two steps, when a training's state can be kept."""
        if self.stopping:
            self.noticed.set()
            raise KeyboardInterrupt

    def preview(self) -> None:
        """Pictures by the weights as they are now; all randomness is its own, so training does not notice."""
        if not (self.every and self.prompts):
            return
        from erase.app.markup import shot
        from erase.app.studio import pixels_of

        self.family.fetch_encoders()
        latents = self.family.generate(
            self.prompts,
            list(range(len(self.prompts))),
            num_inference_steps=PREVIEW_STEPS,
            guidance_scale=3.0,
            batch_size=len(self.prompts),
        )
        pixels = pixels_of(self.family, latents)
        self.family.release_encoders()
        seen = zip(pixels, self.prompts, self.screen.look(self.family, pixels), strict=True)
        pictures = [shot(picture, f"step {self._step}: {prompt}", sight=sight) for picture, prompt, sight in seen]
        self.say("preview", step=self._step, prompts=self.prompts, pictures=pictures)


def steps_done(folder: Path) -> int:
    """How many training steps a stopped run's state holds."""
    from safetensors import safe_open

    from erase.files import metadata_of

    counts = [0]
    for path in (folder / "state").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            counts.append(len(json.loads(metadata_of(file).get("records", "[]"))))
    return max(counts)


def run(order: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Plan and execute the run that was ordered; its results."""
    from erase.config import validate
    from erase.plan import plan
    from erase.quiet import quiet_libraries
    from erase.run import execute
    from pipelines.load import load, model_hash

    quiet_libraries()
    config = validate(order["config"])
    family = load(config.model, config.load)
    planned = plan(config, family)
    reporter.family = family
    asked = dict.fromkeys(p.text for p in planned.forget_evaluation)
    kept = dict.fromkeys(p.text for p in planned.retain_evaluation)
    reporter.prompts = [*list(asked)[:2], *list(kept)[:2]]
    return execute(planned, family, Path(order["out"]), reporter, model_hash(config.model, config.load))


def _stop_when_stdin_ends(reporter: Reporter) -> None:
    while os.read(0, 1024):  # not by sys.stdin, whose lock this thread would hold when the process ends
        pass
    reporter.stopping = True
    if not reporter.noticed.wait(STEP_S):
        _thread.interrupt_main()


def main() -> None:
    """Do what the first line of stdin orders."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand between the lines
    order = json.loads(sys.stdin.buffer.readline())
    reporter = Reporter(out, order["preview_every"], Screen(order["blur"], order["screen"]), Path(order["out"]))
    threading.Thread(target=_stop_when_stdin_ends, args=(reporter,), daemon=True).start()
    try:
        try:
            ended = outcome(order, reporter)
        finally:  # an interrupt that comes while the end is told must not be in its way
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        ended = {"event": "stopped"}
    reporter.say(**ended)


def outcome(order: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Do the run; how it ended, as the last line tells it."""
    try:
        with enough_memory(LESS_FOR_TRAINING):
            results = run(order, reporter)
    except ValueError as error:
        return {"event": "failed", "sentence": " ".join(str(error).split())}
    except OSError as error:
        told = error.strerror or str(error)
        kind = "" if error.errno == errno.ENOMEM else "a file could not be read or written: "
        return {"event": "failed", "sentence": f"{kind}{told}"}
    return {"event": "done", "skipped": results["skipped"]}


if __name__ == "__main__":
    main()
