"""Damaged files of every kind that the classifiers' commands read: through the real `main` one sentence and exit 2."""

import gzip
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from erase.classification.rows import parse_ids
from erase.cli import main
from erase.files import write_safetensors


def archive(path: Path) -> None:
    """An .npz that `fit` and `classifier` take."""
    rows, labels = np.random.default_rng(0).random((30, 4)), np.arange(30) % 3
    arrays = {"x_train": rows, "y_train": labels, "x_test": rows[:9], "y_test": labels[:9]}
    np.savez(path, features=rows, labels=labels, **arrays)


def no_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + b"x" * 50)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones((3, 2)))


def flipped_byte(path: Path) -> None:
    archive(path)
    content = bytearray(path.read_bytes())
    for start in (content.find(b"NUMPY", k) for k in range(0, len(content), 200)):
        if start >= 0:
            content[start + 200] ^= 1
    path.write_bytes(content)


def scalars(path: Path) -> None:
    np.savez(path, **dict.fromkeys(("x_train", "y_train", "x_test", "y_test", "features", "labels"), np.array(1)))


def fashion(path: Path) -> None:
    path.mkdir()
    whole = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5000) + np.random.default_rng(0).bytes(5000))
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (path / f"{name}-ubyte.gz").write_bytes(whole[: len(whole) // 2])


def cifar(path: Path) -> None:
    path.mkdir()
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        (path / name).write_bytes(bytes(3000))


def linear(**header: str) -> Callable[[Path], None]:
    """A linear model's file with this header."""

    def write(path: Path) -> None:
        tensors = {"weights": torch.zeros(1, 4, dtype=torch.float64), "ids": torch.arange(3), "classes": torch.arange(2)}
        write_safetensors(tensors, path, {"format": "erase-linear-1", **header})

    return write


def forest(**header: str) -> Callable[[Path], None]:
    """A forest's file of one leaf with this header."""

    def write(path: Path) -> None:
        tensors = {name: torch.tensor([-1]) for name in ("feature", "total", "ones", "ids")}
        write_safetensors(tensors | {"threshold": torch.zeros(1)}, path, {"format": "erase-forest-1", **header})

    return write


def model(shape: str) -> Callable[[Path], None]:
    """A classifier's file whose header gives this shape."""
    header = {"format": "erase-classifier-1", "architecture": "mlp", "shape": shape, "num_classes": "3"}
    return lambda path: write_safetensors({"a": torch.zeros(1)}, path, header)


def manifest(value: object) -> Callable[[Path], None]:
    """A SISA folder with this manifest."""

    def write(path: Path) -> None:
        path.mkdir()
        (path / "sisa.json").write_text(json.dumps(value))

    return write


CLASSIFIER = ["classifier", "--forget-class", "1", "--method", "ft", "--out", "OUT"]
LINEAR = ["linear", "fit", "--out", "OUT"]
CONFIG = json.dumps({"loss": "logistic"})
CASES = [
    (no_zip, "x.npz", [*CLASSIFIER, "--data"], "is not a readable .npz"),
    (no_zip, "x.npz", [*LINEAR, "--data"], "is not a readable .npz"),
    (one_array, "x.npz", [*CLASSIFIER, "--data"], "it is a single array"),
    (one_array, "x.npz", [*LINEAR, "--data"], "it is a single array"),
    (flipped_byte, "x.npz", [*CLASSIFIER, "--data"], "is not a readable .npz"),
    (flipped_byte, "x.npz", [*LINEAR, "--data"], "is not a readable .npz"),
    (scalars, "x.npz", [*CLASSIFIER, "--data"], "x_train is a single number"),
    (scalars, "x.npz", [*LINEAR, "--data"], "lacks features or labels"),
    (fashion, "x", [*CLASSIFIER, "--data", "fashion", "--data-dir"], "is cut short or damaged"),
    (cifar, "x", [*CLASSIFIER, "--data", "cifar10", "--data-dir"], "whole rows of 3073 bytes"),
    (model("5"), "x", [*CLASSIFIER, "--model"], "is not a classifier of this tool"),
    (model("[]"), "x", [*CLASSIFIER, "--model"], "its rows have the shape []"),
    (model('["a"]'), "x", [*CLASSIFIER, "--model"], 'its rows have the shape ["a"]'),
    (linear(), "x", ["linear", "status"], "its header lacks 'config'"),
    (linear(), "x", ["linear", "remove", "--ids", "1"], "its header lacks 'config'"),
    (linear(config="{", spent="0", rows=""), "x", ["linear", "status"], "its settings are Invalid JSON"),
    (linear(config=CONFIG, spent="much", rows=""), "x", ["linear", "status"], "its account is 'much'"),
    (linear(config=CONFIG, spent="0", rows="", scale="x"), "x", ["linear", "score", "--data", "digits"], "its scale is 'x'"),
    (forest(), "x", ["forest", "status"], "its header lacks 'parameters'"),
    (forest(parameters="[]", classes="[0, 1]", rows=""), "x", ["forest", "status"], "its parameters are no mapping"),
    (forest(parameters='{"a": 1}', classes="[0, 1]", rows=""), "x", ["forest", "remove", "--ids", "1"], "is not a forest"),
    (manifest({"format": "erase-sisa-1"}), "x", ["sisa", "status"], "in its sisa.json, config: Field required"),
    (manifest({"format": "erase-sisa-1"}), "x", ["sisa", "remove", "--ids", "1"], "in its sisa.json, config"),
    (manifest([]), "x", ["sisa", "status"], "does not say erase-sisa-1"),
]


@pytest.mark.parametrize(("write", "name", "command", "sentence"), CASES)
def test_a_damaged_file_is_one_sentence(write, name, command, sentence, tmp_path, monkeypatch, capsys) -> None:
    path, out = tmp_path / name, tmp_path / "out"
    write(path)
    monkeypatch.setattr(sys, "argv", ["erase", *(str(out) if part == "OUT" else part for part in command), str(path)])
    with pytest.raises(SystemExit) as stop:
        main()
    stdout, stderr = capsys.readouterr()
    assert stop.value.code == 2 and sentence in stderr and stderr.count("\n") == 1 and not stdout and not out.exists()


def test_a_range_of_ids_too_long_for_memory_is_refused() -> None:
    assert len(parse_ids("5,10-12")) == 4
    with pytest.raises(ValueError, match="at most 10,000,000"):
        parse_ids("0-99999999999999")
