"""Two processes do what one does: the same pictures and the same mask bit for bit, the same weights up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_cli import small
from worker import work

from erase.processes import in_order, main_first, share

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes (gloo) have written to."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = Path(__file__).with_name("worker.py")
    command = [*LAUNCH, str(worker), str(folder)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole small run of the command: alone, and as two processes. Batches of 2, so that both have some of everything."""
    folder = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    batches = small(
        **{"data.batch_size": 2, "saliency.batch_size": 2, "evaluation.batch_size": 16, "evaluation.num_forget": 3},
    )
    for name, start in (("one", [sys.executable]), ("two", LAUNCH)):
        command = [*start, "-m", "erase", "--concept", "dog", "--out", name, "--no-cache", "--json", *batches]
        done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / f"{name}.json").write_text(done.stdout)
    return {name: folder / name for name in ("one", "two")}


def test_two_processes_are_one(two: Path, tmp_path: Path) -> None:
    data, mask, weights, losses = work(tmp_path)
    for number in (0, 1):
        theirs = load_file(two / f"{number}.safetensors")
        assert torch.equal(theirs["forget"], data.forget_latents)
        assert torch.equal(theirs["retain"], data.retain_latents)
        for name in mask:
            assert torch.equal(theirs[f"mask.{name}"], mask[name]), name
        for name, values in weights.items():
            torch.testing.assert_close(theirs[f"weights.{name}"], values, rtol=0, atol=1e-5)
        assert theirs["losses"].tolist() == pytest.approx(losses, rel=1e-4)


def test_both_have_the_same_weights_bit_for_bit(two: Path) -> None:
    first, second = (load_file(two / f"{number}.safetensors") for number in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_mistake_that_one_process_sees_is_raised_in_all(two: Path) -> None:
    assert [(two / f"{number}.txt").read_text() for number in (0, 1)] == ["the folder is full"] * 2


def test_a_run_of_two_processes_is_the_run_of_one(runs: dict[str, Path]) -> None:
    """Data and mask bit for bit, the patch within 1e-5, the base's pictures to the pixel, the same prompts for the erased."""
    for name in ("data.safetensors", "mask.safetensors"):
        first, second = (load_file(run / name) for run in runs.values())
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    first, second = (load_file(run / "patch.safetensors") for run in runs.values())
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(second[key], first[key], rtol=0, atol=1e-5)
    base, erased = (
        [(run / "pictures" / side / "manifest.jsonl").read_text().splitlines() for run in runs.values()]
        for side in ("base", "erased")
    )
    assert base[0] == base[1]
    asked = [[{k: v for k, v in json.loads(row).items() if k not in ("model", "sha256")} for row in rows] for rows in erased]
    assert asked[0] == asked[1]
    assert not list(runs["two"].glob("pictures/*/manifest.?.jsonl")), "the processes' own notes are put together"


def test_one_of_the_processes_speaks_for_all(runs: dict[str, Path]) -> None:
    one, two = (json.loads(run.with_suffix(".json").read_text()) for run in runs.values())
    assert two["base"] == one["base"]
    assert two["erased"]["n"] == one["erased"]["n"]
    assert two["audit"]["changed_outside_mask"] == 0
    assert two["collapse"].keys() == one["collapse"].keys()


def test_alone_everything_is_ones_own() -> None:
    assert share([1, 2, 3]) == in_order([1, 2, 3]) == [1, 2, 3]
    assert main_first(lambda: "done") == "done"
