"""Real SIGKILLs and Ctrl-C at random moments of every stage; the same command again ends in the same bits. Minutes long."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faults import SMALL, STAGES, check_whole, command, config_file, ended, essence, tiny_model, wait_for

pytestmark = pytest.mark.slow
MOMENTS = ("start", *STAGES)
NUM_KILLS = 63


class Attempt:
    """The command in a process of its own, which tells of each stage that begins."""

    def __init__(self, arguments: list[str], errors: Path) -> None:
        self.reading, writing = os.pipe()
        self.pid = command(arguments, errors, lambda stage: os.write(writing, f"{stage}\n".encode()) and None)
        os.close(writing)
        self.began = {"start": time.monotonic()}

    def until(self, stage: str) -> bool:
        """Wait until the stage begins; False if the process ended before."""
        with os.fdopen(os.dup(self.reading), "rb", buffering=0) as stages:
            while stage not in self.began:
                line = b""
                while not line.endswith(b"\n"):
                    if not (byte := stages.read(1)):
                        return False
                    line += byte
                self.began[line.decode().strip()] = time.monotonic()
        return True

    def end(self) -> int:
        """Its exit code."""
        os.close(self.reading)
        return ended(self.pid)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any], dict[str, float]]:
    """(arguments without --out, the folder after an undisturbed run, seconds that each stage took)."""
    folder = tmp_path_factory.mktemp("kills")
    train = SMALL["train"] | {"steps": 8}
    file = config_file(SMALL | {"model": tiny_model(folder), "train": train}, folder / "run.yaml")
    arguments = ["--config", str(file)]
    attempt = Attempt([*arguments, "--out", str(folder / "run")], folder / "errors")
    for stage in STAGES:
        assert attempt.until(stage), (folder / "errors").read_text()
    assert attempt.end() == 0
    times = [*attempt.began.values(), time.monotonic()]
    return arguments, essence(folder / "run"), {s: times[k + 1] - times[k] for k, s in enumerate(MOMENTS)}


def test_killed_at_random_moments_of_every_stage(
    setup: tuple[list[str], dict[str, Any], dict[str, float]], tmp_path: Path
) -> None:
    """Each stage in turn; the delay is drawn over its length. Killed, looked at, run again to the end, compared.

    A process that was through before its signal came does not count.
    """
    arguments, reference, seconds = setup
    rng, kills, left = random.Random(0), Counter[str](), Counter[str]()
    number = 0
    while kills.total() < NUM_KILLS:
        number += 1
        assert number < 3 * NUM_KILLS
        stage, out = MOMENTS[number % len(MOMENTS)], tmp_path / str(number)
        attempt = Attempt([*arguments, "--out", str(out)], tmp_path / "errors")
        if attempt.until(stage):
            wait_for(attempt.pid, rng.random() * seconds[stage])
            os.kill(attempt.pid, signal.SIGKILL)
        code = attempt.end()
        assert code in (0, -signal.SIGKILL), (tmp_path / "errors").read_text()
        kills[stage] += code == -signal.SIGKILL
        left["unfinished"] += any(path.name.startswith(".") and path.name != ".lock" for path in out.rglob("*"))
        left["lock"] += (out / ".lock").exists()
        check_whole(out, reference)
        again = Attempt([*arguments, "--out", str(out)], tmp_path / "errors")
        assert again.end() == 0, (tmp_path / "errors").read_text()
        assert essence(out) == reference, f"killed in {stage}"
        shutil.rmtree(out)
    print(f"\nkills: {dict(kills)}; folders with what a kill left lying: {dict(left)}; runs to the end: {number}")
    assert all(kills[stage] >= 5 for stage in MOMENTS)
    assert left["lock"] > 10, "the lock's file was there, and no obstacle"


def test_ctrl_c_in_every_stage_stops_within_two_seconds(
    setup: tuple[list[str], dict[str, Any], dict[str, float]], tmp_path: Path
) -> None:
    arguments, reference, seconds = setup
    rng, slowest = random.Random(1), 0.0
    for stage in STAGES:
        out = tmp_path / stage
        attempt = Attempt([*arguments, "--out", str(out)], tmp_path / "errors")
        assert attempt.until(stage)
        wait_for(attempt.pid, 0.7 * rng.random() * seconds[stage])
        os.kill(attempt.pid, signal.SIGTERM if stage == "train" else signal.SIGINT)
        took = wait_for(attempt.pid, 60)
        text, code = (tmp_path / "errors").read_text(), attempt.end()
        if code == 0:
            continue  # it was through
        assert code == 130 and "give the same command again to go on" in text and "Traceback" not in text, text
        assert took is not None and took < 2, f"{stage}: {took} s"
        slowest = max(slowest, took)
        assert not (out / ".lock").exists() and not list(out.glob(".*"))
        check_whole(out, reference)
        assert Attempt([*arguments, "--out", str(out)], tmp_path / "errors").end() == 0
        assert essence(out) == reference
    print(f"\nCtrl-C: slowest stop {slowest:.2f} s")
    assert slowest


def test_ctrl_c_on_the_embedded_model_stops_within_two_seconds(tmp_path: Path) -> None:
    """The command as a person starts it, in the shipped recipe's batches."""
    found = {}
    marks = {"generate": "config.yaml", "saliency": "data.safetensors", "train": "mask.safetensors", "evaluate": "model"}
    for stage, mark in marks.items():
        command_ = [sys.executable, "-m", "erase", "--concept", "dog", "--out", "run", "--no-cache", "--set", "train.steps=12"]
        process = subprocess.Popen(command_, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        deadline = time.monotonic() + 600
        while not (tmp_path / "run" / mark).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, errors = process.communicate(timeout=120)
        found[stage] = round(time.monotonic() - began, 2)
        assert process.returncode == 130 and "give the same command again" in errors, errors[-500:]
    print(f"\nCtrl-C on the embedded model, seconds until the process was gone: {found}")
    assert max(found.values()) < 2
