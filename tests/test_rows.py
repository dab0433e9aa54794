"""Rows: what is read, what is refused, and that a changed value is seen."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from erase.classification.cli_rows import held
from erase.classification.rows import Rows, class_labels, load_rows, parse_ids, rows_of
from erase.files import atomic


def test_digits_by_class_are_numbered_among_themselves() -> None:
    features, labels = load_digits(return_X_y=True)
    rows = load_rows("digits:8,3")
    assert len(rows) == 357 and rows.ids.tolist() == list(range(357))
    np.testing.assert_array_equal(rows.features * 16, features[np.isin(labels, [3, 8])])
    np.testing.assert_array_equal(rows.labels, (labels[np.isin(labels, [3, 8])] == 3).astype(int))
    assert load_rows("breast_cancer").features.shape == (569, 30)


def test_a_file_keeps_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, features=np.arange(12.0).reshape(4, 3, 1), labels=[2, 5, 2, 7], ids=[40, 10, 30, 20])
    rows = load_rows(str(path))
    assert rows.features.shape == (4, 3) and rows.ids.tolist() == [40, 10, 30, 20]
    chosen = load_rows(f"{path}:5,2")
    assert chosen.ids.tolist() == [40, 10, 30] and chosen.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(rows.with_ids(np.array([10, 40])).features, [[3, 4, 5], [0, 1, 2]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0, 1]}, "lacks features or labels"),
        ({"features": [[1.0], [np.nan]], "labels": [0, 1]}, "row 1 has a value that is not finite"),
        ({"features": [[1.0], [2.0]], "labels": [0, 1], "ids": [3, 3]}, "id 3 stands on more than one row"),
        ({"features": [[1.0], [2.0]], "labels": [0, 1, 1]}, "2 rows have labels of shape"),
        ({"features": np.empty((2, 0)), "labels": [0, 1]}, "one or more of each"),
        ({"features": [[1.0]], "labels": np.array([{}], object)}, "without pickled objects"),
    ],
)
def test_files_that_are_refused(arrays: dict[str, object], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_rows(str(tmp_path / "data.npz"))


@pytest.mark.parametrize("spec", ["", "nothing", "missing.npz", "digits:3", "digits:3,3", "digits:3,11"])
def test_data_that_is_not_there(spec: str) -> None:
    with pytest.raises(ValueError, match=r"accepted|name two or more"):
        load_rows(spec)


def test_labels_that_are_no_classes() -> None:
    features = [[1.0], [2.0], [3.0]]
    for labels, message in (([0, -1, 1], "label of row 1 is -1"), ([0.5, 1, 2], "whole numbers"), ([4, 4, 4], "of class 4")):
        with pytest.raises(ValueError, match=message):
            class_labels(rows_of(features, labels))
    with pytest.raises(ValueError, match="label of row 2 is 2; accepted: 0 to 1"):
        class_labels(rows_of(features, [0, 1, 2]), num_classes=2)


def test_the_digest_sees_every_value_and_order() -> None:
    rows = rows_of([[1.0, 2], [3, 4]], [0, 1])
    others = [
        rows_of([[1.0, 2], [3, np.nextafter(4, 5)]], [0, 1]),
        rows_of([[1.0, 2], [3, 4]], [1, 1]),
        rows_of([[1.0, 2], [3, 4]], [0, 1], [0, 2]),
        rows_of([[1.0, 2], [3, 4]], [0.0, 1.0]),
        rows.take(np.array([1, 0])),
    ]
    assert len({rows.digest(), *(other.digest() for other in others)}) == 6
    assert rows.digest() == Rows(np.asfortranarray(rows.features), rows.labels.astype(np.int32), rows.ids).digest()


def test_ids_on_the_command_line() -> None:
    assert parse_ids("17, 42,100-102") == [17, 42, 100, 101, 102]
    for text in ("", "a", "5-3", "1,,2", "1-"):
        with pytest.raises(ValueError, match="accepted"):
            parse_ids(text)


def test_numbers_beyond_an_int64_are_refused() -> None:
    huge = np.array([0, 2**63], np.uint64)
    with pytest.raises(ValueError, match="the label 9223372036854775808 is too large"):
        class_labels(rows_of(np.ones((2, 1)), huge))
    with pytest.raises(ValueError, match="below 2\\^63"):
        rows_of(np.ones((2, 1)), [0, 1], huge)


def test_what_a_killed_process_left_of_a_model_goes_and_nothing_else_does(tmp_path: Path) -> None:
    """`atomic` names the unfinished file; a model of rows that were removed since must not outlast a removal."""
    model = tmp_path / "model.safetensors"
    model.write_text("whole")
    with atomic(model) as temporary:
        left = tmp_path / temporary.name
        others = [
            tmp_path / ".other.safetensors.abcd1234",
            tmp_path / ".model.safetensors.mine",
            tmp_path / ".model.safetensorsXabcd1234",
        ]
        for path in others:
            path.write_text("")
        linked = tmp_path / ".model.safetensors.abcd0000"
        linked.symlink_to(others[0])
        assert left.exists()
        with held(model):
            assert not left.exists() and all(path.exists() for path in (*others, linked, model))
        left.touch()  # `atomic` takes its own away
