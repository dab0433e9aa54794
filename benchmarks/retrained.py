r"""Models retrained without a concept, the yardsticks of the tables: each is packed and recorded here, and unpacked for use.

    erase --concept neon --method retrain --seed 1 --set method.autoencoder=pipelines/emoji/weights/vae \
      --set method.processes=1 --set method.threads=1 --out runs/retrain-neon                           # hours
    python -m benchmarks.retrained runs/retrain-neon            # packs and records it; minutes
    python -m benchmarks.retrained --unpack [FOLDER]            # every packed model as FOLDER/NAME (none given: retrained/)

The weights go to benchmarks/yardsticks/NAME.safetensors, at most 12 MB; the sample grid (every object in every style) to
docs/retrained/NAME.webp; the record to benchmarks/results/retrained/NAME.json. In it, `base` and `erased` are the run's own
figures of the base and of the model as it was trained; `packed` has those of what `--unpack` writes, drawn and read anew.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.environment import environment
from benchmarks.packing import cost, pack, unpack
from erase.benching.cells import Bench
from erase.files import sha256, slug, write_json
from erase.quiet import quiet_libraries
from erase.reading import read_json, read_yaml
from erase.retrained import check_retrained
from erase.terminal import Bars

ROOT = Path(__file__).parent.parent
PACKED = ROOT / "benchmarks" / "yardsticks"
KEPT = ("concept", "kind", "base_sha256", "seed", "base", "erased", "collapse", "detector")
FIGURES = ("ua", "ira", "cra", "none_forget", "none_retained", "n_forget", "n_retained", "fd", "lpips", "ssim", "collapsed")


def record(run: Path, packed: Path) -> dict[str, Any]:
    """Pack a finished run's model; its record, with what packing cost and the unpacked model's figures beside the base's."""
    results, model = read_json(run / "results.json"), run / "model"
    training = read_json(model / "training.json")
    check_retrained(model, results["concept"])
    pack(model, results["concept"], packed)
    training["last_loss"] = training.pop("log")["unet"][-1]
    with tempfile.TemporaryDirectory() as name:
        unpacked = Path(name) / slug(results["concept"])
        unpack(packed, unpacked)
        figures = {"file": packed.name, "sha256": sha256(packed), **cost(model, unpacked, packed)}
        figures |= measured(results["concept"], unpacked, read_yaml(run / "config.yaml")["evaluation"])
    return {key: results[key] for key in KEPT} | {"training": training, "packed": figures, "environment": environment()}


def measured(concept: str, model: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The model's figures and the base's, by the table's own code on the run's prompts; the base's `fd` is the floor."""
    settings = tuple(f"evaluation.{key}={json.dumps(value)}" for key, value in evaluation.items())
    with tempfile.TemporaryDirectory() as out:
        bench = Bench(Path(out), settings, Bars())
        rows = {"base": bench.measure_base(concept), "model": bench.measure_retrained(concept, model)}
    return {side: {key: row[key] for key in FIGURES} for side, row in rows.items() if row} | {
        "missing": sorted(bench.tools.missing)
    }


def unpack_all(folder: Path, packed: Path) -> dict[str, str]:
    """By name, whether each packed model was written into the folder or was there; raises ValueError if none is packed."""
    files = sorted(packed.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{packed} holds no packed model: pack a run with `python -m benchmarks.retrained RUN`.")
    return {file.stem: "written" if unpack(file, folder / file.stem) else "was there" for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a finished run of `erase --method retrain`, to be packed")
    parser.add_argument(
        "--unpack", type=Path, nargs="?", const=Path("retrained"), metavar="FOLDER", help="write the packed ones"
    )
    given = parser.parse_args()
    if (given.run is None) == (given.unpack is None):
        parser.error("give a run to pack, or --unpack")
    quiet_libraries()
    if given.unpack is not None:
        print(json.dumps(unpack_all(given.unpack, PACKED)))
        return
    name = slug(read_json(given.run / "results.json")["concept"])
    kept = record(given.run, PACKED / f"{name}.safetensors")
    write_json(kept, ROOT / "benchmarks" / "results" / "retrained" / f"{name}.json")
    grid = ROOT / "docs" / "retrained" / f"{name}.webp"
    grid.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(given.run / "model" / "grid.png") as picture:
        picture.convert("RGB").save(grid, "WEBP", quality=80, method=6)
    print(json.dumps({"grid": str(grid), **kept["packed"]}))


if __name__ == "__main__":
    main()
