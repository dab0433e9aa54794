"""The queue of erase runs: one at a time, each in a process of its own, to be watched and to be cancelled.

A cancelled run keeps its state: ordered again with the same settings, it goes on where it was, to the same bits.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from erase.app.screen import Screen

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "stopping", "done", "cancelled", "failed"]
OVER: tuple[State, ...] = ("done", "cancelled", "failed")
STAGES = ("generate", "saliency", "train", "export", "evaluate", "report")
REMEMBERED = 20
"""Runs that are over and still on the board; those that wait or run always are."""
PATIENCE_S = 60
"""How long a cancelled run may take to write its state before its process is ended."""


@dataclass
class Job:
    """One ordered run and what is known of it."""

    id: str
    out: Path
    config: dict[str, Any]
    preview_every: int
    state: State = "queued"
    stage: str = ""
    total: int = 0
    progress: int = 0
    finished_stages: list[str] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    previews: list[tuple[int, list[str], list[str]]] = field(default_factory=list)
    """(step, prompts, pictures as HTML): the first and the latest four."""
    notes: list[str] = field(default_factory=list)
    sentence: str = ""
    """Why it failed."""
    began: float = 0.0
    seconds: float = 0.0
    process: "subprocess.Popen[str] | None" = None

    def hear(self, line: dict[str, Any]) -> None:
        """Take in what the run says."""
        event = line.pop("event")
        if event == "stage":
            if self.stage:
                self.finished_stages.append(self.stage)
            self.stage, self.total, self.progress = line["name"], line["total"], 0
        elif event == "advance":
            self.progress = line.pop("done")
            for name, value in line.items():
                self.losses.setdefault(name, []).append(value)
        elif event == "preview":
            preview = (line["step"], line["prompts"], line["pictures"])
            self.previews = [*self.previews[:1], *self.previews[1:][-3:], preview]
        elif event == "note":
            self.notes.append(line["text"])
        elif event == "done":
            self.state, self.finished_stages = "done", list(STAGES)
        elif event == "stopped":
            self.state = "cancelled"
        elif event == "failed":
            self.state, self.sentence = "failed", line["sentence"]


class Jobs:
    """Runs in the order in which they were asked for."""

    def __init__(self, folder: Path, most: int, screen: Screen) -> None:
        self.folder = folder
        self.most = most
        self.screen = screen
        self._all: list[Job] = []
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._number = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def order(self, config: dict[str, Any], name: str, preview_every: int) -> Job:
        """Queue a run into `folder/name`; raises ValueError if too many wait or that very run is under way."""
        with self._wake:
            waiting = [job for job in self._all if job.state not in OVER]
            if len(waiting) > self.most:
                raise ValueError(f"{self.most} runs are already waiting: cancel one, or start this one when they are done.")
            if any(job.out.name == name for job in waiting):
                raise ValueError(f"The run “{name}” is already running or waiting.")
            self._number += 1
            job = Job(f"{self._number} · {name}", self.folder / name, config, preview_every)
            self._all.append(job)
            over = [each for each in self._all if each.state in OVER]
            self._all = [each for each in self._all if each not in over[:-REMEMBERED]]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
            self._wake.notify_all()
        return job

    def all(self) -> list[Job]:
        """Every job, the latest first."""
        with self._lock:
            return self._all[::-1]

    def cancel(self, id: Any) -> Job:  # noqa: A002 the job's own word for it
        """Stop a job that waits or runs; raises ValueError for any other text."""
        with self._wake:
            job = next((job for job in self._all if job.id == id), None)
            if job is None or job.state in OVER:
                raise ValueError("There is no such run to cancel: choose one that is running or waiting.")
            if job.state == "queued":
                job.state = "cancelled"
            elif job.state == "running":
                _stop(job)
        return job

    def close(self) -> None:
        """Cancel everything; the running one has its state kept."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            for job in self._all:
                if job.state == "queued":
                    job.state = "cancelled"
                elif job.state == "running":
                    _stop(job)
        if self._thread is not None:
            self._thread.join(PATIENCE_S)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._closed and not any(job.state == "queued" for job in self._all):
                    self._wake.wait()
                if self._closed:
                    return
                job = next(job for job in self._all if job.state == "queued")
                job.state, job.began = "running", time.monotonic()
                try:
                    job.process = _start()
                except OSError as error:  # no memory, too many processes: the next one may fare better
                    job.state, job.sentence = "failed", f"No process could be started for it: {error.strerror}."
                    continue
                order = {"config": job.config, "out": str(job.out), "preview_every": job.preview_every}
                order |= {"blur": sorted(self.screen.blur), "screen": self.screen.on}
                assert job.process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it died at once: that is found where it is followed
                    job.process.stdin.write(json.dumps(order) + "\n")
                    job.process.stdin.flush()
            self._follow(job)

    def _follow(self, job: Job) -> None:
        """Hear what the run says until it ends."""
        process = job.process
        assert process is not None and process.stdout is not None
        with process.stdout as said:
            for text in said:
                with self._lock, contextlib.suppress(json.JSONDecodeError):  # cut short: it was killed in the midst of it
                    job.hear(json.loads(text))
                job.seconds = time.monotonic() - job.began
        code = process.wait()
        with self._lock:
            job.seconds = time.monotonic() - job.began
            if job.state == "stopping":
                job.state = "cancelled"
            elif job.state == "running":
                logger.error("the run %s ended with exit code %d before it was done", job.id, code)
                job.state, job.sentence = "failed", "The run's process ended before it was done (the terminal says more)."
            _end_input(job)
            job.process = None


def _start() -> "subprocess.Popen[str]":
    # Threads that wait without spinning, at a lower priority: the page stays quick while a run has the processor.
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": paths}
    environment.pop("GOMP_SPINCOUNT", None)  # the command's own, which would overrule the policy
    command = [sys.executable, "-m", "erase.app.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, process.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5))
    return process


def _stop(job: Job) -> None:
    """Ask a running job's process to write its state and end; end it where that takes too long."""
    assert job.process is not None
    job.state = "stopping"
    _end_input(job)
    overdue = threading.Timer(PATIENCE_S, job.process.kill)
    overdue.daemon = True
    overdue.start()


def _end_input(job: Job) -> None:
    """A run stops when its standard input ends."""
    if job.process is not None and job.process.stdin is not None and not job.process.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            job.process.stdin.close()
