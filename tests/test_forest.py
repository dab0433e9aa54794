"""A forest after a removal is the forest of the other rows: node for node, byte for byte, in memory and on disk."""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from erase.classification.dare import Column, impurity, mix
from erase.classification.forest import Forest, read_forest
from erase.files import sha256, write_safetensors


def assert_equal(one: Forest, other: Forest) -> None:
    """Every node with attribute, threshold, counts and rows; and the predictions' classes."""
    np.testing.assert_array_equal(one.classes_, other.classes_)
    for (name, array), again in zip(one.arrays().items(), other.arrays().values(), strict=True):
        np.testing.assert_array_equal(array, again, err_msg=name)


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, Forest]:
    """A small data set with many ties, or none, of 2 or 3 classes, and a forest with any of its settings."""
    generator = np.random.default_rng(seed)
    num_rows, num_features, num_classes = generator.integers(8, 40), generator.integers(1, 6), generator.integers(2, 4)
    if seed % 3:
        X = generator.integers(0, generator.integers(2, 8), (num_rows, num_features)).astype(float)
    else:
        X = generator.normal(size=(num_rows, num_features))
    y = generator.permutation(np.arange(num_rows) % num_classes)
    forest = Forest(
        n_estimators=int(generator.integers(1, 4)),
        max_depth=int(generator.integers(1, 9)),
        n_thresholds=int(generator.choice([1, 2, 5, 100])),
        random_depth=int(generator.integers(0, 3)),
        max_features=[None, 1, 5][generator.integers(3)],
        criterion=str(generator.choice(["gini", "entropy"])),
        seed=seed,
    )
    return X, y, forest


def removals_equal_fits(seed: int) -> None:
    """Two or three removals of 1 to 8 rows, one after another, each against a fit on what is left."""
    X, y, forest = random_case(seed)
    forest.fit(X, y)
    generator, alive = np.random.default_rng(seed + 1), np.arange(len(y))
    for _ in range(3):
        gone = generator.choice(alive, generator.integers(1, min(8, len(alive) - 2)), replace=False)
        rest = np.setdiff1d(alive, gone)
        if len(np.unique(y[rest])) < 2:
            with pytest.raises(ValueError, match="would be left"):
                forest.remove(gone)
            return
        forest.remove(gone)
        alive = rest
        again = Forest(**forest.get_params()).fit(X[alive], y[alive], ids=alive)
        assert_equal(forest, again)
        if len(alive) < 6:
            return


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_removal_is_a_fit_on_the_rest_in_100_data_sets(first: int) -> None:
    for seed in range(first, first + 25):
        removals_equal_fits(seed)


@pytest.mark.slow
def test_removal_is_a_fit_on_the_rest_in_500_data_sets() -> None:
    for seed in range(100, 600):
        removals_equal_fits(seed)


@pytest.mark.parametrize("random_depth", [0, 2])
def test_removal_is_a_fit_on_the_rest_of_breast_cancer(random_depth: int) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    forest = Forest(3, random_depth=random_depth).fit(X, y)
    order = np.random.default_rng(0).permutation(len(y))
    for gone in (order[:1], order[1:2], order[2:3], order[3:20]):
        forest.remove(gone)
    assert_equal(forest, Forest(3, random_depth=random_depth).fit(X[order[20:]], y[order[20:]], ids=order[20:]))


def test_a_removal_mostly_updates_counts_and_seldom_regrows() -> None:
    """The statistics are worth their memory: at most a tenth of a fit's row visits on average, none at the median."""
    X, y = load_breast_cancer(return_X_y=True)
    forest = Forest(4).fit(X, y)
    work = forest.work()
    rebuilt = [forest.remove([i]).rebuilt / work for i in np.random.default_rng(0).permutation(len(y))[:30]]
    assert np.median(rebuilt) < 0.02
    assert 0 < np.mean(rebuilt) < 0.10


def test_the_released_codes_counterexample() -> None:
    """X = 2, 4, 3, 4, 4 with y = 1, 0, 1, 0, 1: without row 2 the threshold is 3.0 and p(3.2) = 1/3; a stale tree says 1."""
    X, y = np.array([[2.0], [4], [3], [4], [4]]), np.array([1, 0, 1, 0, 1])
    forest = Forest(1, n_thresholds=100, max_features=1).fit(X, y)
    assert forest.trees_[1][0].threshold == 3.5 and forest.predict_proba([[3.2]])[0, 1] == 1
    forest.remove([2])
    assert forest.trees_[1][0].threshold == 3.0
    assert forest.predict_proba([[3.2]])[0, 1] == pytest.approx(1 / 3)


def test_removing_the_row_that_told_two_labels_apart() -> None:
    """p(0 | [1, 0]) is 1/2 with the two equal rows of different labels, and 0 once the one of label 0 is gone."""
    X, y = np.array([[0.0, 1], [0, 1], [1, 0], [1, 0]]), np.array([0, 0, 1, 0])
    forest = Forest(10, max_features=2).fit(X, y)
    assert forest.predict_proba([[1, 0]])[0, 0] == 0.5
    forest.remove([3])
    assert forest.predict_proba([[1, 0]])[0, 0] == 0


@pytest.mark.parametrize("criterion", ["gini", "entropy"])
def test_with_every_threshold_of_every_attribute_it_is_scikit_learns_tree(criterion: str) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    ours = Forest(1, n_thresholds=10_000, max_features=30, max_depth=2, criterion=criterion).fit(X, y)
    theirs = DecisionTreeClassifier(criterion=criterion, max_depth=2, random_state=0).fit(X, y)
    nodes = list(ours.trees_[1][0].walk())
    splits = {(node.feature, round(node.threshold, 4)) for node in nodes if node.left}
    inner = theirs.tree_.feature >= 0
    expected = zip(theirs.tree_.feature[inner].tolist(), theirs.tree_.threshold[inner].round(4).tolist(), strict=True)
    assert splits == set(expected)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X))


def test_impurities_by_hand() -> None:
    """2 of 4: 4 * 2 (1/2)(1/2) / 2 = 1, entropy 4 log 2; 0 of 3: none."""
    ones, total = np.array([2.0, 0.0]), np.array([4.0, 3.0])
    np.testing.assert_allclose(impurity("gini", ones, total), [1, 0])
    np.testing.assert_allclose(impurity("entropy", ones, total), [4 * np.log(2), 0], atol=1e-12)


def test_thresholds_are_valid_where_neighbours_are_not_all_of_one_label() -> None:
    """Values 0 (two 0s), 1 (0), 2 (0 and 1), 3 (1), 4 (1): 1|2 and 2|3 are valid, with 3 and 5 rows, 0 and 1 positive."""
    column = Column(0, [0.0, 1, 2, 3, 4], [2, 1, 2, 1, 1], [0, 0, 1, 1, 1], [5, 4, 3, 2, 1])
    column.choose(10)
    np.testing.assert_array_equal(column.chosen, [[1, 2], [3, 5], [0, 1]])
    column.choose(1)
    np.testing.assert_array_equal(column.chosen, [[2], [5], [1]], err_msg="the lowest rank wins")


def test_random_splits_are_uniform_and_every_attribute_gets_its_turn() -> None:
    """Over 600 keys, thresholds on values in [0, 1] have mean 1/2 and variance 1/12, attributes a third each."""
    X = np.array([[0.0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]])
    forest = Forest(600, max_depth=1, random_depth=1).fit(X, [0, 1, 1, 0])
    roots = forest.trees_[1]
    thresholds = np.array([root.threshold for root in roots])
    assert thresholds.mean() == pytest.approx(0.5, abs=0.05)
    assert thresholds.var() == pytest.approx(1 / 12, rel=0.15)
    assert np.bincount([root.feature for root in roots]) / 600 == pytest.approx([1 / 3] * 3, abs=0.08)


def test_hashes_depend_on_key_and_word_and_half_their_bits_flip() -> None:
    words = np.arange(4000, dtype=np.uint64)
    one, other = mix(1, words), mix(2, words)
    assert len(np.unique(np.concatenate([one, other]))) == 8000
    for flipped in (one ^ other, one[1:] ^ one[:-1]):
        assert np.bitwise_count(flipped).mean() == pytest.approx(32, abs=0.3)


def test_accuracy_is_that_of_a_random_forest() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    assert Forest(4).fit(X[200:], y[200:]).score(X[:200], y[:200]) >= 0.9
    X, y = load_digits(return_X_y=True)
    theirs = RandomForestClassifier(3, bootstrap=False, random_state=0).fit(X[:300], y[:300]).score(X[600:], y[600:])
    assert Forest(3).fit(X[:300], y[:300]).score(X[600:], y[600:]) > theirs - 0.1


def test_seed_and_row_order() -> None:
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(150)
    assert_equal(Forest(2).fit(X, y), Forest(2).fit(X[order], y[order], ids=order))
    first, second = (Forest(2, seed=seed).fit(X, y).arrays()["threshold"] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_a_class_that_vanishes_leaves_the_forest_of_the_others() -> None:
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    forest = Forest(2).fit(X, names)
    forest.remove(np.flatnonzero(y == 0))
    assert_equal(forest, Forest(2).fit(X[y > 0], names[y > 0], ids=np.flatnonzero(y > 0)))
    assert set(forest.predict(X)) == {"versicolor", "virginica"}


# Files


def test_nothing_of_a_removed_row_is_left_on_disk(tmp_path: Path) -> None:
    """A row with a value of its own: before, a threshold tells it; after, the file is a fit's on the rest, byte for byte."""
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[:100, :5], y[:100]
    forest = Forest(4).fit(X, y)
    forest.save(tmp_path / "before")
    splits = {(node.feature, node.threshold) for tree in forest.trees_[1] for node in tree.walk()}
    told = set()
    for row, feature in itertools.product(range(100), range(5)):
        values = np.sort(np.delete(X[:, feature], row))
        at = np.searchsorted(values, X[row, feature])
        if 0 < at < 99 and X[row, feature] not in values:
            middles = X[row, feature] / 2 + values[at - 1 : at + 1] / 2
            told |= {row for middle in middles if (feature, middle) in splits}
    assert told, "some row's own value stands in a threshold, so that there is something to delete"
    gone = np.array(sorted(told))[:3]
    forest.remove(gone)
    forest.save(tmp_path / "after")
    rest = np.setdiff1d(np.arange(100), gone)
    Forest(4).fit(X[rest], y[rest], ids=rest).save(tmp_path / "again")
    assert sha256(tmp_path / "after") == sha256(tmp_path / "again") != sha256(tmp_path / "before")
    assert np.isnan(forest.features_[gone]).all() and not np.isin(gone, forest.ids_).any(), "nor in memory"
    for copied in (pickle.loads(pickle.dumps(forest)), copy.deepcopy(forest)):
        assert copied.ids_.tolist() == rest.tolist() and copied.alive_.all() and np.isfinite(copied.features_).all()
        np.testing.assert_array_equal(copied.labels_, y[rest])
        copied.remove(rest[5:9])
        left = np.delete(rest, range(5, 9))
        assert_equal(copied, Forest(4).fit(X[left], y[left], left))
    assert len(forest.alive_) == 100, "making a copy changes nothing"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"parameters": '{"n_estimators": 40}'}, "its nodes are not those of 40 trees"),
        ({"parameters": '{"n_estimators": 1000000000000}'}, "nodes for 1000000000000 trees"),
        ({"parameters": '{"n_estimators": 1}'}, "more nodes than its 1 trees"),
        ({"parameters": '{"n_estimators": 2, "max_depth": 1}'}, "its nodes are not those of 2 trees"),
        ({"feature": 9}, "its nodes are not those of 2 trees"),
        ({"total": -3}, "as many rows as there are ids"),
    ],
)
def test_nodes_that_are_no_forest_are_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[:100, :5], y[:100]
    Forest(2).fit(X, y).save(tmp_path / "forest")
    arrays, header = read_forest(tmp_path / "forest")
    if "parameters" in change:
        header |= change
    else:
        for name, value in change.items():
            arrays[name][0] = value
    write_safetensors({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "forest", header)
    with pytest.raises(ValueError, match=sentence):
        Forest.load(tmp_path / "forest", X, y)


def test_saved_and_loaded_forests_go_on_alike(tmp_path: Path) -> None:
    X, y = load_iris(return_X_y=True)
    forest = Forest(3, random_depth=1).fit(X, y)
    forest.remove([3, 77])
    forest.save(tmp_path / "forest")
    order = np.random.default_rng(0).permutation(150)
    loaded = Forest.load(tmp_path / "forest", X[order], y[order], ids=order)
    np.testing.assert_array_equal(loaded.predict_proba(X), forest.predict_proba(X))
    for gone in ([5], list(range(60, 70)), [100, 149]):
        forest.remove(gone)
        loaded.remove(gone)
        assert_equal(forest, loaded)


def test_changed_data_is_found_out(tmp_path: Path) -> None:
    X, y = load_iris(return_X_y=True)
    forest = Forest(2).fit(X, y)
    forest.remove([0])
    forest.save(tmp_path / "forest")
    Forest.load(tmp_path / "forest", X[1:], y[1:], ids=np.arange(1, 150))
    changed = X.copy()
    changed[9, 2] += 1e-9
    for features, labels in ((changed, y), (X, (y + 1) % 3)):
        with pytest.raises(ValueError, match="changed since"):
            Forest.load(tmp_path / "forest", features, labels)
    with pytest.raises(ValueError, match="lacks 1 of the model's rows, first 149"):
        Forest.load(tmp_path / "forest", X[:149], y[:149])
    (tmp_path / "other").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a forest"):
        Forest.load(tmp_path / "other", X, y)


# Mistakes


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no id"),
        ([999], "no row with the id 999"),
        ([0], "removed already"),
        ([3, 3], "id 3 is given more than once"),
        (list(range(1, 150)), "all 149 rows"),
        (list(range(1, 100)), "only class 2 would be left"),
    ],
)
def test_a_refused_removal_leaves_the_forest_as_it_was(ids: list[int], message: str, tmp_path: Path) -> None:
    X, y = load_iris(return_X_y=True)
    forest = Forest(1).fit(X, y)
    forest.remove([0])
    forest.save(tmp_path / "before")
    with pytest.raises(ValueError, match=message):
        forest.remove(ids)
    forest.save(tmp_path / "after")
    assert sha256(tmp_path / "before") == sha256(tmp_path / "after")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": [[0.0], [np.nan]]}, "NaN"),
        ({"y": [1, 1]}, "1 class"),
        ({"y": [0.5, 1.5]}, "continuous"),
        ({"ids": [7, 7]}, "more than one row"),
        ({"ids": [0.5, 1.0]}, "whole numbers"),
    ],
)
def test_rows_that_no_forest_can_grow_on(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forest(1).fit(**({"X": [[0.0], [1.0]], "y": [0, 1]} | change))


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_estimators", 0), ("max_depth", 0), ("max_depth", 301), ("n_thresholds", 0), ("max_features", -3), ("criterion", "x")],
)
def test_settings_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"must be at least|accepted"):
        Forest(**{name: value}).fit([[0.0], [1.0]], [0, 1])


def test_neighbouring_floats_and_negative_zero_split_cleanly() -> None:
    low = 1.0
    high = np.nextafter(low, 2)
    forest = Forest(1).fit([[low], [high]], [0, 1])
    np.testing.assert_array_equal(forest.predict([[low], [high]]), [0, 1])
    assert_equal(Forest(1).fit([[-0.0], [0.0], [1]], [0, 0, 1]), Forest(1).fit([[0.0], [0.0], [1]], [0, 0, 1]))


@pytest.mark.slow
def test_scikit_learns_estimator_checks() -> None:
    check_estimator(Forest(n_estimators=2))
