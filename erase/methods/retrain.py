"""Retrain: the embedded model trained from scratch on the data without the concept; the yardstick that the others approximate.

Exact by construction, hours instead of minutes, and for the embedded model alone, whose data and training script are at hand
(`python -m pipelines.emoji.train --without dog`). It makes a new model, so that there is no mask and no patch.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from erase.files import write_text
from erase.methods.base import Config, Method

if TYPE_CHECKING:
    from erase.plan import Plan


class Retrain(Config):
    """Training from scratch without the concept."""

    name: Literal["retrain"] = "retrain"
    """The method's name."""
    data: str | None = None
    """The drawings that `python -m pipelines.emoji.prepare` wrote; none: where that puts them."""
    samples: int | None = Field(None, ge=32)
    """Samples the UNet is trained on; none: as many as the embedded model."""
    autoencoder: str | None = None
    """A folder with an autoencoder to take over; none: that, too, is trained without the concept."""
    processes: int = Field(2, ge=1)
    """Processes that share the training (on CPUs, two of one thread are faster than one of two)."""
    threads: int = Field(1, ge=1)
    """CPU threads of each process."""


def remake(config: Retrain, plan: "Plan", folder: Path) -> None:
    """Train into folder/model, going on from folder/state where it was stopped, and write the log to folder/metrics.jsonl.

    Raises ValueError for a concept or a model that this cannot be done for, or if the data are not there.
    """
    from pipelines.emoji.prepare import DATA

    without = left_out(plan)
    data = Path(config.data) if config.data else DATA / "sprites.npz"
    if plan.config.model != "emoji":
        raise ValueError(f"retrain is for the embedded model, whose training data are at hand, not for {plan.config.model}.")
    if not data.is_file():
        raise ValueError(f"retrain needs the drawings at {data}: run `python -m pipelines.emoji.prepare`, or give method.data.")
    state = folder / "state"
    (state / "model").mkdir(parents=True, exist_ok=True)  # the script puts its grid there before the model
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(config.processes)]
    command += ["-m", "pipelines.emoji.train", "--data", str(data), "--work", str(state), *without]
    command += ["--out", str(state / "model"), "--seed", str(plan.config.seed), "--threads", str(config.threads)]
    command += ["--samples", str(config.samples)] if config.samples else []
    command += ["--vae", config.autoencoder] if config.autoencoder else []
    environment = os.environ | {
        "OMP_NUM_THREADS": str(config.threads),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, stdout=sys.stderr, env=environment, check=False)
    if done.returncode:
        raise ValueError(f"the training ended with status {done.returncode}; give the same command again to go on.")
    training: dict[str, Any] = json.loads((state / "model" / "training.json").read_text(encoding="utf-8"))
    lines = [json.dumps({**row, "unet_loss": row["loss"]}) for row in training["log"]["unet"]]
    write_text("\n".join(lines) + "\n", folder / "metrics.jsonl")
    shutil.rmtree(folder / "model", ignore_errors=True)
    (state / "model").rename(folder / "model")


def left_out(plan: "Plan") -> list[str]:
    """The training script's options that leave the concepts out."""
    options = []
    for target in plan.targets:
        concept = target.concept
        if concept.kind not in ("object", "style"):
            raise ValueError(f"retrain leaves out a whole object or a whole style, and {concept.name!r} is neither.")
        options += ["--without", str(concept.object)] if concept.object else ["--without-style", str(concept.style)]
    return options


METHOD = Method(
    line="the embedded model trained from scratch without the concept (hours; no mask, no patch)",
    paper="exact unlearning, the yardstick of the tables",
    rows=None,
    loss=None,
    remake=remake,
)
