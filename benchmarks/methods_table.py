"""The tables of the methods: kept as records, and shown in docs/methods-table.md and README.md.

    erase bench methods --concepts table --methods salun,paper --densities 0.5 --out runs/bench
    erase bench methods --concepts dog,neon --retrain retrained --seeds 1 --out runs/bench
    python -m benchmarks.methods_table runs/bench --retrain retrained

Two tables: our default and the paper's recipe on every concept of the table, and every method with and without mask on the two
that a model was retrained without. Takes the cells that are there, made by this code with the shipped settings; runs nothing,
changes no figure. results/methods/NAME.json has every row; plots and pictures go to docs/methods/. Without a folder: the
documents of the records as they are.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from erase.benching.cells import TABLE, Cell, slug
from erase.benching.run import bench, chosen_methods
from erase.benching.table import NOT_MEASURED, label_of, markdown
from erase.files import write_json, write_text
from erase.terminal import Bars

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "methods"
PICTURES = ROOT / "docs" / "methods"
DOCUMENT = ROOT / "docs" / "methods-table.md"
README = ROOT / "README.md"
SEEDS = range(3)
KEPT_COLUMNS = ("concept", "UA", "IRA", "CRA", "“none” on retained", "FD-emoji / floor", "SSIM", "n forget / retained")
METHOD_COLUMNS = ("method", "mask", "UA", "IRA", "CRA", "FD-emoji", "SSIM", "found by attacks")

HEAD = """\
# The table of the methods

Made by `python -m benchmarks.methods_table` from the [records](../benchmarks/results/methods), which have every cell. What each
method is, and how its settings were chosen: [methods.md](methods.md).
"""

Record = dict[str, Any]


def cells_of_table(name: str) -> list[Cell]:
    """The cells that a table may have."""
    if name == "default":
        return [Cell(concept, method, 0.5, seed) for seed in SEEDS for concept in TABLE for method in ("salun", "paper")]
    methods = chosen_methods(None)
    return [
        Cell(concept, method, mask, seed)
        for seed in SEEDS
        for concept in ("dog", "neon")
        for method in methods
        for mask in (0.5, None)
    ]


TITLES = {
    "default": ("The default against the paper's recipe", "every concept of the table"),
    "all": ("Every method, with and without the mask", "the two concepts that a model was retrained without"),
}


def collect(name: str, out: Path, retrain: Path | None) -> Record:
    """A table's record from a bench's folder, its plots and sheets of pictures to docs/methods/."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for part in ("cells", "strips"):
            (here / part).symlink_to((out / part).resolve(), target_is_directory=True)
        found = bench(cells_of_table(name), here, (), retrain if name == "all" else None, Bars(), collect=True)
        for plot in here.glob("*.svg"):
            PICTURES.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plot, PICTURES / f"{name}-{plot.name}")
        for sheet in (here / "pictures").glob("*.webp") if name == "all" else ():
            shutil.copyfile(sheet, PICTURES / sheet.name)
    return found


def kept_rows(record: Record) -> list[tuple[str, ...]]:
    """Our default, concept by concept: what was forgotten and what was kept, means over the seeds."""
    floor = {row["concept"]: row["fd"] for row in record["rows"] if row["method"] == "base"}
    found = []
    for concept in dict.fromkeys(row["concept"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["concept"] == concept and row["method"] == "salun"]
        base = next(row for row in record["rows"] if row["concept"] == concept and row["method"] == "base")
        if not own:
            continue
        mean = {key: statistics.fmean(row[key] for row in own) for key in ("ua", "ira", "cra", "none_retained", "fd", "ssim")}
        found.append(
            (
                concept,
                f"{mean['ua']:.1f}",
                *(f"{base[key]:.1f} → {mean[key]:.1f}" for key in ("ira", "cra")),
                f"{mean['none_retained']:.1f}",
                f"{mean['fd'] / floor[concept]:.2f}",
                f"{mean['ssim']:.3f}",
                f"{sum(row['n_forget'] for row in own)} / {sum(row['n_retained'] for row in own)}",
            )
        )
    return found


def method_rows(record: Record) -> list[tuple[str, ...]]:
    """Every method's line in short."""

    def told(line: Record, key: str, digits: int) -> str:
        return NOT_MEASURED if line[key] is None else f"{line[key][0]:.{digits}f}"

    found = []
    for line in record["lines"]:
        name, mask = label_of(line).rpartition(", ")[::2] if line["method"] not in ("base", "retrain") else (line["method"], "")
        digits = {"ua": 1, "ira": 1, "cra": 1, "fd": 2, "ssim": 3, "attack": 0}
        found.append((name, mask, *(told(line, key, number) for key, number in digits.items())))
    return found


def piped(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, tuple("---" for _ in head), *rows])


def made_on(record: Record) -> str:
    """When and on what the cells were made."""
    machines = sorted({(row["environment"]["date"], row["environment"]["processor"]) for row in record["rows"]})
    threads = sorted({row["environment"]["threads"] for row in record["rows"]})
    places = "; ".join(f"{when}, {processor}" for when, processor in machines)
    return f"{places}; {' or '.join(map(str, threads))} thread(s) a process"


def document(records: dict[str, Record]) -> str:
    """docs/methods-table.md."""
    parts = [HEAD]
    for name, record in records.items():
        title, about = TITLES[name]
        parts.append(f"## {title}\n\nOn {about}. Made on: {made_on(record)}.\n")
        parts.append(markdown(record["lines"], record["note"], record["against"]))
        parts += [f"![{title}: {axis}](methods/{name}-{axis}.svg)\n" for axis in ("pareto", "pareto-pictures")]
        if name == "all":
            for concept in dict.fromkeys(row["concept"] for row in record["rows"]):
                parts.append(f"Eight prompts for {concept}, then eight others; the base, and each method:\n")
                parts.append(f"![what each method draws with {concept} erased](methods/{slug(concept)}.webp)\n")
    return "\n".join(parts)


def between(text: str, name: str, block: str) -> str:
    """The text with what stands between a table's two marks replaced."""
    start, end = f"<!-- {name}: python -m benchmarks.methods_table -->\n", f"<!-- /{name} -->"
    head, _, rest = text.partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"README.md has no marks {start.strip()} … {end}.")
    return f"{head}{start}{block}{end}{tail}"


def readme(text: str, records: dict[str, Record]) -> str:
    """README.md with its tables as the records have them."""
    rows = {"default": (KEPT_COLUMNS, kept_rows), "all": (METHOD_COLUMNS, method_rows)}
    for name, (head, of) in rows.items():
        record = records[name]
        seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in record["rows"] if row["method"] == "salun"}))
        text = between(text, name, f"{piped(head, of(record))}\nSeeds {seeds}; {made_on(record)}.\n")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="the folder of `erase bench methods`")
    parser.add_argument("--retrain", type=Path, help="the folder of the retrained models")
    parser.add_argument("--only", choices=TITLES, help="one of the two tables")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else TITLES:
        if arguments.out:
            write_json(collect(name, arguments.out, arguments.retrain), RECORDS / f"{name}.json")
    records = {name: json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8")) for name in TITLES}
    write_text(document(records), DOCUMENT)
    write_text(readme(README.read_text(encoding="utf-8"), records), README)
    print(document(records))


if __name__ == "__main__":
    main()
