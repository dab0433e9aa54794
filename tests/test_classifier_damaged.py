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


def no_rows(path: Path) -> None:
    np.savez(path, features=np.empty((0, 3)), labels=np.empty(0))


def words(path: Path) -> None:
    arrays = dict.fromkeys(("x_train", "y_train", "x_test", "y_test", "features", "labels"), np.array([["three"]]))
    np.savez(path, **arrays)


def linear(weight: float = 0.0, **header: str) -> Callable[[Path], None]:
    """A linear model's file with this header."""

    def write(path: Path) -> None:
        tensors = {
            "weights": torch.full((1, 4), weight, dtype=torch.float64),
            "ids": torch.arange(3),
            "classes": torch.arange(2),
        }
        write_safetensors(tensors, path, {"format": "erase-linear-1", **header})

    return write


def forest(total: tuple[int, ...] = (1,), feature: tuple[int, ...] = (-1,), **header: str) -> Callable[[Path], None]:
    """A forest's file of one leaf with this header."""

    def write(path: Path) -> None:
        nodes = {"feature": torch.tensor(feature, dtype=torch.int32), "total": torch.tensor(total), "ones": torch.tensor([0])}
        rest = {"threshold": torch.zeros(1, dtype=torch.float64), "ids": torch.tensor([7])}
        write_safetensors(nodes | rest, path, {"format": "erase-forest-1", **header})

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


CHECKPOINT = {"name": "shard0-slice0-0123456789abcdef.safetensors", "sha256": "0" * 64}


def sisa(**changed: object) -> Callable[[Path], None]:
    """A SISA folder of one checkpoint with something changed in its manifest; a text is put in as it is."""
    whole = {"format": "erase-sisa-1", "config": {"shards": 1}, "learner": "mlp", "classes": [0, 1], "rows": ""}
    whole |= {"provenance": {}, "files": [[CHECKPOINT]], "slices": [[[1, 2]]], "settings": {}}

    def write(path: Path) -> None:
        path.mkdir()
        parts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
        plain = {name: json.dumps(value) for name, value in whole.items()}
        (path / "sisa.json").write_text("{" + ", ".join(f'"{name}": {text}' for name, text in (plain | parts).items()) + "}")

    return write


REST = {"classes": "[0, 1]", "rows": ""}
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
    (
        forest(parameters="[]", classes="[0, 1]", rows=""),
        "x",
        ["forest", "status"],
        "its parameters: Input should be a valid dictionary",
    ),
    (forest(parameters='{"a": 1}', classes="[0, 1]", rows=""), "x", ["forest", "remove", "--ids", "1"], "is not a forest"),
    (
        forest(parameters='{"n_estimators": "x"}', **REST),
        "x",
        ["forest", "status"],
        "its parameters: n_estimators: Input should",
    ),
    (forest(parameters='{"max_depth": null}', **REST), "x", ["forest", "status"], "its parameters: max_depth: Input should be"),
    (forest(parameters="[" * 100_000, **REST), "x", ["forest", "status"], "it is nested too deep"),
    (forest(parameters="{}", **REST, total=(2,)), "x", ["forest", "status"], "as many rows as there are ids"),
    (forest(parameters="{}", **REST, feature=(-1, -1)), "x", ["forest", "status"], "its lists of nodes differ in length"),
    (linear(config=CONFIG, spent="nan", rows=""), "x", ["linear", "status"], "its account is 'nan'"),
    (linear(config=CONFIG, spent="-1e9", rows=""), "x", ["linear", "status"], "its account is '-1e9'"),
    (linear(torch.nan, config=CONFIG, spent="0", rows=""), "x", ["linear", "status"], "not all of its weights are finite"),
    (no_rows, "x.npz", [*LINEAR, "--data"], "one or more of each"),
    (words, "x.npz", [*LINEAR, "--data"], "its features is <U5, not numbers"),
    (words, "x.npz", [*CLASSIFIER, "--data"], "its x_train is <U5, not numbers"),
    (sisa(files=[[{}]]), "x", ["sisa", "status"], "files.0.0.name: Field required"),
    (
        sisa(files=[[{**CHECKPOINT, "name": "../" + CHECKPOINT["name"]}]]),
        "x",
        ["sisa", "status"],
        "files.0.0.name: String should",
    ),
    (sisa(files=[[]]), "x", ["sisa", "status"], "files are not those of 1 shards of 1 slices"),
    (sisa(slices=[]), "x", ["sisa", "status"], "slices are not those of 1 shards of 1 slices"),
    (sisa(settings=[]), "x", ["sisa", "status"], "settings: Input should be a valid dictionary"),
    (sisa(settings="[" * 100_000), "x", ["sisa", "status"], "it is nested too deep"),
    (manifest({"format": "erase-sisa-1"}), "x", ["sisa", "status"], "in its sisa.json, config: Field required"),
    (manifest({"format": "erase-sisa-1"}), "x", ["sisa", "remove", "--ids", "1"], "in its sisa.json, config"),
    (manifest([]), "x", ["sisa", "status"], "sisa.json is damaged: it holds no mapping"),
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


@pytest.mark.parametrize(
    ("write", "command"),
    [
        (sisa(), ["sisa", "status"]),
        (forest(parameters="{}", **REST), ["forest", "status"]),
        (linear(config=CONFIG, spent="0", rows=""), ["linear", "status"]),
    ],
)
def test_the_files_that_are_damaged_above_are_sound_without_it(write, command, tmp_path, monkeypatch, capsys) -> None:
    write(tmp_path / "x")
    monkeypatch.setattr(sys, "argv", ["erase", *command, str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0 and "rows" in capsys.readouterr().out


def test_a_range_of_ids_too_long_for_memory_is_refused() -> None:
    assert len(parse_ids("5,10-12")) == 4
    with pytest.raises(ValueError, match="at most 10,000,000"):
        parse_ids("0-99999999999999")
    with pytest.raises(ValueError, match="accepted: numbers and ranges"):
        parse_ids("9" * 5000)
