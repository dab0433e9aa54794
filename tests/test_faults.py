"""A run that is killed, or whose disk fails, at each of its writes goes on to the same bits; one process at a time."""

import errno
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import (
    PROMPTS,
    SMALL,
    STAGES,
    Silent,
    check_whole,
    command,
    config_file,
    ended,
    essence,
    forked,
    loaded,
    run_once,
    tiny_model,
)

from erase.config import RunConfig
from erase.files import write_text
from erase.lock import locked
from erase.plan import plan
from erase.reading import read_json
from erase.run import execute
from erase.space import bytes_at_most
from eval.generate import generate
from eval.pictures import Request
from pipelines.load import model_hash

Values = dict[str, Any]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Values:
    """The config of a small run without pictures: its writes are few enough to stop at each."""
    return SMALL | {"model": tiny_model(tmp_path_factory.mktemp("model")), "prompts": PROMPTS}


@pytest.fixture(scope="module")
def reference(values: Values, tmp_path_factory: pytest.TempPathFactory) -> Values:
    """The folder's content after a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("reference") / "run"
    run_once(values, out)
    return essence(out)


class Trap:
    """Does something at a certain write of this process; keeps the labels of all that came before."""

    def __init__(self, action: Callable[[], None], wanted: str | None, out: Path) -> None:
        self.action, self.wanted, self.out = action, wanted, out
        self.stage, self.seen = "", []
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._guarded(name, getattr(os, name)))

    def _guarded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            place = (
                str(Path(f"/proc/self/fd/{target}").readlink())
                if name == "fsync"
                else os.fspath(arguments[0] if arguments else target)
            )
            label = f"{self.stage}: {name} {self._tidy(str(place))}"
            nothing = name == "unlink" and not os.path.lexists(place)
            if str(place).startswith(str(self.out)) and label not in self.seen and not nothing:
                self.seen.append(label)
                if label == self.wanted:
                    self.action()
            return original(target, *arguments, **options)

        return call

    def _tidy(self, place: str) -> str:
        return re.sub(r"\.([^/]+)\.[a-z0-9_]{8}(?=/|$)", r"\1", place.removeprefix(str(self.out)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def labels_of(work: Callable[[Trap], object], out: Path) -> list[str]:
    """Every write of an undisturbed piece of work, in order."""
    reading, writing = os.pipe()

    def note() -> None:
        trap = Trap(die, None, out)
        work(trap)
        os.write(writing, "\n".join(trap.seen).encode())

    assert ended(forked(note)) == 0
    os.close(writing)
    with os.fdopen(reading) as file:
        return file.read().split("\n")


@pytest.mark.parametrize(
    ("action", "code"), [(die, -signal.SIGKILL), pytest.param(full_disk, 3, marks=pytest.mark.slow)], ids=["killed", "full"]
)
def test_stopped_at_every_write_a_run_goes_on_to_the_same_bits(
    action: Callable[[], None], code: int, values: Values, reference: Values, tmp_path: Path
) -> None:
    """Killed (or told that the disk is full) before each write, in one folder: each attempt goes on where the last one died.

    What `finally` would tidy up is left lying by a kill. Every label of an undisturbed run is reached.
    """
    config, family = RunConfig.model_validate(values), loaded(values["model"])
    planned, base = plan(config, family), model_hash(config.model)

    def work(out: Path) -> Callable[[Trap], object]:
        def run(trap: Trap) -> object:
            progress = Silent(lambda stage: setattr(trap, "stage", stage))
            return execute(planned, family, out, progress, base)

        return run

    labels = labels_of(work(tmp_path / "first"), tmp_path / "first")
    assert {label.split(":")[0] for label in labels} == {"", *STAGES}
    assert len([label for label in labels if ": replace" in label]) >= 15
    labels = [label for label in labels if "fsync /model/" not in label or "/unet" in label]  # the other parts are alike
    out = tmp_path / "run"
    tidying = {label for label in labels if ": unlink" in label}
    if action is full_disk:  # which lets one delete
        labels = [label for label in labels if label not in tidying]
    print(f"\n{len(labels)} writes of a run, stopped at each")
    for label in labels:
        attempt = lambda label=label: ended(forked(lambda: work(out)(Trap(action, label, out))))  # noqa: E731
        if (found := attempt()) == 0:  # what this write is for was saved on the way out of the attempt before: from the start
            assert action is full_disk and essence(out) == reference, label
            shutil.rmtree(out)
            found = attempt()
        assert found == code, f"{label}: ended with {found}"
        check_whole(out, reference)
    assert ended(forked(lambda: work(out)(Trap(die, None, out)))) == 0
    assert essence(out) == reference


def test_killed_at_every_write_of_pictures_the_same_pictures_come_out(values: Values, tmp_path: Path) -> None:
    family = loaded(values["model"])
    requests = [Request(prompt=f"a {name}", seed=k, guidance=1, steps=1) for k, name in enumerate(("dog", "cat", "fish"))]

    def draw(out: Path) -> Callable[[Trap], object]:
        return lambda _: generate(family, requests, out, model="m", batch_size=1)

    draw(tmp_path / "whole")(Trap.__new__(Trap))
    whole = essence(tmp_path / "whole")
    assert len(whole) == 4
    labels = labels_of(draw(tmp_path / "first"), tmp_path / "first")
    assert len([label for label in labels if ".png" in label]) >= 6
    for label in labels:
        assert ended(forked(lambda label=label: draw(tmp_path / "run")(Trap(die, label, tmp_path / "run")))) == -signal.SIGKILL
    generate(family, requests, tmp_path / "run", model="m", batch_size=1)
    assert {k: v for k, v in essence(tmp_path / "run").items() if not k.startswith(".")} == whole


# One process at a time


def hold(folder: Path) -> int:
    """A process that takes the lock and sleeps; returns when it has it."""

    def work() -> None:
        with locked(folder):
            (folder / "held").touch()
            time.sleep(60)

    pid = forked(work)
    while not (folder / "held").exists():
        time.sleep(0.01)
    return pid


def test_a_second_process_is_told_the_pid_and_a_dead_ones_lock_is_taken_over(tmp_path: Path) -> None:
    pid = hold(tmp_path / "run")
    with pytest.raises(ValueError, match=f"run is in use by process {pid} on "), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / ".lock").is_file()
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {pid} "), "a kill leaves the file"
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} ")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["held"]


def test_the_lock_holds_within_a_process_too_and_is_given_back_after_an_error(tmp_path: Path) -> None:
    def within() -> None:
        with locked(tmp_path):
            with pytest.raises(ValueError, match="in use by process"), locked(tmp_path):
                pass
            raise KeyError

    with pytest.raises(KeyError):
        within()
    with locked(tmp_path):
        pass


def test_many_processes_never_hold_it_together(tmp_path: Path) -> None:
    """Eight processes write their pid and read it back while they hold the lock, some hundred times."""

    def work() -> None:
        count = 0
        while count < 20:
            try:
                with locked(tmp_path / "run"):
                    (tmp_path / "owner").write_text(str(os.getpid()))
                    time.sleep(0.001)
                    assert (tmp_path / "owner").read_text() == str(os.getpid())
                    count += 1
            except ValueError:
                time.sleep(0.0005)

    assert [ended(pid) for pid in [forked(work) for _ in range(8)]] == [0] * 8


def test_a_folder_made_for_nothing_goes_away(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "run"):
        pass
    assert not (tmp_path / "a" / "run").exists()


def test_two_commands_in_one_folder(values: Values, reference: Values, tmp_path: Path) -> None:
    """The second one ends with one sentence; the first is not disturbed."""
    pid = hold(tmp_path / "run")
    file = config_file(values, tmp_path / "run.yaml")
    arguments = ["--config", str(file), "--out", str(tmp_path / "run")]
    assert ended(command(arguments, tmp_path / "errors")) == 2
    assert re.fullmatch(rf"erase: .*run is in use by process {pid} on \S+: wait.*\n", (tmp_path / "errors").read_text())
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    (tmp_path / "run" / "held").unlink()
    assert ended(command(arguments, tmp_path / "errors")) == 0
    assert essence(tmp_path / "run") == reference


# The disk


def test_a_file_that_grows_too_large_is_one_sentence_and_harms_nothing(
    values: Values, reference: Values, tmp_path: Path
) -> None:
    """A limit on the size of files (what a quota does in the midst of a write) at several sizes."""
    file = config_file(values, tmp_path / "run.yaml")
    arguments = ["--config", str(file), "--out", str(tmp_path / "run")]

    def limited(size: int) -> int:
        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            code = ended(command(arguments, tmp_path / "errors"))
            sys.exit(code)

        return ended(forked(work))

    failed = []
    for size in (3_000, 30_000, 100_000, 180_000):
        if limited(size) == 2:
            text = (tmp_path / "errors").read_text()
            assert re.fullmatch(
                r"(.*: .*\n)*erase: File too large \(.*\): existing files are unchanged; free some disk space.*\n", text
            ), text
            failed.append(size)
        check_whole(tmp_path / "run", reference)
    assert len(failed) >= 3, "several stages met the limit"
    assert ended(command(arguments, tmp_path / "errors")) == 0
    assert essence(tmp_path / "run") == reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives the tmpfs a size; the folder where it is."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(text: str) -> Path:
        options = ["-o", f"{'remount,' if os.path.ismount(place) else ''}size={text}"]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()[:80]}")
        return place

    yield size
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up(
    small_disk: Callable[[str], Path], values: Values, reference: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before work where it is known to be too small; where it fills up all the same, nothing is harmed."""
    file = config_file(values, tmp_path / "run.yaml")
    out = small_disk("200k") / "run"
    arguments = ["--config", str(file), "--out", str(out)]
    assert ended(command(arguments, tmp_path / "errors")) == 2
    assert re.search(r"^erase: .*run needs 0\.00 GB and its disk has 0\.00 GB free", (tmp_path / "errors").read_text(), re.M)
    assert not (out / "data.safetensors").exists()
    monkeypatch.setattr("erase.run.require_space", lambda *_: None)
    failures = 0
    for size in ("24k", "120k", "280k", "440k"):
        small_disk(size)
        code = ended(command(arguments, tmp_path / "errors"))
        if code:
            text = (tmp_path / "errors").read_text()
            assert code == 2 and "erase: No space left on device" in text and "Traceback" not in text, text
            failures += 1
        check_whole(out, reference)
    assert failures >= 3
    small_disk("20m")
    assert ended(command(arguments, tmp_path / "errors")) == 0
    assert essence(out) == reference


def test_a_quota_that_is_used_up_in_the_midst_is_one_sentence(
    values: Values, reference: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network file system tells it: when the file is brought to the disk."""
    arguments = ["--config", str(config_file(values, tmp_path / "run.yaml")), "--out", str(tmp_path / "run")]
    fsync = os.fsync

    def full(handle: int) -> None:
        if "mask.safetensors" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert ended(command(arguments, tmp_path / "errors")) == 2
    text = (tmp_path / "errors").read_text()
    assert re.search(
        r"^erase: Disk quota exceeded.*: existing files are unchanged; free some disk space and run the same command",
        text,
        re.M,
    )
    assert (tmp_path / "run/data.safetensors").is_file() and not (tmp_path / "run/mask.safetensors").exists()
    check_whole(tmp_path / "run", reference)
    assert ended(command(arguments, tmp_path / "errors")) == 0
    assert essence(tmp_path / "run") == reference


def test_a_disk_that_is_read_only_is_read_and_not_written(
    small_disk: Callable[[str], Path], values: Values, reference: Values, tmp_path: Path
) -> None:
    """A finished run on it can be exported elsewhere; one that would have to write ends in a sentence, nothing changed."""
    disk = small_disk("20m")
    run_once(values, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    file = str(config_file(values, tmp_path / "run.yaml"))
    for folder in ("run", "another"):
        assert ended(command(["--config", file, "--out", str(disk / folder)], tmp_path / "errors")) == 2
        assert (tmp_path / "errors").read_text() == f"erase: cannot write to {disk / folder}: Read-only file system.\n"
    arguments = ["export", str(disk / "run"), "--to", "patch", "--out", str(tmp_path / "patch.safetensors")]
    assert ended(command(arguments, tmp_path / "errors")) == 0, (tmp_path / "errors").read_text()
    assert essence(disk / "run") == reference
    out = str(disk / "x.safetensors")
    assert ended(command(["export", str(disk / "run"), "--to", "patch", "--out", out], tmp_path / "errors")) == 2
    text = (tmp_path / "errors").read_text()
    assert text.startswith("erase: ") and "Read-only file system" in text and text.count("\n") == 1, text


def test_the_room_that_is_asked_for_is_enough_and_not_twice_too_much(values: Values, tmp_path: Path) -> None:
    """Counted against the files of a real run, headers and texts aside: they weigh on a tiny model alone."""
    plain = {key: value for key, value in values.items() if key != "prompts"}
    config, family = RunConfig.model_validate(plain), loaded(values["model"])
    asked = bytes_at_most(plan(config, family), family)
    run_once(plain, tmp_path / "run")
    weights = [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".safetensors", ".png")]
    held = sum(path.stat().st_size for path in weights)
    assert 0.8 * held < asked < 2 * held


def test_a_folder_that_cannot_be_written_is_one_sentence(values: Values, tmp_path: Path) -> None:
    """Really without permission: root gives its rights up first."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    (tmp_path / "run").mkdir(mode=0o555)

    def work() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        with locked(tmp_path / "run"):
            pass

    reading, writing = os.pipe()

    def told() -> None:
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(2, "w")
        work()

    assert ended(forked(told)) == 2
    os.close(writing)
    with os.fdopen(reading) as file:
        assert file.read() == f"cannot write to {tmp_path / 'run'}: Permission denied.\n"
    assert list((tmp_path / "run").iterdir()) == []


# What lies in the folder


def files_of(out: Path) -> list[str]:
    return [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("pictures", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_any_artefact_is_found_named_and_mended(pictures: bool, values: Values, tmp_path: Path) -> None:
    """The same command again names the file and makes it again; with pictures: every file there is (of these some)."""
    config = {key: value for key, value in values.items() if key != "prompts"} if pictures else values
    out = tmp_path / "run"
    run_once(config, out)
    whole = essence(out)
    if pictures:
        names = [name for name in files_of(out) if not name.startswith("pictures/") or name.endswith(("00007.png", ".jsonl"))]
    else:
        names = [name for name in files_of(out) if "/" not in name or name.endswith("unet/config.json")]
    assert len(names) > (20 if pictures else 9)
    print(f"\none bit flipped in each of {len(names)} files")
    for name in names:
        content = bytearray((out / name).read_bytes())
        content[len(content) // 2] ^= 4
        (out / name).write_bytes(content)
        progress = Silent()
        run_once(config, out, progress)
        assert any(name in note for note in progress.notes), f"{name}: {progress.notes}"
        if name == "README.md":  # what somebody wrote into it is not lost: it is kept until it is deleted
            assert (out / name).read_bytes() == content and any("README.md was edited" in note for note in progress.notes)
            (out / name).unlink()
            run_once(config, out)
        assert essence(out) == whole, name
        assert read_json(out / "run.json")["config"]["concept"] == "dog"


def test_run_json_has_the_hash_and_the_sources_of_every_file(values: Values, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_once(values, out)
    record = read_json(out / "run.json")
    stages = record["stages"]
    named = {name for stage in stages.values() for name in stage["files"]} | {"config.yaml", "run.json"}
    assert named == {path.name for path in out.iterdir()}
    base = {"base": model_hash(values["model"])}
    assert stages["generate"]["sources"] == base
    assert stages["saliency"]["sources"] == base | stages["generate"]["files"]
    assert stages["train"]["sources"] == base | stages["generate"]["files"] | stages["saliency"]["files"]
    assert stages["export"]["sources"] == base | stages["train"]["files"]
    assert stages["evaluate"]["sources"] == base | stages["saliency"]["files"] | stages["export"]["files"]
    assert stages["report"]["sources"] == base | stages["evaluate"]["files"] | stages["train"]["files"]


def test_a_damaged_patch_or_model_of_a_run_is_not_used(values: Values, tmp_path: Path) -> None:
    """By the commands that read a run: apply, export, eval."""
    run_once(values, tmp_path / "run")
    for name in ("patch.safetensors", "model/unet/diffusion_pytorch_model.safetensors"):
        path = tmp_path / "run" / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    out = str(tmp_path / "out")
    for arguments, name in (
        (["apply", str(tmp_path / "run/patch.safetensors"), "--to", values["model"], "--out", out], "patch.safetensors"),
        (["export", str(tmp_path / "run"), "--to", "patch", "--out", f"{out}.safetensors"], "patch.safetensors"),
        (["export", str(tmp_path / "run"), "--to", "diffusers", "--out", out], "model/unet/diffusion_pytorch_model"),
        (["eval", str(tmp_path / "run"), "--out", out], "model/unet/diffusion_pytorch_model"),
    ):
        assert ended(command(arguments, tmp_path / "errors")) == 2
        text = (tmp_path / "errors").read_text()
        assert name in text and "is not what its run wrote" in text and text.count("\n") == 1, text
        assert not Path(out).exists()


def test_another_config_is_refused_with_the_difference_and_force_new_run_makes_another_folder(
    values: Values, reference: Values, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["--config", str(config_file(values, tmp_path / "run.yaml")), "--out", str(out)]
    assert ended(command(arguments, tmp_path / "errors")) == 0
    other = [*arguments, "--set", "train.steps=2"]
    assert ended(command(other, tmp_path / "errors")) == 2
    assert "(train.steps is 3 there and 2 here)" in (tmp_path / "errors").read_text()
    assert essence(out) == reference
    assert ended(command([*other, "--force-new-run"], tmp_path / "errors")) == 0
    assert (tmp_path / "run-2" / "report.html").is_file() and essence(out) == reference
    before = essence(tmp_path / "run-2")
    assert ended(command([*other, "--force-new-run"], tmp_path / "errors")) == 0
    assert not (tmp_path / "run-3").exists() and essence(tmp_path / "run-2") == before, "the same command goes on there"
    assert ended(command([*arguments, "--set", "seed=5", "--force-new-run"], tmp_path / "errors")) == 0
    assert (tmp_path / "run-3" / "report.html").is_file()


def test_an_edited_config_file_does_not_hide_what_the_run_was(values: Values, tmp_path: Path) -> None:
    """Config and command changed alike: the record in run.json still knows."""
    run_once(values, tmp_path / "run")
    text = (tmp_path / "run/config.yaml").read_text()
    write_text(text.replace("steps: 3", "steps: 2"), tmp_path / "run/config.yaml")
    with pytest.raises(ValueError, match=r"train\.steps is 3 there and 2 here"):
        run_once(values | {"train": values["train"] | {"steps": 2}}, tmp_path / "run")


def test_what_a_kill_left_is_cleared_and_what_is_the_users_is_not(values: Values, reference: Values, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_once(values, out)
    for name in (".mask.safetensors.a1b2c3d4", ".model.zzzz____/unet/x", "pictures/base/.00001.png.4711"):
        write_text("half", out / name)
    write_text("mine", out / ".notes.txt")
    run_once(values, out)
    assert {name for name in files_of(out) if "/." in name or name.startswith(".")} == {".notes.txt"}
    shutil.rmtree(out / "pictures")
    (out / ".notes.txt").unlink()
    assert essence(out) == reference


def test_a_pickle_in_a_runs_folder_is_never_loaded(values: Values, reference: Values, tmp_path: Path) -> None:
    """Beside the state that a stopped training goes on from, and wherever else the run looks."""
    out, mark = tmp_path / "run", tmp_path / "code has run"
    family = loaded(values["model"])

    def stopped() -> None:
        progress = Silent(lambda stage: os.kill(os.getpid(), signal.SIGKILL) if stage == "export" else None)
        config = RunConfig.model_validate(values)
        execute(plan(config, family), family, out, progress, model_hash(config.model))

    assert ended(forked(stopped)) == -signal.SIGKILL
    (out / "patch.safetensors").unlink()  # so that training begins again, with whatever lies there as its state
    names = ["state/optimizer.bin", "state/random_states_0.pkl", "data.bin", "mask.pt", "patch.pt", "model/unet/model.bin"]
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(pickle.dumps(Touch(mark)))
    run_once(values, out)
    assert not mark.exists()
    found = essence(out)
    assert {name: found[name] for name in reference} == reference
    assert set(found) - set(reference) <= set(names)
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists(), "the payload works"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_the_model_in_memory_is_the_base_again_whatever_was_left_to_do(values: Values, tmp_path: Path) -> None:
    """After a whole run, after the same with nothing left to do, and after one that ended in the midst: what comes next in the
    same process begins from the base, not from an erased model."""
    config, family = RunConfig.model_validate(values), loaded(values["model"])
    planned, base = plan(config, family), model_hash(config.model)
    before = {name: parameter.detach().clone() for name, parameter in family.denoiser.named_parameters()}

    def fail(stage: str) -> None:
        if stage == "evaluate":
            raise RuntimeError(stage)

    def changed() -> list[str]:
        return [name for name, parameter in family.denoiser.named_parameters() if not torch.equal(parameter, before[name])]

    for stages in ([*STAGES], []):
        reached: list[str] = []
        execute(planned, family, tmp_path / "run", Silent(reached.append), base)
        assert reached == stages and not changed()
    with pytest.raises(RuntimeError, match="evaluate"):
        execute(planned, family, tmp_path / "other", Silent(fail), base)
    assert not changed()
