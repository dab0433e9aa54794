"""What the page may open: the models and runs named at start, and the runs in one folder. Nothing else is ever read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Catalog:
    """Names on the page and what they stand for."""

    models: dict[str, str]
    """Name -> what `pipelines.load.load` takes."""
    named: dict[str, Path]
    """Runs named at start."""
    folder: Path
    """Where runs are looked for, and where the page's own go."""

    def runs(self) -> dict[str, Path]:
        """Every run with a patch: those named at start, then those in the folder, the newest first."""
        found = dict(self.named)
        inside = self.folder.resolve()
        children = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        for path in sorted(children, key=_changed, reverse=True):
            # a link that leads out of the folder is not followed
            if (path / "patch.safetensors").is_file() and path.resolve().is_relative_to(inside):
                found.setdefault(path.name, path)
        return found

    def run(self, name: Any) -> Path:
        """The run of that name; raises ValueError for any other text, paths included."""
        runs = self.runs()
        if not isinstance(name, str) or name not in runs:
            known = ", ".join(list(runs)[:6]) or "none yet; the Erase tab makes one"
            raise ValueError(f"There is no run “{str(name)[:80]}” here (known: {known}).")
        return runs[name]

    def model(self, name: Any) -> str:
        """What that model's name stands for; raises ValueError for any other text, paths included."""
        if not isinstance(name, str) or name not in self.models:
            raise ValueError(f"There is no model “{str(name)[:80]}” here (known: {', '.join(self.models)}).")
        return self.models[name]


def catalog(names: Sequence[str], folder: Path) -> Catalog:
    """The catalog of what was named at start; with no model among it, the runs' own bases, or the embedded model."""
    models: dict[str, str] = {}
    named: dict[str, Path] = {}
    for name in names:
        path = Path(name)
        if (path / "run.json").is_file():
            if not (path / "patch.safetensors").is_file():
                raise ValueError(f"{name} is a run that is not finished: run its command again first.")
            named[_fresh(path.resolve().name, named)] = path
        else:
            models[_fresh(path.name if path.exists() else name, models)] = name
    bases = [str(base_of(path)) for path in named.values()] if not models else []
    for base in dict.fromkeys(bases):
        models[_fresh(Path(base).name if Path(base).exists() else base, models)] = base
    return Catalog(models or {"emoji": "emoji"}, named, folder)


def _changed(path: Path) -> float:
    """When the folder was changed last; 0 if it was taken away since it was seen."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _fresh(name: str, taken: dict[str, Any]) -> str:
    """The name, numbered where it is taken."""
    number, wanted = 1, name
    while name in taken:
        number += 1
        name = f"{wanted} ({number})"
    return name


def base_of(run: Path) -> Any:
    """The model that a run was made from, as its config says."""
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]


def results_of(run: Path) -> dict[str, Any] | None:
    """The run's results.json, or None if it was not evaluated."""
    path = run / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def records_of(run: Path) -> list[dict[str, Any]]:
    """The run's training records."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
