"""SISA: shards are isolated, a removal is a fresh training of its shard, and no moment to be killed at harms the folder."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from erase.classification.learners import Learner, SklearnLearner, TorchLearner, in_batches
from erase.classification.rows import Rows, load_rows, rows_of
from erase.classification.sisa import (
    SISA,
    SISAConfig,
    expected_batch,
    expected_sequential,
    slicing_fraction,
    train_shard,
)
from erase.files import sha256, write_safetensors


def stump(seed: int) -> DecisionTreeClassifier:
    """A tree of one split."""
    return DecisionTreeClassifier(max_depth=1, random_state=seed)


LEARNERS = {"torch": TorchLearner(), "sklearn": SklearnLearner()}


@pytest.fixture(scope="module")
def rows() -> Rows:
    """300 digits, ids from 1000."""
    features, labels = load_digits(return_X_y=True)
    return rows_of(features[:300] / 16, labels[:300], np.arange(1000, 1300))


def made(folder: Path, rows: Rows, **settings: int) -> SISA:
    """A small fitted model."""
    sisa = SISA(folder, TorchLearner(), SISAConfig(**({"shards": 3, "slices": 3, "epochs": 4} | settings)))
    sisa.fit(rows)
    return sisa


def hashes(folder: Path) -> dict[str, str]:
    """Every file of a folder with its hash; a killed process leaves its `.lock`, which nobody holds any more."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.name != ".lock"}


def test_shards_and_slices_divide_the_rows(tmp_path: Path, rows: Rows) -> None:
    sisa = made(tmp_path, rows)
    parts = [part for shard in sisa.slices for part in shard]
    assert sorted(i for part in parts for i in part) == rows.ids.tolist()
    assert [sum(map(len, shard)) for shard in sisa.slices] == [100] * 3
    assert {len(part) for part in parts} <= {33, 34}
    assert len(list(tmp_path.glob("shard*"))) == 3 * 3, "one checkpoint a shard and slice"
    assert not np.array_equal(np.sort(sisa.slices[0][0]), sisa.slices[0][0]), "at random, not in order"


def test_a_removal_trains_one_shard_on_and_leaves_the_other_files(tmp_path: Path, rows: Rows) -> None:
    """The other shards' files stay as they are; the touched one's last state is that of fresh training, torch.equal."""
    sisa = made(tmp_path, rows)
    before, removed = hashes(tmp_path), sisa.slices[1][1][7]
    cost = sisa.remove([removed])
    after = hashes(tmp_path)
    assert cost.shards == (1,)
    for name in before:
        kept = not name.startswith(("shard1-slice1", "shard1-slice2", "sisa"))
        assert (before[name] == after.get(name)) == kept, name
    assert len(after) == len(before), "stale checkpoints are gone"
    shard = [[i for i in part if i != removed] for part in sisa.slices[1]]
    assert sisa.slices[1] == shard
    shard_rows = rows.with_ids(np.concatenate(shard))
    states, _ = train_shard(TorchLearner(), shard_rows, [33 + 1, 32, 33], 0, None, sisa.classes, 2, [0, 1])
    for r, state in enumerate(states):
        found = load_file(tmp_path / sisa.files[1][r]["name"])
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_removing_from_several_shards_goes_back_to_the_first_touched_slice_of_each(tmp_path: Path, rows: Rows) -> None:
    sisa = made(tmp_path, rows)
    removed = [sisa.slices[0][2][0], sisa.slices[2][2][1], sisa.slices[2][0][5]]
    cost = sisa.remove(removed)
    sizes = [[len(part) for part in shard] for shard in sisa.slices]
    steps = sum(sizes[0]) + sizes[2][0] + sum(sizes[2][:2]) + sum(sizes[2])
    assert cost.shards == (0, 2) and cost.sample_steps == 2 * steps
    assert not set(removed) & set(sisa.rows.ids.tolist())
    assert not any(str(i) in (tmp_path / "sisa.json").read_text() for i in removed)


@pytest.mark.parametrize(("slices", "epochs", "each"), [(1, 16, 16), (3, 16, 8), (3, 4, 2), (7, 2, 1)])
def test_epochs_of_a_stage_are_2e_over_r_plus_1_and_at_least_one(slices: int, epochs: int, each: int) -> None:
    assert SISAConfig(slices=slices, epochs=epochs).stage_epochs == each


def test_costs_counted_in_a_fit_and_a_removal(tmp_path: Path, rows: Rows) -> None:
    """300 rows, S = 3, R = 3, 2 epochs a stage: 2 * 3 * (34 + 67 + 100) = 1206."""
    sisa = SISA(tmp_path, TorchLearner(), SISAConfig(shards=3, slices=3, epochs=4))
    assert sisa.fit(rows).sample_steps == 1206
    cost = sisa.remove([sisa.slices[0][0][0]])
    assert cost.sample_steps == 2 * (33 + 66 + 99) and cost.full_steps == 1206 - 2 * 3
    assert cost.sample_steps / cost.full_steps < 1 / 3 + 1e-9


def test_expected_costs() -> None:
    """N = 1000, S = 10: one removal 99, fifty 4827.5 one by one and 944.85 at once; five slices save to 0.7333."""
    assert expected_sequential(1000, 10, 1) == pytest.approx(99)
    assert expected_sequential(1000, 10, 50) == pytest.approx(4827.5)
    assert expected_batch(1000, 10, 50) == pytest.approx(944.85, abs=0.01)
    assert slicing_fraction(5) == pytest.approx(0.7333, abs=1e-4)
    assert slicing_fraction(1) == 1


def test_expected_costs_are_those_of_a_simulation() -> None:
    generator = np.random.default_rng(0)
    sequential, batch = [], []
    for _ in range(1500):
        shards = np.repeat(np.arange(10), 100)
        removed = generator.permutation(1000)[:50]
        sizes, total = np.bincount(shards), 0
        for row in removed:
            sizes[shards[row]] -= 1
            total += sizes[shards[row]]
        sequential.append(total)
        batch.append(sum(sizes[s] for s in set(shards[removed])))
    assert np.mean(sequential) == pytest.approx(expected_sequential(1000, 10, 50), rel=2e-3)
    assert np.mean(batch) == pytest.approx(expected_batch(1000, 10, 50), rel=5e-3)
    slices = [np.mean([sum(range(r, 6)) for r in range(1, 6)]) / sum(range(1, 6))]
    assert slices[0] == pytest.approx(slicing_fraction(5))


def test_means_and_votes_classify_digits(tmp_path: Path) -> None:
    data = load_rows("digits")
    train = data.take(np.arange(600))
    sisa = made(tmp_path, train, epochs=12)
    assert (sisa.predict(data.features[600:]) == data.labels[600:]).mean() > 0.85
    votes = sisa.predict(data.features[600:], vote="label")
    assert (votes == data.labels[600:]).mean() > 0.8


@pytest.mark.parametrize("learner", LEARNERS)
def test_opened_again_it_predicts_and_removes_alike(learner: str, tmp_path: Path, rows: Rows) -> None:
    config = SISAConfig(shards=3, epochs=4)
    sisa = SISA(tmp_path, LEARNERS[learner], config)
    sisa.fit(rows)
    before = hashes(tmp_path)
    again = SISA.open(tmp_path, LEARNERS[learner], rows.take(np.arange(300)[::-1]))
    np.testing.assert_array_equal(again.probabilities(rows.features), sisa.probabilities(rows.features))
    assert hashes(tmp_path) == before
    removed = [sisa.slices[0][0][0], sisa.slices[2][0][3]]
    again.remove(removed)
    sisa = SISA.open(tmp_path, LEARNERS[learner], rows.take(~np.isin(rows.ids, removed)))
    np.testing.assert_array_equal(again.probabilities(rows.features), sisa.probabilities(rows.features))


def test_trees_of_untouched_shards_and_the_touched_one_fitted_afresh(tmp_path: Path, rows: Rows) -> None:
    sisa = SISA(tmp_path, SklearnLearner(), SISAConfig(shards=4))
    sisa.fit(rows)
    before = [model.probabilities(rows.features) for model in sisa.models]
    removed = sisa.slices[2][0][:10]
    sisa.remove(removed)
    after = [model.probabilities(rows.features) for model in sisa.models]
    assert [np.array_equal(one, other) for one, other in zip(before, after, strict=True)] == [True, True, False, True]
    shard_rows = rows.with_ids(np.array(sisa.slices[2][0]))
    fresh = sisa.models[2].estimator.__class__(random_state=sisa.models[2].seed).fit(shard_rows.features, shard_rows.labels)
    known = np.searchsorted(sisa.classes, fresh.classes_)
    np.testing.assert_array_equal(after[2][:, known], fresh.predict_proba(rows.features))


def test_means_and_votes_and_ties(tmp_path: Path) -> None:
    """Two shards for class 0 narrowly, one for class 1 surely: the vote is 0, the mean 1; of equals the lowest class."""

    class Fixed:
        def __init__(self, *shares: float) -> None:
            self.shares = np.array([shares])

        def probabilities(self, features: np.ndarray) -> np.ndarray:
            return self.shares

    sisa = SISA(tmp_path, TorchLearner())
    sisa.classes, one = np.array([4, 7]), np.zeros((1, 1))
    sisa.rows = rows_of(one, [4])
    sisa.models = [Fixed(0.6, 0.4), Fixed(0.6, 0.4), Fixed(0, 1)]
    assert sisa.predict(one, "label") == [4] and sisa.predict(one, "mean") == [7]
    sisa.models = [Fixed(1, 0), Fixed(0, 1)]
    assert sisa.predict(one, "label") == sisa.predict(one, "mean") == [4]


def test_emptied_slices_and_shards(tmp_path: Path, rows: Rows) -> None:
    """A shard whose first slice went starts at the second, as in fresh training; one without rows no longer votes."""
    sisa = made(tmp_path, rows, slices=2)
    shard = sisa.slices[1]
    sisa.remove(sisa.slices[0][0] + shard[0] + shard[1])
    states, _ = train_shard(
        TorchLearner(),
        rows.with_ids(np.array(sisa.slices[0][1])),
        [0, 50],
        0,
        None,
        sisa.classes,
        sisa.config.stage_epochs,
        [0, 0],
    )
    found = load_file(tmp_path / sisa.files[0][1]["name"])
    assert all(torch.equal(found[name], state) for name, state in states[1].items())
    assert len(sisa.probabilities(rows.features)) == 2
    again = SISA.open(tmp_path, TorchLearner(), rows)
    np.testing.assert_array_equal(again.probabilities(rows.features), sisa.probabilities(rows.features))


def test_dropout_and_batch_norm_come_from_the_seed_and_the_callers_randomness_is_untouched(tmp_path: Path, rows: Rows) -> None:
    learner = TorchLearner(noisy, "noisy")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = learner.train(None, rows, np.arange(10), 1, seed=3).state()
    assert torch.rand(1) == expected
    second, third = (learner.train(None, rows, np.arange(10), 1, seed=seed).state() for seed in (3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], third["0.weight"])
    torch.set_num_threads(2)
    try:
        learner.train(None, rows.take(np.arange(40)), np.arange(10), 1, seed=3)
        assert torch.get_num_threads() == 2, "the caller's threads are as they were"
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("num", "sizes"), [(1, [1]), (4, [4]), (5, [5]), (8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (13, [4, 4, 5])]
)
def test_a_last_batch_of_one_row_joins_the_one_before(num: int, sizes: list[int]) -> None:
    parts = in_batches(torch.arange(num), 4)
    assert [len(part) for part in parts] == sizes and torch.equal(torch.cat(parts), torch.arange(num))


def test_a_removal_that_leaves_a_batch_of_one_row_trains_batch_norm_too(tmp_path: Path, rows: Rows) -> None:
    sisa = SISA(tmp_path, TorchLearner(noisy, batch_size=32), SISAConfig(shards=2, epochs=2))
    sisa.fit(rows.take(np.arange(68)))  # 34 a shard; 33 are 32 and 1
    sisa.remove([sisa.slices[0][0][0]])
    assert len(sisa.slices[0][0]) == 33


def test_a_checkpoint_of_other_tensors_is_one_sentence(tmp_path: Path, rows: Rows) -> None:
    sisa = made(tmp_path, rows, epochs=1)
    file = sisa.files[1][-1]
    write_safetensors({"a": torch.zeros(1)}, tmp_path / file["name"], {})
    manifest = json.loads((tmp_path / "sisa.json").read_text())
    manifest["files"][1][-1]["sha256"] = sha256(tmp_path / file["name"])
    (tmp_path / "sisa.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is not a checkpoint of mlp"):
        SISA.open(tmp_path, TorchLearner(), rows)


def noisy(num_features: int, num_classes: int) -> nn.Module:
    """A module with dropout and statistics."""
    return nn.Sequential(nn.Linear(num_features, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, num_classes))


@pytest.mark.slow
def test_processes_train_the_same_bits(tmp_path: Path, rows: Rows) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    made(one, rows)
    sisa = SISA(two, TorchLearner(), SISAConfig(shards=3, slices=3, epochs=4), workers=2)
    sisa.fit(rows)
    assert hashes(one) == hashes(two)


# Killed


def remove_and_die(folder: Path, rows: Rows, removed: int, step: int) -> None:
    """Remove a row, killed by SIGKILL before the step-th rename or deletion of a file."""
    left = [step]

    def counted(name: str) -> None:
        original = getattr(Path, name)

        def call(self: Path, *arguments: object, **options: object) -> object:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(self, *arguments, **options)

        setattr(Path, name, call)

    sisa = SISA.open(folder, TorchLearner(), rows)
    for name in ("replace", "unlink"):
        counted(name)
    sisa.remove([removed])


def test_killed_at_any_write_the_folder_holds_the_old_model_or_the_new(tmp_path: Path, rows: Rows) -> None:
    """Each rename and deletion is the moment of death once; a removal given again leaves no file of the other model."""
    small = rows.take(np.arange(60))
    reference = made(tmp_path / "reference", small, shards=2, slices=2, epochs=1)
    old, removed = hashes(tmp_path / "reference"), reference.slices[0][0][0]
    reference.remove([removed])
    new, seen = hashes(tmp_path / "reference"), []
    for step in range(40):
        folder = tmp_path / str(step)
        made(folder, small, shards=2, slices=2, epochs=1)
        assert hashes(folder) == old
        process = multiprocessing.get_context("fork").Process(target=remove_and_die, args=(folder, small, removed, step))
        process.start()
        process.join(120)
        left = hashes(folder)
        sisa = SISA.open(folder, TorchLearner(), small)
        assert hashes(folder) == left, "opening only reads"
        seen.append("old" if removed in sisa.rows.ids else "new")
        assert (old if seen[-1] == "old" else new).items() <= left.items()
        if seen[-1] == "old":
            sisa.remove([removed])
        else:
            with pytest.raises(ValueError, match="removed already"):
                sisa.remove([removed])
        assert hashes(folder) == new, "the removal can be given again, and takes away what was left"
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and seen[0] == "old" and seen == sorted(seen, reverse=True) and seen.count("new") > 2


def test_a_reader_does_no_harm_to_a_removal_at_work_and_a_second_removal_is_refused(
    tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment before `sisa.json` is replaced, when the new checkpoints are still named by nothing."""
    small = rows.take(np.arange(60))
    sisa, commit, refused = made(tmp_path, small, shards=2, slices=2, epochs=1), SISA._commit, []

    def beside(self: SISA, *arguments: object) -> None:
        monkeypatch.setattr(SISA, "_commit", commit)
        reader = SISA.open(tmp_path, TorchLearner(), small)
        with pytest.raises(ValueError, match="is in use by process") as error:
            reader.remove([sisa.slices[1][0][0]])
        refused.append(error)
        commit(self, *arguments)

    stale = SISA.open(tmp_path, TorchLearner(), small)
    monkeypatch.setattr(SISA, "_commit", beside)
    sisa.remove([sisa.slices[0][0][0]])
    again = SISA.open(tmp_path, TorchLearner(), small)
    assert refused and len(again.rows) == 59
    with pytest.raises(ValueError, match="was changed since it was opened"):
        stale.remove([int(again.rows.ids[0])])
    assert len(SISA.open(tmp_path, TorchLearner(), small).rows) == 59, "the first removal is not undone"


def test_a_class_whose_last_row_goes_leaves_the_shape_too(tmp_path: Path, rows: Rows) -> None:
    """All shards are those of training the same division without the class, bit for bit."""
    few = rows.take(np.flatnonzero(rows.labels < 3))
    sisa = made(tmp_path, few, shards=2, slices=1, epochs=2)
    cost = sisa.remove(few.ids[few.labels == 2])
    assert cost.shards == (0, 1) and sisa.classes.tolist() == [0, 1] and cost.sample_steps == cost.full_steps
    assert sisa.probabilities(few.features).shape[2] == 2
    for s, shard in enumerate(sisa.slices):
        shard_rows = few.with_ids(np.concatenate(shard))
        states, _ = train_shard(TorchLearner(), shard_rows, [len(shard[0])], 0, None, np.array([0, 1]), 2, [0, s])
        found = load_file(tmp_path / sisa.files[s][0]["name"])
        assert all(torch.equal(found[name], states[0][name]) for name in states[0])
    again = SISA.open(tmp_path, TorchLearner(), few)
    np.testing.assert_array_equal(again.probabilities(few.features), sisa.probabilities(few.features))


# Mistakes


@pytest.mark.parametrize(
    ("learner", "other", "message"),
    [
        (TorchLearner(lr=0.5), TorchLearner(), "trained with lr 0.5, not 0.05"),
        (TorchLearner(), TorchLearner(batch_size=8), "trained with batch_size 32, not 8"),
        (TorchLearner(), TorchLearner(momentum=0.5), "trained with momentum 0.9, not 0.5"),
        (TorchLearner(name="mine"), TorchLearner(nn.Linear, "mine"), "trained with module Sequential"),
        (SklearnLearner(), SklearnLearner(stump), "trained with max_depth None, not 1"),
    ],
)
def test_a_model_opens_only_with_the_settings_it_was_trained_with(
    learner: Learner, other: Learner, message: str, tmp_path: Path, rows: Rows
) -> None:
    small = rows.take(np.arange(60))
    SISA(tmp_path, learner, SISAConfig(shards=2, epochs=1)).fit(small)
    SISA.open(tmp_path, learner, small)
    with pytest.raises(ValueError, match=message):
        SISA.open(tmp_path, other, small)


def test_an_older_folder_opens_with_a_sentence(tmp_path: Path, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    small, path = rows.take(np.arange(60)), tmp_path / "sisa.json"
    made(tmp_path, small, shards=2, slices=1, epochs=1)
    manifest = json.loads(path.read_text())
    del manifest["settings"]
    path.write_text(json.dumps(manifest))
    sisa = SISA.open(tmp_path, TorchLearner(), small)
    assert "is of an older version" in caplog.text and "lr 0.05" in caplog.text
    sisa.remove([1003])
    assert json.loads(path.read_text())["settings"]["lr"] == 0.05


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no id"),
        ([5], "no row with the id 5"),
        ([1003, 1003], "id 1003 is given more than once"),
        (list(range(1000, 1300)), "all 300 rows"),
        ("one class", "a classifier needs two"),
    ],
)
def test_a_refused_removal_leaves_the_folder_as_it_was(ids: object, message: str, tmp_path: Path, rows: Rows) -> None:
    sisa = made(tmp_path, rows, epochs=1, slices=1)
    before = hashes(tmp_path)
    with pytest.raises(ValueError, match=message):
        sisa.remove(rows.ids[rows.labels != 3] if ids == "one class" else ids)
    assert hashes(tmp_path) == before


def test_a_changed_row_or_checkpoint_is_found_out(tmp_path: Path, rows: Rows) -> None:
    sisa = made(tmp_path, rows, epochs=1)
    changed = rows.features.copy()
    changed[250, 3] += 1e-9
    with pytest.raises(ValueError, match="changed since"):
        SISA.open(tmp_path, TorchLearner(), Rows(changed, rows.labels, rows.ids))
    with pytest.raises(ValueError, match="lacks 1 of the model's rows, first 1299"):
        SISA.open(tmp_path, TorchLearner(), rows.take(np.arange(299)))
    with pytest.raises(ValueError, match="holds mlp models, not tree"):
        SISA.open(tmp_path, SklearnLearner(), rows)
    path = tmp_path / sisa.files[2][2]["name"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="was changed"):
        SISA.open(tmp_path, TorchLearner(), rows)


def test_what_cannot_be_fitted(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(ValueError, match="use slices=1"):
        SISA(tmp_path, SklearnLearner(), SISAConfig(slices=2)).fit(rows)
    with pytest.raises(ValueError, match="do not fill"):
        SISA(tmp_path, TorchLearner(), SISAConfig(shards=400)).fit(rows)
    with pytest.raises(ValueError, match="a classifier needs two"):
        SISA(tmp_path, TorchLearner()).fit(rows.take(rows.labels == 3))
    with pytest.raises(ValueError, match="lower the learning rate"):
        SISA(tmp_path, TorchLearner(lr=1e30)).fit(rows)
    assert not list(tmp_path.iterdir())
    made(tmp_path, rows, epochs=1)
    with pytest.raises(ValueError, match="already holds a model"):
        made(tmp_path, rows)
    (tmp_path / "sisa.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="not a SISA model"):
        SISA.open(tmp_path, TorchLearner(), rows)
