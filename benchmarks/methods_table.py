"""The tables of the methods: kept as records, and shown in docs/methods-table.md, docs/methods.md and README.md.

    erase bench methods --concepts table --methods salun,paper --densities 0.5 --seeds 3 --out runs/bench
    erase bench methods --concepts dog,neon --retrain retrained --seeds 3 --attacks quick --out runs/bench
    python -m benchmarks.methods_table runs/bench --retrain retrained

Takes the cells that are there, made by this code with the shipped settings; runs nothing, changes no figure. Of a table's cells
those count whose concept and seed every one of its methods has: no line is a mean over other concepts or seeds than its
neighbour's. results/methods/NAME.json has every row, begun.json those of cells that are in no table yet; plots and sheets of
pictures go to docs/methods/. Without a folder: the documents of the records as they are. `--unpack` writes the records' rows as
a bench's folder, for the bench to go on from.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.methods_documents import PICTURES, RECORDS, ROOT, document, methods_page, plots, readme
from benchmarks.methods_tables import TABLES, Record, Row, common
from erase.benching.attack import Attack
from erase.benching.cells import Bench
from erase.benching.run import bench, write_table
from erase.benching.table import with_lpips
from erase.files import slug, write_json, write_text
from erase.terminal import Bars

DOCUMENT = ROOT / "docs" / "methods-table.md"
BEGUN = RECORDS / "begun.json"
README = ROOT / "README.md"
METHODS_PAGE = ROOT / "docs" / "methods.md"


def gathered(name: str, out: Path, retrain: Path | None) -> Record:
    """A table's record from a bench's folder; its sheets of pictures go to docs/methods/."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for part in (part for part in ("cells", "attacks", "strips") if (out / part).is_dir()):
            (here / part).symlink_to((out / part).resolve(), target_is_directory=True)
        found = bench(TABLES[name].cells(), here, (), retrain, Bars(), Attack(quick=True), collect=True)
        if not (rows := common(found["rows"])):
            raise SystemExit(f"{out} has no concept and seed that every method of the table {name!r} has.")
        missing = {what: why for what, why in found["not_measured"].items() if what != "LPIPS"}
        missing |= {} if with_lpips(rows) else {"LPIPS": "its network's weights were not there."}
        record = write_table(rows, here, found["base_sha256"], missing)
        PICTURES.mkdir(parents=True, exist_ok=True)
        for concept in {row["concept"] for row in rows} if TABLES[name].sheets else ():
            shutil.copyfile(here / "pictures" / f"{slug(concept)}.webp", PICTURES / f"{slug(concept)}.webp")
        (RECORDS / "strips").mkdir(parents=True, exist_ok=True)
        shown = min(row["seed"] for row in rows)
        for row in (row for row in rows if TABLES[name].sheets and row["seed"] == shown):
            if (strip := here / "strips" / f"{row['name']}.webp").is_file():
                shutil.copyfile(strip, RECORDS / "strips" / strip.name)
    return {key: record[key] for key in record if key != "environment"}  # each row has its own


def kept_records() -> dict[str, Record]:
    """The records that are there, in the tables' order; with the default's what was begun and is in no table yet."""
    files = {name: RECORDS / f"{name}.json" for name in TABLES}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    if "default" in found and BEGUN.is_file():
        found["default"]["begun"] = json.loads(BEGUN.read_text(encoding="utf-8"))["rows"]
    return found


def begun(out: Path, records: dict[str, Record]) -> list[Row]:
    """The tables' cells in a bench's folder that are in no record: of concepts and seeds that not every line has yet.

    Like a table's, they are of this code and of the shipped settings.
    """
    known = {row["name"] for record in records.values() for row in record["rows"]}
    bench = Bench(out, (), Bars(), Attack(quick=True), collect=True)
    cells = {cell.name: cell for table in TABLES.values() for cell in table.cells() if cell.name not in known}
    bases = {cell.concept for cell in cells.values() if f"{slug(cell.concept)}-base" not in known}
    found = [*(bench.measure_base(concept) for concept in sorted(bases)), *map(bench.run_cell, cells.values())]
    return sorted((row for row in found if row), key=lambda row: row["name"])


def unpack(records: dict[str, Record], out: Path) -> None:
    """Write the records' rows and strips as the cells of a bench's folder; a cell that is there stays."""
    (out / "strips").mkdir(parents=True, exist_ok=True)
    for row in (row for record in records.values() for row in (*record["rows"], *record.get("begun", []))):
        attacked = row.get("attacked")
        own = {key: value for key, value in row.items() if key != "attacked"} | {"attack": None}
        for part, content in (("cells", own), ("attacks", attacked)):
            if content and not (file := out / part / f"{row['name']}.json").exists():
                write_json(content, file)
    for strip in (RECORDS / "strips").glob("*.webp"):
        if not (out / "strips" / strip.name).exists():
            shutil.copyfile(strip, out / "strips" / strip.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="the folder of `erase bench methods`")
    parser.add_argument("--retrain", type=Path, help="the folder of the retrained models")
    parser.add_argument("--tables", default=",".join(TABLES), help="which of them to make again")
    parser.add_argument("--unpack", action="store_true", help="write the records' cells to the folder; nothing else")
    arguments = parser.parse_args()
    if arguments.unpack:
        unpack(kept_records(), arguments.out)
        return
    for name in arguments.tables.split(",") if arguments.out else ():
        write_json(gathered(name, arguments.out, arguments.retrain), RECORDS / f"{name}.json")
    records = kept_records()
    if arguments.out:
        write_json({"rows": begun(arguments.out, records)}, BEGUN)
        records = kept_records()
    for name, record in records.items():
        plots(name, record, PICTURES)
    write_text(document(records), DOCUMENT)
    for page, filled in ((README, readme), (METHODS_PAGE, methods_page)):
        write_text(filled(page.read_text(encoding="utf-8"), records), page)
    print(document(records))


if __name__ == "__main__":
    main()
