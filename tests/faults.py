"""Runs on a tiny model in processes of their own that are stopped on purpose, and what must be true of their folders."""

import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import build_tiny_pipeline

import pipelines.load
from erase.config import RunConfig
from erase.plan import plan
from erase.reading import check_safetensors, read_json, read_yaml
from erase.run import execute
from pipelines.emoji.tokenizer import build_tokenizer
from pipelines.load import load, model_hash
from pipelines.stable_diffusion import StableDiffusion

STAGES = ("generate", "saliency", "train", "export", "evaluate", "report")
SMALL: dict[str, Any] = {
    "concept": "dog",
    "data": {"num_forget": 4, "num_retain": 5, "num_anchor": 2, "num_inference_steps": 1, "batch_size": 8},
    "saliency": {"rounds": 1, "batch_size": 2},
    "train": {"steps": 3, "checkpoint_every": 2, "forget_batch_size": 2, "retain_batch_size": 2, "warmup_steps": 1},
    "evaluation": {"num_forget": 2, "num_inference_steps": 1, "guidance_scale": 1.0},
}
PROMPTS = {"forget": ["a dog"], "becomes": ["a cat"], "retain": ["a house"]}  # given by hand: no detector, no pictures


def tiny_model(folder: Path) -> str:
    """The tiny model of conftest.py as a diffusers folder."""
    build_tiny_pipeline(build_tokenizer(folder / "tokenizer")).save_pretrained(folder / "model")
    loaded(str(folder / "model"))
    return str(folder / "model")


class Silent:
    """A run's progress that keeps the notes and tells `began` of each stage."""

    def __init__(self, began: Callable[[str], None] = lambda _: None) -> None:
        self.began = began
        self.notes: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator["Silent"]:
        self.began(name)
        yield self

    def advance(self, num: int = 1, **figures: float) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def run_once(values: dict[str, Any], out: Path, progress: Silent | None = None) -> None:
    """`execute` as the command line calls it, in a process of its own; a mistake or a fault there is raised here."""
    config, model = RunConfig.model_validate(values), loaded(values["model"])
    reading, writing = os.pipe()

    def work() -> None:
        told = progress or Silent()
        try:
            execute(plan(config, model), model, out, told, model_hash(config.model))
            os.write(writing, json.dumps(["", told.notes]).encode())
        except ValueError as error:
            os.write(writing, json.dumps([str(error), told.notes]).encode())

    code = ended(forked(work))
    os.close(writing)
    with os.fdopen(reading) as file:
        error, notes = json.loads(file.read() or '["", []]')
    if progress:
        progress.notes += notes
    if error:
        raise ValueError(error)
    assert code == 0


LOADED: dict[str, StableDiffusion] = {}


def loaded(model: str) -> StableDiffusion:
    """The model, read once: what is forked has a copy of its own."""
    return LOADED.setdefault(model, LOADED.get(model) or load(model))


def forked(work: Callable[[], object]) -> int:
    """The pid of a process that does the work; it ends with 0, with 2 on a user's mistake, 3 on a disk's fault, else 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except ValueError as error:
        print(error, file=sys.stderr)
        code = 2
    except OSError as error:
        print(error, file=sys.stderr)
        code = 3
    except BaseException:  # noqa: BLE001  (whatever it is ends this process alone)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """How the process ended: its exit code, or minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command(arguments: list[str], errors: Path, began: Callable[[str], None] = lambda _: None) -> int:
    """The pid of a process that runs the command line, its messages in `errors`; nothing is imported anew."""

    def work() -> None:
        import erase.cli

        class Bars(Silent):
            def note(self, text: str) -> None:
                print(text, file=sys.stderr)

        handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 2)
        os.dup2(handle, 1)
        sys.stderr, sys.stdout = os.fdopen(2, "w", closefd=False), os.fdopen(1, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        erase.cli.Bars = lambda: Bars(began)
        original = pipelines.load.load
        pipelines.load.load = lambda name, config=None: LOADED.get(name) or original(name, config)
        sys.argv = ["erase", *arguments]
        erase.cli.main()

    return forked(work)


def essence(out: Path) -> dict[str, Any]:
    """Every file of a run's folder by name, without what tells the time (seconds, peak memory, hashes of such files)."""
    return {
        path.relative_to(out).as_posix(): _timeless(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def _timeless(path: Path) -> Any:
    if path.name == "metrics.jsonl":
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
    if path.name == "results.json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("seconds", "resumed", "peak_rss_gb")}
    if path.name == "report.html":
        return re.sub(r"<h2>Time</h2>.*?</p>", "", path.read_text(), flags=re.DOTALL)
    return path.read_bytes()


def check_whole(out: Path, reference: dict[str, Any]) -> None:
    """Nothing under a final name is half written: it is the reference's, or complete in itself where it grows."""
    if not out.exists():
        return
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
        if hidden or not path.is_file() or re.fullmatch(r"manifest\.\d+\.jsonl", path.name):
            continue  # a journal: read line by line, its last one may be cut
        if name == "run.json":
            read_json(path)
        elif name.startswith("state/"):
            check_safetensors(path)
        elif path.suffix == ".jsonl":
            assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines()), name
        elif name == "config.yaml":
            read_yaml(path)
        else:
            assert _timeless(path) == reference[name], f"{name} is half written"
    if (out / "model").exists():
        model = {name for name in reference if name.startswith("model/")}
        assert {f"model/{p.relative_to(out / 'model').as_posix()}" for p in (out / "model").rglob("*") if p.is_file()} == model


def config_file(values: dict[str, Any], path: Path) -> Path:
    """The values as a YAML file."""
    path.write_text(yaml.safe_dump(values))
    return path


def wait_for(pid: int, seconds: float) -> float | None:
    """Seconds until the process ended, or None if it did not; it can be waited for still."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return time.monotonic() - began
        time.sleep(0.005)
    return None
