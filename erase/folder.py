"""A run's folder: its config, its record of stages with the hash of every file, and which of them need no work."""

import contextlib
import itertools
import logging
import platform
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml

from erase import __version__
from erase.config import LoadConfig, RunConfig, validate
from erase.files import hash_of, is_unfinished, members, remove_unfinished, sha256, write_json, write_text
from erase.reading import read_json, read_yaml

logger = logging.getLogger(__name__)

SAME_RESULT = ("data.batch_size", "evaluation.batch_size", "load.device", "load.cache_dir")
"""Settings of speed, memory and place: they may differ when a run goes on."""
UNTIL_DONE = {"saliency.batch_size": "saliency", "train.accumulate": "train", "train.gradient_checkpointing": "train"}
"""Settings of memory that may change a stage's result a little: they may differ until that stage is finished."""


class Folder:
    """A run's folder: its record in run.json, and which stages need no work. To be opened by who holds its lock."""

    def __init__(self, path: Path, config: RunConfig, note: Callable[[str], None] = logger.warning) -> None:
        self.path = path
        self.config = config.model_dump(mode="json")
        require_own(path, config)
        record = _record(path)
        if record is None and (path / "run.json").exists():
            note(f"{path / 'run.json'} is damaged: every stage is repeated")
        self.stages: dict[str, Any] = (record or {}).get("stages", {})
        remove_unfinished(path)
        self._write_config(config, (record or {}).get("config_sha256"), note)
        if record and "config" in record and _differences(record["config"], self.config):  # in what may differ
            self._write_record()

    def _write_config(self, config: RunConfig, digest: str | None, note: Callable[[str], None]) -> None:
        file = self.path / "config.yaml"
        text = _yaml_with_comments(config) + yaml.safe_dump({"versions": versions()})
        if not file.is_file() or file.read_bytes() != text.encode():
            if digest and (not file.is_file() or sha256(file) != digest):
                note("config.yaml is not what was written (its hash differs): it is written again")
            write_text(text, file)

    def fresh(self, stage: str, inputs: str, note: Callable[[str], None]) -> bool:
        """Whether the stage was done with these inputs and its files are as they were; says so when one is not."""
        entry = self.stages.get(stage)
        if not entry or entry["inputs"] != inputs:
            return False
        for name, digest in entry["files"].items():
            path = self.path / name
            if not path.exists():
                note(f"{name} is missing: {stage} is repeated")
                return False
            if sha256(path) != digest:
                culprit = _changed(path, name, entry.get("members", {}).get(name, {}))
                note(f"{culprit} is not what was written (its hash differs): {stage} is repeated")
                return False
        return True

    def done(self, stage: str, inputs: str, files: list[str], seconds: float, sources: dict[str, str]) -> dict[str, Any]:
        """Record a finished stage with the hashes of its files and of what they were made from; all that is recorded."""
        entry: dict[str, Any] = {"inputs": inputs, "sources": sources, "files": {}, "seconds": round(seconds, 2)}
        for name in files:
            entry["files"][name] = sha256(self.path / name)
            if (self.path / name).is_dir():
                entry.setdefault("members", {})[name] = members(self.path / name)
        self.stages[stage] = entry
        self._write_record()
        return self.stages

    def _write_record(self) -> None:
        record = {"config": self.config, "config_sha256": sha256(self.path / "config.yaml"), "stages": self.stages}
        write_json({**record, "sha256": hash_of(record)}, self.path / "run.json")


def versions() -> dict[str, str]:
    """The versions that a run's files depend on."""
    return {
        "erase": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def _changed(path: Path, name: str, known: dict[str, str]) -> str:
    """The file that differs: the path's own name, or that of the first member of a folder that does."""
    if not known or not path.is_dir():
        return name
    now = members(path)
    return f"{name}/{next(member for member in sorted({**known, **now}) if known.get(member) != now.get(member))}"


def _record(path: Path) -> dict[str, Any] | None:
    """What run.json holds; None if there is none or it is not what was written."""
    try:
        record = read_json(path / "run.json")
        digest = record.pop("sha256", None)
        stages = record["stages"].values()
        sound = digest in (None, hash_of(record)) and all(
            isinstance(entry["files"], dict) and "inputs" in entry for entry in stages
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if sound else None


def config_of(run: Path) -> RunConfig:
    """What the config of the run in a folder says of its concepts, its base, and how that is loaded and drawn with.

    All else is left at its default, so that a run of another version, with other settings of training, can be read. Raises
    ValueError for a config that is not valid.
    """
    values, wanted = read_yaml(run / "config.yaml"), ("concept", "model", "load", "evaluation")
    try:
        return validate({key: values[key] for key in wanted if key in values})
    except ValueError as error:
        raise ValueError(f"{run / 'config.yaml'} is not a valid run config: {error}") from error


def load_of(folders: Iterable[Path], model: str, given: LoadConfig | None = None) -> LoadConfig:
    """How to load a model for its weights: in float32, as the first run in these folders whose base it is loaded it.

    What `given` sets goes before; the device that the run worked on is no matter.
    """
    load = LoadConfig()
    for folder in folders:
        if (folder / "config.yaml").is_file() and is_run(folder) and (config := config_of(folder)).model == model:
            load = config.load.model_copy(update={"device": "auto"})
            break
    changes = given.model_dump(exclude_unset=True) if given else {}
    return load.model_copy(update=changes | {"dtype": "float32"})


def changes_of(path: Path, config: RunConfig) -> list[str]:
    """In what the config of the run in a folder differs; nothing if there is no run, or if the run can go on with this one.

    Raises ValueError for a folder that is no run's.
    """
    record = _record(path) or {}
    file = path / "config.yaml"
    if "config" in record:
        there = record["config"]
    elif file.is_file():
        try:
            there = read_yaml(file)
        except ValueError as error:
            raise ValueError(f"{file} is damaged; delete the folder or give another --out.") from error
    elif path.is_dir() and any(child.name != ".lock" and not is_unfinished(child) for child in path.iterdir()):
        raise ValueError(f"{path} is not empty and not a run; give another --out.")
    else:
        return []
    there = {key: value for key, value in there.items() if key != "versions"}
    done = record.get("stages", {})
    free = {*SAME_RESULT, *(key for key, stage in UNTIL_DONE.items() if stage not in done)}
    return _differences(there, config.model_dump(mode="json"), free=free)


def require_own(path: Path, config: RunConfig) -> None:
    """Raise ValueError if the folder holds a run of another config, or is no run's."""
    if changes := changes_of(path, config):
        raise ValueError(
            f"{path} holds a run with another config ({'; '.join(changes[:4])}); "
            "give another --out, delete that folder, or use --force-new-run for a new folder beside it."
        )


def require_recorded_base(run: Path, model: str, found: str, instead: str = "or give it with --baseline") -> None:
    """Raise ValueError if the model that a run names as its base, whose hash is `found`, is not the one it was made from."""
    if (recorded := recorded_base(run)) not in ("", found):
        raise ValueError(
            f"{model} has changed since the run in {run} was made (its hash is {found[:12]}, the run's base had "
            f"{recorded[:12]}): put that base back, {instead}."
        )


def recorded_base(run: Path) -> str:
    """The hash of the base that a run's stages were made from; empty where none is recorded."""
    stages = (_record(run) or {}).get("stages", {})
    return next((str(entry["sources"]["base"]) for entry in stages.values() if entry.get("sources", {}).get("base")), "")


def free_folder(out: Path, config: RunConfig) -> Path:
    """`out`, `out`-2, `out`-3 ...: the first that is new, or holds a run that this config goes on with."""
    for number in itertools.count(1):
        path = out if number == 1 else out.with_name(f"{out.name}-{number}")
        with contextlib.suppress(ValueError):  # somebody's folder, or a damaged one: the next
            if not path.is_file() and not changes_of(path, config):
                return path
    raise AssertionError


PRODUCTS = ("model", "mask.safetensors", "patch.safetensors")


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, whole or not, and no model's."""
    return any((path / name).is_file() for name in ("run.json", "config.yaml")) and not (path / "model_index.json").is_file()


def model_of(name: str) -> str:
    """The model of a run's folder, or the model of that name."""
    path = Path(name)
    if not is_run(path):
        return name
    if not (path / "model" / "model_index.json").is_file():
        raise ValueError(f"{name} is a run without a model yet: run the same `erase --concept` command again to finish it.")
    return str(path / "model")


def require_intact(path: Path) -> None:
    """Raise ValueError if the file or folder is not what the run whose folder it lies in has written; others pass."""
    if fault := fault_of(path):
        itself = f", or give {path} itself, as any model" if path.is_dir() and _record(path.parent) is None else ""
        raise ValueError(f"{fault}: run the run's command again to recreate it{itself}.")


def fault_of(path: Path) -> str:
    """Why a file or folder does not count as what the run in whose folder it lies wrote; empty if it does, or lies in none."""
    run = path.parent
    there, record = (run / "run.json").exists(), _record(run)
    if record is None:
        why = f"{run / 'run.json'}, which tells what the run wrote, is {'damaged' if there else 'not there'}"
        known = there or ((run / "config.yaml").is_file() and (run / "model").is_dir())
        return why if known and path.exists() else ""
    if path.name == "config.yaml" and path.is_file() and isinstance(record.get("config"), dict):
        now = {key: value for key, value in read_yaml(path).items() if key != "versions"}
        changes = _differences(record["config"], now)
        return f"{path} is not what its run wrote ({'; '.join(changes[:4])})" if changes else ""
    entries = [entry for entry in record["stages"].values() if path.name in entry["files"]]
    for entry in entries if path.exists() else ():
        if sha256(path) != entry["files"][path.name]:
            culprit = run / _changed(path, path.name, entry.get("members", {}).get(path.name, {}))
            return f"{culprit} is not what its run wrote (its hash differs from run.json)"
    is_strange = path.name in PRODUCTS and path.exists() and not entries
    return f"{path} is not what its run wrote (run.json does not name it)" if is_strange else ""


def _differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "", free: Collection[str] = ()) -> list[str]:
    """Which settings differ, a clause each, but for those that are `free` to."""
    changes = []
    for key in {**there, **now}:
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += _differences(a, b, f"{prefix}{key}.", free)
        elif a != b and f"{prefix}{key}" not in free:
            changes.append(f"{prefix}{key} is {a!r} there and {b!r} here")
    return changes


def _yaml_with_comments(config: Any, indent: str = "") -> str:
    lines = []
    for name, info in type(config).model_fields.items():
        value, plain = getattr(config, name), config.model_dump(mode="json", include={name})
        if not plain:  # a later setting that is not set
            continue
        lines.append(f"{indent}# {' '.join((info.description or '').split())}\n")
        if hasattr(type(value), "model_fields"):
            lines.append(f"{indent}{name}:\n{_yaml_with_comments(value, indent + '  ')}")
        else:
            lines.append("".join(f"{indent}{line}\n" for line in yaml.safe_dump(plain, allow_unicode=True).splitlines()))
    return "".join(lines)
