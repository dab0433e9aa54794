"""The README's picture from a run's folder: `python -m benchmarks.before_after runs/dog docs/before-after.png`.

Each cell is a pair, base left and erased right. First row: prompts for the concept; then everything else, at equal distances.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from eval.previews import evenly_spaced

COLUMNS, GAP, SCALE = 8, 6, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    pictures = arguments.run / "pictures"
    rows = [json.loads(line) for line in (pictures / "base" / "manifest.jsonl").read_text().splitlines()]
    split = json.loads((arguments.run / "results.json").read_text())["base"]["intervals"]["forget"]["n"]
    cells = evenly_spaced(rows[:split], 2 * COLUMNS) + evenly_spaced(rows[split:], 4 * COLUMNS)
    with Image.open(pictures / "base" / rows[0]["file"]) as first:
        side = first.width * SCALE
    width, height = 2 * side + GAP, side + GAP
    sheet = Image.new("RGB", (COLUMNS * width + (COLUMNS - 1) * GAP, -(-len(cells) // COLUMNS) * height), "white")
    for k, row in enumerate(cells):
        for j, name in enumerate(("base", "erased")):
            with Image.open(pictures / name / row["file"]) as picture:
                large = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(large, (k % COLUMNS * (width + GAP) + j * (side + 1), k // COLUMNS * height))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.out, optimize=True)
    print(f"{arguments.out}: {len(cells)} pairs")


if __name__ == "__main__":
    main()
