"""The record of a model retrained without a concept, the yardstick of the tables, from its run's folder.

    erase --concept dog --method retrain --out retrained/dog        # hours
    python -m benchmarks.retrained retrained/dog

Its figures beside the base's, how it was trained and for how long go to benchmarks/results/retrained/NAME.json, its sample
grid (every object in every style) to docs/retrained/NAME.webp. The weights (22 MB) are not kept: the first line makes them.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from benchmarks.environment import environment
from erase.files import write_json

ROOT = Path(__file__).parent.parent
KEPT = ("concept", "kind", "base_sha256", "seed", "base", "erased", "collapse", "detector")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of `erase --method retrain`")
    run: Path = parser.parse_args().run
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    training = json.loads((run / "model" / "training.json").read_text(encoding="utf-8"))
    training["last_loss"] = training.pop("log")["unet"][-1]
    record = {key: results[key] for key in KEPT} | {"training": training, "environment": environment()}
    write_json(record, ROOT / "benchmarks" / "results" / "retrained" / f"{run.name}.json")
    grid = ROOT / "docs" / "retrained" / f"{run.name}.webp"
    grid.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(run / "model" / "grid.png") as picture:
        picture.convert("RGB").save(grid, "WEBP", quality=80, method=6)
    print(json.dumps({"grid": str(grid), **{key: record["erased"][key] for key in ("forget_accuracy", "ira", "cra")}}))


if __name__ == "__main__":
    main()
