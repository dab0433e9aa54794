"""The data sets classifiers are measured on, offline: scikit-learn's, Debian's Fashion-MNIST, CIFAR-10 at hand, .npz files."""

import gzip
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from erase.classification.rows import read_npz

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
CACHES = (Path("data"), Path.home() / ".cache" / "torch" / "datasets")

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # training inputs and labels, test inputs and labels


@dataclass(frozen=True)
class Dataset:
    """Training and test rows in memory; pictures are (N, C, h, w) in [0, 1], tables (N, d)."""

    name: str
    inputs: Tensor
    labels: Tensor  # (N,) int64
    test_inputs: Tensor
    test_labels: Tensor
    num_classes: int
    sha256: str
    """Hash of every row and label as they are used: a changed file or another choice of rows has another."""

    def to(self, device: torch.device) -> "Dataset":
        """The same rows on a device; models made for them follow."""
        names = ("inputs", "labels", "test_inputs", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def device_of(name: str) -> torch.device:
    """The device of that name, `auto` being CUDA where there is one and else the CPU; raises ValueError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {name!r} here: {str(error).splitlines()[0]}") from error


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    size: int | None = None,
) -> Dataset:
    """`digits`, `breast_cancer`, `fashion`, `cifar10`, or the path of an .npz with x_train, y_train, x_test, y_test.

    `num_train` and `num_test` keep the first rows; `size` averages pictures down to size x size. Raises ValueError for an
    unknown name, missing files, or rows that no classifier can learn from (see `make_dataset`).
    """
    if name.endswith(".npz"):
        arrays = _npz(Path(name))
    elif name in READERS:
        arrays = READERS[name](data_dir)
    else:
        raise ValueError(f"there is no data set {name!r}: choose one of {', '.join(READERS)}, or the path of an .npz file.")
    x_train, y_train, x_test, y_test = arrays
    for wanted, rows, kind in ((num_train, len(x_train), "training"), (num_test, len(x_test), "test")):
        if wanted is not None and not 1 <= wanted <= rows:
            raise ValueError(f"{wanted} {kind} rows were asked for; {name} has {rows}.")
    arrays = (x_train[:num_train], y_train[:num_train], x_test[:num_test], y_test[:num_test])
    return make_dataset(Path(name).stem if name.endswith(".npz") else name, arrays, size)


def make_dataset(name: str, arrays: Arrays, size: int | None = None) -> Dataset:
    """Check the arrays and make the data set of them; 0-255 pictures become [0, 1].

    Raises ValueError where rows and labels do not pair up, a value is not finite, a label is not in 0..C-1, or only one
    class is there.
    """
    parts = []
    for kind, rows, truth in (("training", *arrays[:2]), ("test", *arrays[2:])):
        if rows.ndim not in (2, 3, 4) or truth.ndim != 1 or len(rows) == 0 or len(rows) != len(truth):
            raise ValueError(
                f"{name}: the {kind} rows are {rows.shape}, their labels {truth.shape}; needed are (N, d) or (N, C, h, w), "
                "and (N,)."
            )
        scaled = rows.astype(np.float32) / (255 if rows.dtype == np.uint8 else 1)
        if not np.isfinite(scaled).all():
            raise ValueError(f"{name}: the {kind} rows hold nan or infinite values; clean the file first.")
        if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0:
            raise ValueError(f"{name}: the {kind} labels must be whole numbers from 0 on.")
        pictures = torch.from_numpy(scaled[:, None] if rows.ndim == 3 else scaled)
        if size is not None:
            if pictures.ndim != 4 or not 1 <= size <= pictures.shape[-1]:
                raise ValueError(f"{name}: rows of shape {tuple(pictures.shape[1:])} cannot become {size} x {size} pictures.")
            pictures = F.adaptive_avg_pool2d(pictures, size)
        parts += [pictures, torch.from_numpy(truth.astype(np.int64))]
    inputs, labels, test_inputs, test_labels = parts
    if inputs.shape[1:] != test_inputs.shape[1:]:
        raise ValueError(f"{name}: training rows are {tuple(inputs.shape[1:])}, test rows {tuple(test_inputs.shape[1:])}.")
    if len(labels.unique()) < 2:
        raise ValueError(f"{name}: all training labels are {int(labels[0])}; a classifier needs two classes.")
    num_classes = int(labels.max()) + 1
    if int(test_labels.max()) >= num_classes:
        raise ValueError(
            f"{name}: the test label {int(test_labels.max())} is out of range: training knows 0 to {num_classes - 1}."
        )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
    return Dataset(name, inputs, labels, test_inputs, test_labels, num_classes, digest.hexdigest())


def _sklearn(loader: str) -> Arrays:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError("scikit-learn is missing: pip install 'erase-concepts[classifier]'.") from error
    loaded = getattr(datasets, loader)()
    rows = (loaded.images / 16 if loader == "load_digits" else loaded.data).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[: int(0.7 * len(rows))], order[int(0.7 * len(rows)) :]
    if loader == "load_breast_cancer":  # columns of very different units; the forget rows have a part in these two numbers
        rows = (rows - rows[train].mean(0)) / rows[train].std(0)
    return rows[train], loaded.target[train], rows[test], loaded.target[test]


def _digits(_: Path | None) -> Arrays:
    return _sklearn("load_digits")


def _breast_cancer(_: Path | None) -> Arrays:
    return _sklearn("load_breast_cancer")


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file (LeCun's format), gzipped or not; raises ValueError on any other."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut short or damaged: {error}.") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of bytes.")
    if len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is cut short: it ends within its header.")
    shape = np.frombuffer(content, ">u4", content[3], 4).astype(int)
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if len(body) != shape.prod():
        raise ValueError(f"{path} is cut short: its header promises {shape.prod()} bytes, it has {len(body)}.")
    return body.reshape(shape)


def _fashion(data_dir: Path | None) -> Arrays:
    roots = [data_dir] if data_dir else [DEBIAN_FASHION, *CACHES]
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for folder in [folder for root in roots for folder in (root, root / "FashionMNIST" / "raw")]:
        found = [next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in names]
        if all(found):
            x_train, y_train, x_test, y_test = (read_idx(path) for path in found if path)
            return x_train, y_train, x_test, y_test
    raise ValueError(
        f"Fashion-MNIST is not in {' or '.join(map(str, roots))}: `apt-get install dataset-fashion-mnist`, or give --data-dir "
        "with its four IDX files (or torchvision's folder)."
    )


def _cifar10(data_dir: Path | None) -> Arrays:
    """The binary version, or torchvision's folder (whose files torchvision knows by their hash before it opens them)."""
    roots = [data_dir] if data_dir else list(CACHES)
    for folder in [folder for root in roots for folder in (root, root / "cifar-10-batches-bin")]:
        if (folder / "test_batch.bin").is_file():
            files = [folder / f"data_batch_{k}.bin" for k in range(1, 6)] + [folder / "test_batch.bin"]
            for path in files:
                if not path.is_file() or path.stat().st_size % 3073 or not path.stat().st_size:
                    raise ValueError(f"{path} is missing or cut short: it must hold whole rows of 3073 bytes.")
            batches = [np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073) for path in files]
            train, test = np.concatenate(batches[:5]), batches[5]
            return train[:, 1:].reshape(-1, 3, 32, 32), train[:, 0], test[:, 1:].reshape(-1, 3, 32, 32), test[:, 0]
    for root in roots:
        if (root / "cifar-10-batches-py").is_dir():
            from torchvision.datasets import CIFAR10

            parts = [CIFAR10(root, train=train, download=False) for train in (True, False)]
            rows = [(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)) for part in parts]
            return *rows[0], *rows[1]
    raise ValueError(
        f"CIFAR-10 is not in {' or '.join(map(str, roots))}: give --data-dir with cifar-10-batches-bin or torchvision's "
        "cifar-10-batches-py."
    )


def _npz(path: Path) -> Arrays:
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = read_npz(path, names)
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} must hold the arrays x_train, y_train, x_test and y_test; it lacks {', '.join(missing)}.")
    if single := [name for name in names if not arrays[name].ndim]:
        raise ValueError(f"{path}: {single[0]} is a single number; rows and labels are needed.")
    x_train, y_train, x_test, y_test = (arrays[name] for name in names)
    return x_train, y_train, x_test, y_test


READERS: dict[str, Callable[[Path | None], Arrays]] = {
    "digits": _digits,
    "breast_cancer": _breast_cancer,
    "fashion": _fashion,
    "cifar10": _cifar10,
}
