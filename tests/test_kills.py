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

import psutil
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
        print(f"{kills.total()} kills, the last in {stage}", flush=True)
    print(f"\nkills: {dict(kills)}; folders with what a kill left lying: {dict(left)}; runs to the end: {number}")
    assert all(kills[stage] >= 5 for stage in MOMENTS)
    assert left["lock"] > 10, "the lock's file was there, and no obstacle"


def test_ctrl_c_in_every_stage_stops_within_two_seconds(
    setup: tuple[list[str], dict[str, Any], dict[str, float]], tmp_path: Path
) -> None:
    arguments, reference, seconds = setup
    rng, slowest, most = random.Random(1), 0.0, 0.0
    for stage in STAGES:
        out = tmp_path / stage
        attempt = Attempt([*arguments, "--out", str(out)], tmp_path / "errors")
        assert attempt.until(stage)
        wait_for(attempt.pid, 0.7 * rng.random() * seconds[stage])
        before = worked(attempt.pid)
        os.kill(attempt.pid, signal.SIGTERM if stage == "train" else signal.SIGINT)
        took = wait_for(attempt.pid, 300)
        work = worked(attempt.pid) - before
        text, code = (tmp_path / "errors").read_text(), attempt.end()
        if code == 0:
            continue  # it was through
        assert code == 130 and "run the same command again to resume" in text and "Traceback" not in text, text
        assert took is not None and within_two_seconds(took, work), f"{stage}: {took} s, {work} of work"
        slowest, most = max(slowest, took), max(most, work)
        assert not (out / ".lock").exists() and not list(out.glob(".*"))
        check_whole(out, reference)
        assert Attempt([*arguments, "--out", str(out)], tmp_path / "errors").end() == 0
        assert essence(out) == reference
    print(f"\nCtrl-C: slowest stop {slowest:.2f} s, most processor time {most:.2f} s")
    assert slowest


def test_ctrl_c_on_the_embedded_model_stops_within_two_seconds(tmp_path: Path) -> None:
    """The command as a person starts it, in the shipped recipe's batches."""
    found = {}
    marks = {"generate": "config.yaml", "saliency": "data.safetensors", "train": "mask.safetensors", "evaluate": "model"}
    command_ = [sys.executable, "-m", "erase", "--concept", "dog", "--out", "run", "--no-cache", "--set", "train.steps=12"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    for stage, mark in marks.items():
        with (tmp_path / "errors").open("wb") as errors:  # a pipe that nobody reads would fill up with bars
            process = subprocess.Popen(
                command_,
                cwd=tmp_path,
                env=environment,
                stderr=errors,
                stdout=subprocess.DEVNULL,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 where the shell ignored it
            )
        while not (tmp_path / "run" / mark).exists():
            assert process.poll() is None, f"it ended before {stage}: {(tmp_path / 'errors').read_text()[-500:]}"
            time.sleep(0.05)
        work_for(process.pid, 2)
        before = worked(process.pid)
        process.send_signal(signal.SIGINT)
        took = wait_for(process.pid, 300)
        assert took is not None
        found[stage] = (round(took, 2), round(worked(process.pid) - before, 2))
        process.wait()
        text = (tmp_path / "errors").read_text()
        assert process.returncode == 130 and "run the same command again to resume" in text, text[-500:]
    print(f"\nCtrl-C on the embedded model, (seconds, processor seconds) until the process was gone: {found}")
    assert all(within_two_seconds(*each) for each in found.values()), found


def worked(pid: int) -> float:
    """Processor seconds of a process so far; of one that has ended until it is waited for."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def work_for(pid: int, seconds: float) -> None:
    """Let the process work for so many processor seconds, however long that takes on a busy machine."""
    end = worked(pid) + seconds
    while worked(pid) < end:
        time.sleep(0.02)


def within_two_seconds(took: float, work: float) -> bool:
    """Whether it stopped in time; where others use the processors too, by its own processor time."""
    busy = os.getloadavg()[0] > 0.8 * (os.cpu_count() or 1)
    return took < 2 or (busy and work < 2)
