"""A run's folder: its config, its record of stages with the hash of every file, and which of them need no work."""

import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml

from erase import __version__
from erase.config import RunConfig
from erase.files import sha256, write_json, write_text

logger = logging.getLogger(__name__)


class Folder:
    """A run's folder: its record in run.json, and which stages need no work."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / ".writable").touch()
            (path / ".writable").unlink()
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}.") from error
        self._check_config(config)
        record = path / "run.json"
        try:
            self.stages: dict[str, Any] = json.loads(record.read_text())["stages"] if record.is_file() else {}
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged: every stage is made again.", record)
            self.stages = {}

    def _check_config(self, config: RunConfig) -> None:
        file = self.path / "config.yaml"
        now = config.model_dump(mode="json")
        if file.is_file():
            try:
                there = yaml.safe_load(file.read_text()) or {}
            except yaml.YAMLError as error:
                raise ValueError(f"{file} is damaged; delete the folder or give another --out.") from error
            changes = _differences({k: v for k, v in there.items() if k != "versions"}, now)
            if changes:
                raise ValueError(
                    f"{self.path} holds a run with another config ({'; '.join(changes[:4])}); "
                    "give another --out, or delete that folder."
                )
        elif any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and not a run; give another --out.")
        versions = {
            "erase": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }
        write_text(_yaml_with_comments(config) + yaml.safe_dump({"versions": versions}), file)

    def fresh(self, stage: str, inputs: str, note: Callable[[str], None]) -> bool:
        """Whether the stage was done with these inputs and its files are as they were; says so when one is not."""
        entry = self.stages.get(stage)
        if not entry or entry["inputs"] != inputs:
            return False
        for name, digest in entry["files"].items():
            path = self.path / name
            if not path.exists():
                note(f"{name} is gone: {stage} is done again")
                return False
            if sha256(path) != digest:
                note(f"{name} is not what was written (its hash differs): {stage} is done again")
                return False
        return True

    def done(self, stage: str, inputs: str, files: list[str], seconds: float) -> dict[str, Any]:
        """Record a finished stage; all that is recorded."""
        hashes = {name: sha256(self.path / name) for name in files}
        self.stages[stage] = {"inputs": inputs, "files": hashes, "seconds": round(seconds, 2)}
        write_json({"stages": self.stages}, self.path / "run.json")
        return self.stages


def _differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    changes = []
    for key in {**there, **now}:
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key} is {a!r} there and {b!r} here")
    return changes


def _yaml_with_comments(config: Any, indent: str = "") -> str:
    lines = []
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        lines.append(f"{indent}# {' '.join((info.description or '').split())}\n")
        if hasattr(type(value), "model_fields"):
            lines.append(f"{indent}{name}:\n{_yaml_with_comments(value, indent + '  ')}")
        else:
            plain = config.model_dump(mode="json", include={name})
            lines.append("".join(f"{indent}{line}\n" for line in yaml.safe_dump(plain, allow_unicode=True).splitlines()))
    return "".join(lines)
