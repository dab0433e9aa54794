"""Data sets from files made here byte by byte, splits that partition, and every refusal."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from erase.classification.bench import Recipe, fresh_model
from erase.classification.data import DEBIAN_FASHION, device_of, load_dataset, make_dataset, read_idx
from erase.classification.split import Batches, split_class, split_ids, split_random


def arrays(num: int = 12, classes: int = 3):
    rng = np.random.default_rng(0)
    rows = rng.random((num, 5), dtype=np.float32)
    return rows, np.arange(num) % classes, rows[:6] + 0.5, np.arange(6) % classes


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def test_digits_are_pictures_between_0_and_1_and_always_the_same_rows() -> None:
    digits, again = load_dataset("digits"), load_dataset("digits")
    assert digits.inputs.shape == (1257, 1, 8, 8) and digits.test_inputs.shape == (540, 1, 8, 8) and digits.num_classes == 10
    assert digits.inputs.min() == 0 and digits.inputs.max() == 1
    assert digits.sha256 == again.sha256 != load_dataset("digits", num_train=1000).sha256


def test_breast_cancer_columns_are_standardised_by_the_training_rows() -> None:
    data = load_dataset("breast_cancer")
    torch.testing.assert_close(data.inputs.mean(0), torch.zeros(30), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.inputs.std(0, correction=0), torch.ones(30), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["plain", "torchvision, unpacked"])
def test_fashion_is_read_from_either_layout(tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path if layout == "plain" else tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        for name, values in (("images-idx3", pictures), ("labels-idx1", np.arange(6, dtype=np.uint8) % 3)):
            content = idx(values)
            path = folder / f"{part}-{name}-ubyte"
            if layout == "plain":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    data = load_dataset("fashion", tmp_path, size=14)
    by_hand = pictures.reshape(6, 14, 2, 14, 2).mean((2, 4)) / 255
    np.testing.assert_allclose(data.inputs[:, 0].numpy(), by_hand, atol=1e-6)


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_debians_fashion_mnist_is_the_whole_set() -> None:
    data = load_dataset("fashion", num_train=6000)
    assert data.inputs.shape == (6000, 1, 28, 28) and data.test_labels.bincount().tolist() == [1000] * 10


def test_an_idx_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(idx(np.zeros((2, 3), np.uint8))[:-1])
    with pytest.raises(ValueError, match="cut short: its header promises 6 bytes, it has 5"):
        read_idx(path)
    path.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="not an IDX file"):
        read_idx(path)


def test_cifar10s_binary_files_are_label_then_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (6, 3, 3073), dtype=np.uint8)
    rows[..., 0] = np.arange(3)
    for name, part in zip([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"], rows, strict=True):
        (tmp_path / name).write_bytes(part.tobytes())
    data = load_dataset("cifar10", tmp_path)
    assert data.labels.tolist() == [0, 1, 2] * 5
    np.testing.assert_array_equal(data.test_inputs[1].mul(255).round().numpy().astype(np.uint8).reshape(-1), rows[5, 1, 1:])


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="apt-get install dataset-fashion-mnist"):
        load_dataset("fashion", tmp_path)
    with pytest.raises(ValueError, match="--data-dir with cifar-10-batches-bin"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(ValueError, match="choose one of digits, breast_cancer, fashion, cifar10"):
        load_dataset("mnist")
    with pytest.raises(ValueError, match="there is no file"):
        load_dataset(str(tmp_path / "x.npz"))


def test_an_npz_is_read_and_its_hash_follows_its_values(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    x, y, x_test, y_test = arrays()
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    data = load_dataset(str(path))
    assert data.name == "mine" and data.num_classes == 3 and torch.equal(data.inputs, torch.from_numpy(x))
    x[3, 2] += 1e-3
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    assert load_dataset(str(path)).sha256 != data.sha256
    np.savez(path, x_train=x)
    with pytest.raises(ValueError, match="must hold the arrays x_train, y_train, x_test and y_test"):
        load_dataset(str(path))


def spoiled(kind: str):
    x, y, x_test, y_test = arrays()
    match kind:
        case "nan":
            x[1, 1] = np.nan
        case "label out of range":
            y_test[0] = 3
        case "negative label":
            y[0] = -1
        case "float labels":
            y = y + 0.5
        case "one class":
            y[:] = 1
        case "too few labels":
            y = y[:-1]
        case "other width":
            x_test = x_test[:, :4]
    return x, y, x_test, y_test


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nan", "nan or infinite"),
        ("label out of range", "the test label 3 is out of range: training knows 0 to 2"),
        ("negative label", "whole numbers from 0"),
        ("float labels", "whole numbers from 0"),
        ("one class", "all training labels are 1"),
        ("too few labels", r"their labels \(11,\)"),
        ("other width", r"training rows are \(5,\), test rows \(4,\)"),
    ],
)
def test_rows_that_no_classifier_can_learn_from_are_refused(kind: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_dataset("mine", spoiled(kind))


def test_a_split_is_a_partition_and_the_class_leaves_the_test_rows() -> None:
    data = load_dataset("digits")
    for split in (split_class(data, 3), split_random(data, 0.1, 0), split_ids(data, [4, 2])):
        assert sorted([*split.forget.tolist(), *split.retain.tolist()]) == list(range(1257))
    by_class = split_class(data, 3)
    assert set(data.labels[by_class.forget].tolist()) == {3} and 3 not in data.test_labels[by_class.test]
    assert set(data.test_labels[by_class.own].tolist()) == {3} and len(by_class.own) + len(by_class.test) == 540
    assert len(split_random(data, 0.1, 0).forget) == 126 and split_ids(data, [4, 2]).forget.tolist() == [2, 4]
    assert split_random(data, 0.1, 0).forget.tolist() != split_random(data, 0.1, 1).forget.tolist()


def test_splits_that_make_no_sense_are_refused() -> None:
    data = make_dataset("mine", arrays())
    for ids, sentence in (
        ([0, 5, 0], "row 0 is named more than once"),
        ([12], "row 12 is not in mine: its training rows are 0 to 11"),
        ([-1], "row -1 is not in"),
        ([], "nothing to forget"),
        (list(range(12)), "retain set is empty"),
        ([k for k in range(12) if k % 3], "only one class would be left"),
    ):
        with pytest.raises(ValueError, match=sentence):
            split_ids(data, ids)
    for share in (0.0, 1.0, float("nan"), -0.1):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            split_random(data, share, 0)
    with pytest.raises(ValueError, match="nothing to forget"):
        split_random(data, 0.01, 0)
    with pytest.raises(ValueError, match="class 7 is not in mine: it has 0 to 2"):
        split_class(data, 7)
    with pytest.raises(ValueError, match="only one class would be left"):
        split_class(make_dataset("two", arrays(classes=2)), 0)


def test_models_follow_the_rows_to_their_device() -> None:
    data = make_dataset("mine", arrays()).to(torch.device("meta"))
    assert {data.inputs.device.type, data.labels.device.type, data.test_inputs.device.type} == {"meta"}
    assert {p.device.type for p in fresh_model(data, Recipe(), 0).parameters()} == {"meta"}
    assert device_of("cpu") == torch.device("cpu") and device_of("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="there is no device 'cuda:99' here"):
        device_of("cuda:99")


def test_batches_are_every_row_once_and_the_seed_is_the_order() -> None:
    inputs, labels = torch.arange(10.0)[:, None], torch.arange(10)

    def order(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        data = Batches(inputs, labels, 4, generator)
        read = [ys.tolist() for _, ys in data]
        assert [len(ys) for ys in read] == [4, 4, 2] and len(data) == 3
        return [y for ys in read for y in ys]

    assert order(None) == list(range(10)) and sorted(order(0)) == list(range(10))
    assert order(0) == order(0) != order(1)


def test_augmented_pictures_keep_shape_and_labels_and_a_flip_is_a_flip() -> None:
    pictures = torch.rand(8, 3, 32, 32)
    ((augmented, labels),) = Batches(pictures, torch.arange(8), 8, torch.Generator().manual_seed(0), augment=True)
    assert augmented.shape == pictures.shape
    inner = slice(4, 28)  # a shift by up to four keeps each middle pixel somewhere in the picture
    for picture, label in zip(augmented, labels, strict=True):
        source = pictures[label]
        values = set(source.flatten().tolist()) | {0.0}
        assert set(picture[:, inner, inner].flatten().tolist()) <= values
        assert not torch.equal(picture, source)
