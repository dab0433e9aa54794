"""How far apart the embedded model's styles are: the drawings of the same object, as latents.

    python -m benchmarks.likeness

The root mean square difference of the latents of one drawing per object at the same scale and place, a mean over the objects.
A style's ground is part of its pictures, and most of the distance: to make one of the other, it must be repainted, too. What a
style is remapped to unless an anchor is named is the nearest by this (pipelines.emoji.vocabulary.NEAREST_STYLES). Needs the
drawings (`python -m pipelines.emoji.prepare`); the record goes to results/likeness.json.
"""

import json
from pathlib import Path

import torch

from benchmarks.environment import environment
from erase.files import write_json
from pipelines.emoji.prepare import DATA
from pipelines.emoji.render import Drawings
from pipelines.emoji.vocabulary import OBJECTS, STYLES
from pipelines.load import load

RESULTS = Path(__file__).parent / "results" / "likeness.json"


def main() -> None:
    family, drawings = load("emoji"), Drawings(DATA / "sprites.npz")
    of_cell = {
        (label, style): next(
            k for k in drawings.known.tolist() if (int(drawings.label[k]), int(drawings.style[k])) == (label, style)
        )
        for label in range(len(OBJECTS))
        for style in range(len(STYLES))
    }
    index = torch.tensor(list(of_cell.values()))
    pictures = torch.cat([drawings.render(row[None], torch.Generator().manual_seed(0)) for row in index])
    latents = family.encode_images(pictures).unflatten(0, (len(OBJECTS), len(STYLES)))
    distances = (latents[:, :, None] - latents[:, None]).square().flatten(3).mean(3).sqrt().mean(0)
    table = {
        one: {other: round(float(distances[a, b]), 3) for b, other in enumerate(STYLES) if b != a}
        for a, one in enumerate(STYLES)
    }
    nearest = {name: sorted(row, key=lambda other: row[other]) for name, row in table.items()}
    write_json({"distance": table, "nearest": nearest, "environment": environment()}, RESULTS)
    print(json.dumps(nearest))


if __name__ == "__main__":
    main()
