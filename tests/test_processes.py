"""Two processes do what one does: the same pictures and the same mask bit for bit, the same weights up to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from worker import work

from erase.processes import in_order, main_first, share


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes (gloo) have written to."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = Path(__file__).with_name("worker.py")
    command += [str(worker), str(folder)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


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


def test_alone_everything_is_ones_own() -> None:
    assert share([1, 2, 3]) == in_order([1, 2, 3]) == [1, 2, 3]
    assert main_first(lambda: "done") == "done"
