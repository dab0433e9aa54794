"""What the page may open: the models and runs named at start, and the runs in one folder. Nothing else is ever read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase.reading import parse_json, read_json, read_yaml


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
        return {name: path for name, path in self._places().items() if _has_patch(path)}

    def finished(self) -> dict[str, Path]:
        """The runs with a patch, and those that made a new model in its place, which can be looked at and not dialled."""
        return {name: path for name, path in self._places().items() if _has_patch(path) or _is_remade(path)}

    def _places(self) -> dict[str, Path]:
        found = dict(self.named)
        inside = self.folder.resolve()
        children = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        for path in sorted(children, key=_changed, reverse=True):
            if path.resolve().is_relative_to(inside):  # a link that leads out of the folder is not followed
                found.setdefault(path.name, path)
        return found

    def run(self, name: Any) -> Path:
        """The run of that name with a patch; raises ValueError for any other text, paths included."""
        return _chosen(self.runs(), name)

    def look(self, name: Any) -> Path:
        """The finished run of that name; raises ValueError for any other text, paths included."""
        return _chosen(self.finished(), name)

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
            if not _has_patch(path):
                from erase.export import require_finished

                require_finished(path)
            named[_fresh(path.resolve().name, named)] = path
        else:
            models[_fresh(path.name if path.exists() else name, models)] = name
    bases = [str(base_of(path)) for path in named.values()] if not models else []
    for base in dict.fromkeys(bases):
        models[_fresh(Path(base).name if Path(base).exists() else base, models)] = base
    return Catalog(models or {"emoji": "emoji"}, named, folder)


def _chosen(runs: dict[str, Path], name: Any) -> Path:
    if not isinstance(name, str) or name not in runs:
        known = ", ".join(list(runs)[:6]) or "none yet; the Erase tab makes one"
        raise ValueError(f"There is no run “{str(name)[:80]}” here (known: {known}).")
    return runs[name]


def _has_patch(path: Path) -> bool:
    return (path / "patch.safetensors").is_file()


def _is_remade(path: Path) -> bool:
    """Whether a run without a patch is finished all the same: its method made a new model."""
    from erase.export import require_finished

    try:
        return not require_finished(path)
    except ValueError:
        return False


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


def base_of(run: Path) -> str:
    """The model that a run was made from, as its config says; raises ValueError that names a config which says none."""
    model = read_yaml(run / "config.yaml").get("model")
    if not isinstance(model, str):
        raise ValueError(f"{run / 'config.yaml'} is damaged: it names no model. Run its command again.")
    return model


def results_of(run: Path) -> dict[str, Any] | None:
    """The run's results.json, or None if it was not evaluated; raises ValueError that names a damaged one."""
    path = run / "results.json"
    return read_json(path) if path.is_file() else None


def records_of(run: Path) -> list[dict[str, Any]]:
    """The run's training records; raises ValueError that names a damaged file."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    try:
        return [parse_json(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
