"""SISA training (Bourtoule et al., IEEE S&P 2021, "Machine Unlearning"): sharded, isolated, sliced, aggregated.

The rows fall at random into S shards of equal size, each with a model that sees no other shard. A shard's rows fall into R
slices; stage r goes on from the checkpoint of stage r - 1 with the slices up to r, for 2 e / (R + 1) epochs, so that all stages
together cost e epochs. A row is removed by going back to the checkpoint before its slice and training that shard on, without
it: what comes out is bit for bit what training that shard without the row gives. The models vote, or their means decide.

On disk: one file a checkpoint, named by the rows it has seen, and `sisa.json`, which names the files that count. A removal
writes new checkpoints beside the old, then replaces `sisa.json` in one step, then deletes what is no longer named. Whatever
moment a process is killed at, the folder holds the old model or the new one; what it left behind goes with the next removal
that is asked for. `fit` and `remove` lock the folder. `open` only reads, and changes nothing.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from erase import __version__
from erase.classification.learners import Learner, Model, State
from erase.classification.rows import Rows, class_labels, positions_to_remove
from erase.files import hash_of, sha256, write_json, write_safetensors
from erase.lock import locked
from erase.reading import check_safetensors, read_json

logger = logging.getLogger(__name__)

FORMAT = "erase-sisa-1"
MANIFEST = "sisa.json"


class SISAConfig(BaseModel):
    """How the rows are divided and trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    shards: int = Field(5, ge=1)
    """S: shards, each with a model of its own."""
    slices: int = Field(1, ge=1)
    """R: slices of a shard, each with a checkpoint."""
    epochs: int = Field(16, ge=1)
    """Passes over a shard's rows in all; with slices, rounded to whole epochs a stage."""
    seed: int = Field(0, ge=0)
    """Seed of the division, the initial weights and the order of the rows."""

    @property
    def stage_epochs(self) -> int:
        """Epochs of each stage, over the slices it sees: 2 e / (R + 1)."""
        return max(1, round(2 * self.epochs / (self.slices + 1)))


class Checkpoint(BaseModel):
    """A checkpoint's file: its name, in the model's own folder, and its hash."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^shard\d+-slice\d+-[0-9a-f]{16}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What `sisa.json` must hold; beside it stand `format`, `version` and, but for old ones, the learner's `settings`."""

    config: SISAConfig
    learner: str
    classes: list[int]
    rows: str
    provenance: dict[str, str]
    files: list[list[Checkpoint]]
    slices: list[list[list[int]]]
    settings: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _as_many_as_configured(self) -> Self:
        shards, slices = self.config.shards, self.config.slices
        for name, parts in (("files", self.files), ("slices", self.slices)):
            if len(parts) != shards or any(len(part) != slices for part in parts):
                raise ValueError(f"{name} are not those of {shards} shards of {slices} slices")
        return self


@dataclass(frozen=True)
class Cost:
    """What was trained: the shards, sample-steps (rows times epochs), and those of training every shard on all its rows."""

    shards: tuple[int, ...]
    sample_steps: int
    full_steps: int


def train_shard(
    learner: Learner,
    rows: Rows,
    sizes: list[int],
    first: int,
    before: State | None,
    classes: np.ndarray,
    epochs: int,
    key: list[int],
) -> tuple[list[State], Model | None]:
    """The states after stages `first` to the last, and the last model; rows lie in slices of these sizes; no rows, no model."""
    states: list[State] = []
    model: Model | None = None
    for stage in range(first, len(sizes)):
        seen = sum(sizes[: stage + 1])
        if seen:
            seed = int(np.random.SeedSequence([*key, stage]).generate_state(1)[0])
            model = learner.train(before, rows.take(np.arange(seen)), classes, epochs, seed)
            before = model.state()
        states.append(before or {})
    return states, model


class SISA:
    """A SISA model in a folder; `learner` says what a shard trains. Made by `fit`, found again by `open`."""

    def __init__(self, folder: Path, learner: Learner, config: SISAConfig | None = None, workers: int = 1) -> None:
        self.folder, self.learner, self.config, self.workers = folder, learner, config or SISAConfig(), workers
        self.classes = np.empty(0, np.int64)
        self.slices: list[list[list[int]]] = []  # ids by shard and slice
        self.files: list[list[dict[str, str]]] = []  # name and hash by shard and slice
        self.models: list[Model | None] = []

    def fit(self, rows: Rows, provenance: dict[str, str] | None = None) -> Cost:
        """Divide the rows and train every shard."""
        with locked(self.folder):
            if (self.folder / MANIFEST).exists():
                raise ValueError(f"{self.folder} already holds a model: give another folder, or remove rows from that one.")
            return self._fit(rows, provenance or {})

    def _fit(self, rows: Rows, provenance: dict[str, str]) -> Cost:
        config = self.config
        if config.slices > 1 and not self.learner.incremental:
            raise ValueError(f"{self.learner.name} cannot resume from a checkpoint: use slices=1 (slices is {config.slices}).")
        if len(rows) < config.shards * config.slices:
            raise ValueError(f"{len(rows)} rows do not fill {config.shards} shards of {config.slices} slices; use fewer.")
        classes = np.unique(class_labels(rows))
        self.rows, self.provenance = rows, provenance
        order = np.random.default_rng(config.seed).permutation(np.sort(rows.ids))
        self.slices = [
            [part.tolist() for part in np.array_split(shard, config.slices)] for shard in np.array_split(order, config.shards)
        ]
        self.files, self.models = [[] for _ in self.slices], [None for _ in self.slices]
        return self._train(self.slices, dict.fromkeys(range(config.shards), 0), rows, classes)

    def remove(self, ids: Sequence[int] | np.ndarray, provenance: dict[str, str] | None = None) -> Cost:
        """Train the touched shards on from before the first touched slice; on an error model and folder are as they were.

        Where a class has no row left, all shards are trained anew without it: their outputs would tell that it was there.
        Raises ValueError if another process changed the folder since it was opened. `provenance` replaces that of `fit`.
        """
        with locked(self.folder):
            if read_manifest(self.folder)["files"] != self.files:
                raise ValueError(f"{self.folder} was changed since it was opened: open it again, then remove.")
            self._remove_strays()
            return self._remove(ids, self.provenance | (provenance or {}))

    def _remove(self, ids: Sequence[int] | np.ndarray, provenance: dict[str, str]) -> Cost:
        rest = np.delete(np.arange(len(self.rows)), positions_to_remove(self.rows.ids, ids))
        rows, gone = self.rows.take(rest), set(np.asarray(ids).tolist())
        classes = np.unique(class_labels(rows))
        touched = {
            s: min(r for r, part in enumerate(shard) if gone & set(part))
            for s, shard in enumerate(self.slices)
            if any(gone & set(part) for part in shard)
        }
        if len(classes) < len(self.classes):
            touched = dict.fromkeys(range(len(self.slices)), 0)
        slices = [[[i for i in part if i not in gone] for part in shard] for shard in self.slices]
        before, self.provenance = self.provenance, provenance
        try:
            return self._train(slices, touched, rows, classes)
        except BaseException:
            self.provenance = before
            raise

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Those of every shard's model (S, n, C); raises ValueError for rows of another width."""
        if features.shape[1] != self.rows.features.shape[1]:
            raise ValueError(f"the rows have {features.shape[1]} features, the model {self.rows.features.shape[1]}.")
        return np.stack([model.probabilities(features) for model in self.models if model is not None])

    def predict(self, features: np.ndarray, vote: Literal["mean", "label"] = "mean") -> np.ndarray:
        """The class of largest mean probability, or of most votes; the lowest class of equals."""
        found = self.probabilities(features)
        if vote == "label":
            found = np.eye(len(self.classes))[found.argmax(2)]
        return self.classes[found.mean(0).argmax(1)]

    @classmethod
    def open(cls, folder: Path, learner: Learner, rows: Rows, workers: int = 1) -> Self:
        """The model in a folder with its rows, found by id; raises ValueError if a row or a file was changed."""
        manifest = read_manifest(folder)
        if manifest["learner"] != learner.name:
            raise ValueError(f"{folder} holds {manifest['learner']} models, not {learner.name}.")
        sisa = cls(folder, learner, SISAConfig(**manifest["config"]), workers)
        sisa.classes, sisa.slices = np.array(manifest["classes"]), manifest["slices"]
        sisa.files, sisa.provenance = manifest["files"], manifest["provenance"]
        sisa.rows = rows.with_ids(np.sort([i for shard in sisa.slices for part in shard for i in part]))
        if sisa.rows.digest() != manifest["rows"]:
            raise ValueError(
                f"the rows of {folder} are not those it was trained on: the data has changed since; train it again."
            )
        sisa._same_settings(manifest.get("settings"))
        for shard, files in zip(sisa.slices, sisa.files, strict=True):
            state = sisa._state(files[-1])
            try:
                model = learner.restore(state, sisa._shard_rows(sisa.rows, shard), sisa.classes) if state else None
            except (RuntimeError, LookupError, ValueError) as error:  # PyTorch's, for other tensors
                told = " ".join(str(error).split())
                raise ValueError(f"{folder / files[-1]['name']} is not a checkpoint of {learner.name}: {told}.") from error
            sisa.models.append(model)
        return sisa

    def _same_settings(self, known: dict[str, Any] | None) -> None:
        """Raise ValueError if the shards were trained with other settings: what is removed now would not be removed exactly."""
        mine = self.learner.settings(self.rows.features.shape[1], len(self.classes))
        if known is None:
            logger.warning(
                "%s is of an older version and does not say how its shards were trained; it is taken to be with %s.",
                self.folder,
                ", ".join(f"{name} {value}" for name, value in mine.items()),
            )
        elif other := [name for name in known.keys() | mine.keys() if known.get(name) != mine.get(name)]:
            name = min(other)
            raise ValueError(
                f"{self.folder} was trained with {name} {known.get(name)}, not {mine.get(name)}: give a learner of the same "
                "settings, or a removal would not be exact."
            )

    def _train(self, slices: list[list[list[int]]], first: dict[int, int], rows: Rows, classes: np.ndarray) -> Cost:
        """Train shards from their first stages on, write the checkpoints, then make them count."""
        epochs, jobs = self.config.stage_epochs, []
        for s, stage in first.items():
            shard_rows = self._shard_rows(rows, slices[s]) if any(slices[s]) else rows
            before = self._state(self.files[s][stage - 1]) if stage else None
            sizes = [len(part) for part in slices[s]]
            jobs.append((self.learner, shard_rows, sizes, stage, before or None, classes, epochs, [self.config.seed, s]))
        if self.workers > 1:
            with ProcessPoolExecutor(self.workers, get_context("spawn")) as pool:
                trained = list(pool.map(train_shard, *zip(*jobs, strict=True)))
        else:
            trained = [train_shard(*job) for job in jobs]
        files, models = list(self.files), list(self.models)
        for (s, stage), (states, model) in zip(first.items(), trained, strict=True):
            written = [self._write(rows, classes, s, r, slices[s], state) for r, state in enumerate(states, stage)]
            files[s], models[s] = files[s][:stage] + written, model
        self._commit(slices, files, rows, classes)
        self.slices, self.files, self.models, self.rows, self.classes = slices, files, models, rows, classes
        self._remove_strays()
        return Cost(
            tuple(first),
            epochs * sum(_seen(slices[s], r) for s, stage in first.items() for r in range(stage, len(slices[s]))),
            epochs * sum(_seen(shard, r) for shard in slices for r in range(len(shard))),
        )

    def _write(self, rows: Rows, classes: np.ndarray, s: int, r: int, shard: list[list[int]], state: State) -> dict[str, str]:
        seen = shard[: r + 1]
        digest = self._shard_rows(rows, seen).digest() if any(seen) else ""
        settings = self.learner.settings(rows.features.shape[1], len(classes))
        key = hash_of([self.config.model_dump(), self.learner.name, settings, classes.tolist(), s, seen, digest])
        path = self.folder / f"shard{s}-slice{r}-{key[:16]}.safetensors"
        write_safetensors(state, path, {"format": FORMAT, "version": __version__, "rows": digest} | self.provenance)
        return {"name": path.name, "sha256": sha256(path)}

    def _commit(
        self, slices: list[list[list[int]]], files: list[list[dict[str, str]]], rows: Rows, classes: np.ndarray
    ) -> None:
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "config": self.config.model_dump(),
            "learner": self.learner.name,
            "settings": self.learner.settings(rows.features.shape[1], len(classes)),
            "classes": classes.tolist(),
            "rows": rows.take(np.argsort(rows.ids)).digest(),
            "provenance": self.provenance,
            "files": files,
            "slices": slices,
        }
        write_json(manifest, self.folder / MANIFEST)

    def _remove_strays(self) -> None:
        named = {file["name"] for files in self.files for file in files}
        for pattern in ("shard*.safetensors", ".shard*.safetensors.*", f".{MANIFEST}.*"):
            for path in self.folder.glob(pattern):
                if path.name not in named:
                    path.unlink()

    def _state(self, file: dict[str, str]) -> State:
        path = self.folder / file["name"]
        if not path.is_file() or sha256(path) != file["sha256"]:
            raise ValueError(f"{path} is missing or was changed: the model can no longer be trusted; train it again.")
        try:
            check_safetensors(path)
            return load_file(path)
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{path} is not a checkpoint: {error}.") from error

    def _shard_rows(self, rows: Rows, shard: list[list[int]]) -> Rows:
        return rows.with_ids(np.array([i for part in shard for i in part]))


def _seen(shard: list[list[int]], stage: int) -> int:
    return sum(len(part) for part in shard[: stage + 1])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The folder's `sisa.json`; raises ValueError on anything else."""
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a SISA model: {error}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{folder} is not a SISA model: its {MANIFEST} does not say {FORMAT}.")
    try:
        Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{folder} is not a SISA model: in its {MANIFEST}, {told}.") from error
    return manifest


def expected_sequential(num_rows: int, shards: int, num_removed: int) -> float:
    """Rows trained on again for K removals one after another, on average (section 7): (N/S + 1/(2S) - 1) K - K^2 / (2S)."""
    return (num_rows / shards + 1 / (2 * shards) - 1) * num_removed - num_removed**2 / (2 * shards)


def expected_batch(num_rows: int, shards: int, num_removed: int) -> float:
    """Rows trained on again for K removals at once, on average: N (1 - (1 - 1/S)^K) - K."""
    return num_rows * (1 - (1 - 1 / shards) ** num_removed) - num_removed


def slicing_fraction(slices: int) -> float:
    """Share of a shard's sample-steps that a removal costs with R slices, on average: 2/3 + 1/(3R)."""
    return 2 / 3 + 1 / (3 * slices)
