"""Which tables of the methods there are, and which of a bench's cells each of them counts: see benchmarks.methods_table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from erase.benching.cells import TABLE_CONCEPTS, Cell
from erase.benching.run import chosen_methods
from erase.benching.table import MODELS, label_of

SEEDS = range(3)
ABLATED = (
    "method.retain=denoise",
    "method.retain=denoise+method.teacher=moving",
    "method.retain=denoise+method.negative_guidance=0",
    "method.retain=denoise+method.negative_guidance=0+method.teacher=moving",
    "method.anchor_share=0",
    "method.negative_guidance=0",
    "method.empty_prompt_share=0",
    "method.relabel=random_label",
    "method.anchor=none",
    "method.balance=nash",
    "method.timesteps=importance",
    "method.adversarial_radius=0.2",
    "method.unnamed_share=0.5",
    "train.keep=best",
    "data.num_retain=288",
)
SHORT = "train.steps=60"
"""What the parts are changed at: half of an object's steps and a third of a style's, for the time."""

Row = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One of the tables: what it is called, on what, and which rows it has."""

    title: str
    about: str
    concepts: tuple[str, ...]
    lines: tuple[tuple[str, float | None], ...]
    """Method and mask of each line."""
    sheets: bool = False
    """Whether its concepts' sheets of pictures are shown."""

    def cells(self) -> list[Cell]:
        """Every cell that it may have."""
        return [Cell(concept, *line, seed) for seed in SEEDS for concept in self.concepts for line in self.lines]


TABLES = {
    "default": Table(
        "The default against the paper's loss",
        "the seven objects and five styles of the table; dog, line art and neon were looked at while the recipe was made, the "
        "other six and three are held out. `paper`: the loss as published, with the steps and the rate that were best of seven "
        "points on the pilot concepts cat and sticker; the default was tuned at greater length",
        TABLE_CONCEPTS,
        (("salun", 0.5), ("paper", 0.5)),
    ),
    "all": Table(
        "Every method, with and without the mask",
        "one object and one style. Our recipe was tuned at length on the pilot concepts; the others had two to nine points "
        "each on cat, `paper` on sticker too",
        ("dog", "neon"),
        tuple((method, mask) for method in chosen_methods(None) for mask in (0.5, None)),
        sheets=True,
    ),
    "ablation": Table(
        "The default with one part changed",
        f"one object and one style of the pilot: what is chosen here is judged on others. The parts are changed at `{SHORT}`, "
        "half of an object's steps and a third of a style's, for the time; whether they act alike at the full length is not "
        "measured",
        ("cat", "sticker"),
        (
            ("salun", 0.5),
            *((f"salun+{SHORT}", density) for density in (0.5, 0.1, 0.3, 1.0)),
            *((f"salun+{SHORT}+{setting}", 0.5) for setting in ABLATED),
        ),
    ),
}


def common(rows: Iterable[Row]) -> list[Row]:
    """The rows whose concept and seed every method and mask among them has; of base and retrain those of such a concept.

    A seed that only some of the concepts have is left out where another has them all: a mean over seeds gives each seed the
    same weight, however few concepts it is made of.
    """
    rows = list(rows)
    models = [row for row in rows if row["method"] in MODELS]
    cells = [row for row in rows if row not in models]
    have: dict[tuple[str, float | None], set[tuple[str, int]]] = {}
    for row in cells:
        have.setdefault((row["method"], row["density"]), set()).add((row["concept"], row["seed"]))
    shared = set.intersection(*have.values()) if have else set()
    concepts = {concept for concept, _ in shared}
    whole = {seed for _, seed in shared if all((concept, seed) in shared for concept in concepts)}
    kept = [row for row in cells if (row["concept"], row["seed"]) in shared and (not whole or row["seed"] in whole)]
    return [*(row for row in models if row["concept"] in concepts), *kept]


def absent(table: Table, rows: list[Row]) -> list[str]:
    """What of a table was not run yet, in a few words each: concepts, methods with a mask, seeds, attacks."""
    cells = [row for row in rows if row["method"] not in MODELS]
    have = {(row["method"], row["density"]) for row in cells}
    concepts = [concept for concept in table.concepts if concept not in {row["concept"] for row in cells}]
    seeds = [str(seed) for seed in SEEDS if seed not in {row["seed"] for row in cells}]
    left = [", ".join(concepts)] if concepts else []
    left += [label_of({"method": method, "density": mask}) for method, mask in table.lines if (method, mask) not in have]
    left += [f"seed{'s' * (len(seeds) > 1)} {listed(seeds)}"] if seeds else []
    left += ["attacks on these cells"] if cells and not any("attacked" in row for row in cells) else []
    return left


def listed(names: list[str]) -> str:
    """The names as English lists them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
