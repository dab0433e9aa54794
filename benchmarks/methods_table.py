"""The tables of the methods: kept as records, and shown in docs/methods-table.md and README.md.

    erase bench methods --concepts table --methods salun,paper --densities 0.5 --seeds 3 --out runs/bench
    erase bench methods --concepts dog,neon --retrain retrained --seeds 3 --out runs/bench
    python -m benchmarks.methods_table runs/bench --retrain retrained

Takes the cells that are there, made by this code with the shipped settings; runs nothing, changes no figure. Of a table's cells
those count whose concept and seed every one of its methods has: no line is a mean over other concepts or seeds than its
neighbour's. results/methods/NAME.json has every row; plots and sheets of pictures go to docs/methods/. Without a folder: the
documents of the records as they are. `--unpack` writes the records' rows as a bench's folder, for the bench to go on from.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase.benching.attack import Attack
from erase.benching.cells import TABLE, Cell, slug
from erase.benching.run import bench, chosen_methods, write_table
from erase.benching.table import against_cells, label_of, markdown, piped
from erase.files import write_json, write_text
from erase.terminal import Bars

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "methods"
PICTURES = ROOT / "docs" / "methods"
DOCUMENT = ROOT / "docs" / "methods-table.md"
README = ROOT / "README.md"
SEEDS = range(3)
HEAD = """\
# The table of the methods

Made by `python -m benchmarks.methods_table` from the [records](../benchmarks/results/methods), which have every cell. What each
method is, and how its settings were chosen: [methods.md](methods.md). Seconds are of cells that ran two at a time, one thread
each. *Collapsed*: cells in which the [collapse gate](evaluation.md) fails, as retained pictures, or those for the concept's own
prompts, no longer show anything.
"""
ABLATED = (
    "method.teacher=moving",
    "method.retain=denoise",
    "method.anchor_share=0",
    "method.negative_guidance=0",
    "method.empty_prompt_share=0",
    "method.relabel=random_label",
    "method.anchor=none",
    "method.balance=nash",
    "method.timesteps=importance",
    "method.adversarial_radius=0.2",
    "train.keep=best",
)

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
        "the six objects and three styles of the table. `paper`: the loss as published, with our number of steps and the rate "
        "that was best on the pilot concept",
        TABLE,
        (("salun", 0.5), ("paper", 0.5)),
    ),
    "all": Table(
        "Every method, with and without the mask",
        "one object and one style. Our recipe was tuned at length on the pilot concepts; the others had three or four points "
        "each",
        ("dog", "neon"),
        tuple((method, mask) for method in chosen_methods(None) for mask in (0.5, None)),
        sheets=True,
    ),
    "ablation": Table(
        "The default with one part changed",
        "one object and one style",
        ("dog", "neon"),
        (
            *(("salun", density) for density in (0.5, 0.1, 0.3, 1.0)),
            *((f"salun+{setting}", 0.5) for setting in ABLATED),
        ),
    ),
}


def common(rows: Iterable[Row]) -> list[Row]:
    """The rows whose concept and seed every method and mask among them has; of base and retrain those of such a concept."""
    rows = list(rows)
    models = [row for row in rows if row["method"] in ("base", "retrain")]
    cells = [row for row in rows if row not in models]
    have: dict[tuple[str, float | None], set[tuple[str, int]]] = {}
    for row in cells:
        have.setdefault((row["method"], row["density"]), set()).add((row["concept"], row["seed"]))
    shared = set.intersection(*have.values()) if have else set()
    concepts = {concept for concept, _ in shared}
    kept = [row for row in cells if (row["concept"], row["seed"]) in shared]
    return [*(row for row in models if row["concept"] in concepts), *kept]


def absent(table: Table, rows: list[Row]) -> dict[str, str]:
    """What of a table was not run yet: concepts, methods with a mask, seeds."""
    cells = [row for row in rows if row["method"] not in ("base", "retrain")]
    have = {(row["method"], row["density"]) for row in cells}
    lines = [{"method": method, "density": density} for method, density in table.lines if (method, density) not in have]
    concepts = [concept for concept in table.concepts if concept not in {row["concept"] for row in cells}]
    seeds = [str(seed) for seed in SEEDS if seed not in {row["seed"] for row in cells}]
    parts = {"concepts": concepts, "methods": [label_of(line) for line in lines], "seeds": seeds}
    return {what: f"{'; '.join(names)}: not run yet." for what, names in parts.items() if names}


def gathered(name: str, out: Path, retrain: Path | None) -> Record:
    """A table's record from a bench's folder; its plots and sheets of pictures go to docs/methods/."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for part in (part for part in ("cells", "attacks", "strips") if (out / part).is_dir()):
            (here / part).symlink_to((out / part).resolve(), target_is_directory=True)
        found = bench(TABLES[name].cells(), here, (), retrain, Bars(), Attack(quick=True), collect=True)
        if not (rows := common(found["rows"])):
            raise SystemExit(f"{out} has no concept and seed that every method of the table {name!r} has.")
        missing = found["not_measured"] | {"LPIPS": "its network has no weights here."} | absent(TABLES[name], rows)
        record = write_table(rows, here, found["base_sha256"], missing)
        PICTURES.mkdir(parents=True, exist_ok=True)
        for plot in here.glob("*.svg"):
            shutil.copyfile(plot, PICTURES / f"{name}-{plot.name}")
        for concept in {row["concept"] for row in rows} if TABLES[name].sheets else ():
            shutil.copyfile(here / "pictures" / f"{slug(concept)}.webp", PICTURES / f"{slug(concept)}.webp")
        (RECORDS / "strips").mkdir(parents=True, exist_ok=True)
        for row in (row for row in rows if row["concept"] in TABLES["all"].concepts):
            if (strip := here / "strips" / f"{row['name']}.webp").is_file():
                shutil.copyfile(strip, RECORDS / "strips" / strip.name)
    return {key: record[key] for key in record if key != "environment"}  # each row has its own


def own_rows(record: Record, concept: str, method: str, density: float | None) -> list[Row]:
    """One line's rows of one concept."""
    asked = (concept, method, density)
    return [row for row in record["rows"] if (row["concept"], row["method"], row["density"]) == asked]


def worst_name(rows: list[Row], base: Row) -> str:
    """The retained name that lost most, over all seeds: by how many points of its pictures, and which."""
    lost = {}
    for name, (count, n) in base["by_name"].items():
        seen = [row["by_name"][name] for row in rows]
        lost[name] = 100 * (count / n - sum(one for one, _ in seen) / sum(total for _, total in seen))
    name = max(lost, key=lambda key: lost[key])
    return "none" if lost[name] <= 0 else f"{lost[name]:.1f} ({name})"


def default_rows(record: Record) -> list[tuple[str, ...]]:
    """README's table of the default: what was forgotten and what was kept, concept by concept, means over the seeds."""
    found = []
    for concept in dict.fromkeys(row["concept"] for row in record["rows"]):
        (base,) = own_rows(record, concept, "base", None)
        own = own_rows(record, concept, "salun", 0.5)
        mean = {key: statistics.fmean(row[key] for row in own) for key in ("ua", "ira", "cra", "none_retained", "fd", "ssim")}
        found.append(
            (
                concept,
                f"{mean['ua']:.1f}",
                *(f"{base[key]:.1f} → {mean[key]:.1f}" for key in ("ira", "cra")),
                worst_name(own, base),
                f"{mean['none_retained']:.1f}",
                f"{mean['fd'] / base['fd']:.2f}",
                f"{mean['ssim']:.3f}",
                f"{sum(row['n_forget'] for row in own)} / {sum(row['n_retained'] for row in own)}",
            )
        )
    return found


def method_rows(record: Record) -> list[tuple[str, ...]]:
    """README's table of all methods: one column a figure, in it the concepts' means over the seeds side by side."""
    concepts = list(dict.fromkeys(row["concept"] for row in record["rows"]))
    floors = {concept: own_rows(record, concept, "base", None)[0]["fd"] for concept in concepts}
    found = []
    for line in record["lines"]:
        method, density = line["method"], line["density"]
        rows = {concept: own_rows(record, concept, method, density) for concept in concepts}

        def told(key: str, digits: int, over: dict[str, float] | None = None, rows: dict[str, list[Row]] = rows) -> str:
            values = []
            for concept, own in rows.items():
                have = [row[key] / (over[concept] if over else 1) for row in own if row[key] is not None]
                values.append(f"{statistics.fmean(have):.{digits}f}" if have else "-")
            return " / ".join(values)

        mask = "" if method in ("base", "retrain") else "none" if density is None else f"{density:g}"
        figures = (*(told(key, 1) for key in ("ua", "ira", "cra")), told("fd", 2, floors), told("ssim", 3), told("attack", 1))
        found.append((method, mask, *figures))
    return found


def made_on(record: Record) -> str:
    """Seeds, when and on what the cells were made."""
    seeds = sorted({row["seed"] for row in record["rows"] if row["method"] not in ("base", "retrain")})
    machines = sorted({(row["environment"]["date"], row["environment"]["processor"]) for row in record["rows"]})
    cores = sorted({str(row["environment"]["cores"]) for row in record["rows"]})
    places = "; ".join(f"{when}, {processor}" for when, processor in machines)
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {places}, {' or '.join(cores)} cores"


def sentence(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def document(records: dict[str, Record]) -> str:
    """docs/methods-table.md."""
    parts = [HEAD]
    for name, record in records.items():
        table = TABLES[name]
        parts.append(f"## {table.title}\n\nOn {table.about}. Made: {made_on(record)}.\n")
        parts.append(markdown(record["lines"], record["note"], record["against"]))
        parts += [f"Not measured: {what}: {why}\n" for what, why in record["not_measured"].items()]
        plots = [plot for plot in ("pareto", "pareto-pictures") if (PICTURES / f"{name}-{plot}.svg").is_file()]
        parts += [f"![{table.title}: {plot}](methods/{name}-{plot}.svg)\n" for plot in plots]
        for concept in dict.fromkeys(row["concept"] for row in record["rows"]) if table.sheets else ():
            parts.append(f"Eight prompts for {concept}, then eight others; the base, and each method:\n")
            parts.append(f"![what each method draws with {concept} erased](methods/{slug(concept)}.webp)\n")
    return "\n".join(parts)


def default_block(record: Record) -> str:
    """README's block of the default."""
    head = (
        "erased",
        "UA",
        "IRA",
        "CRA",
        "worst retained name",
        "“none” on retained",
        "FD-emoji",
        "SSIM",
        "n forget / retained",
    )
    lines = {line["method"]: line for line in record["lines"]}
    ratio = lines["salun"]["fd_ratio"][0], lines["paper"]["fd_ratio"][0]
    (beside,) = [line for line in record["against"] if line["method"] == "paper"]
    told = dict(zip(("UA", "IRA", "CRA", "FD-emoji", "SSIM"), against_cells(beside)[4:], strict=False))
    mean = f"FD-emoji over its floor: {ratio[0]:.2f} on the mean, the paper's loss {ratio[1]:.2f}."
    against = "; ".join(f"{key} {value}" for key, value in told.items())
    over = f"mean over {beside['concepts']} concepts, 95 % interval"
    compared = f"The default minus the paper's loss ({over}): {against}: {beside['verdict']}."
    return f"{piped(head, default_rows(record))}\n{sentence(made_on(record))}. {mean} {compared}\n"


def all_block(record: Record) -> str:
    """README's block of all methods."""
    names = " / ".join(dict.fromkeys(row["concept"] for row in record["rows"]))
    head = ("method", "mask", "UA", "IRA", "CRA", "FD-emoji / floor", "SSIM", "attack")
    left = [f"{what}: {why}" for what, why in record["not_measured"].items() if what in ("concepts", "methods", "seeds")]
    return f"{piped(head, method_rows(record))}\n{names}; {made_on(record)}. {' '.join(map(sentence, left))}\n"


BLOCKS: dict[str, Callable[[Record], str]] = {"default": default_block, "all": all_block}


def readme(text: str, records: dict[str, Record]) -> str:
    """README.md with its tables as the records have them."""
    for name in BLOCKS.keys() & records.keys():
        start, end = f"<!-- {name}: python -m benchmarks.methods_table -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            raise ValueError(f"README.md has no marks {start.strip()} … {end}.")
        text = f"{head}{start}{BLOCKS[name](records[name])}{end}{tail}"
    return text


def kept_records() -> dict[str, Record]:
    """The records that are there, in the tables' order."""
    files = {name: RECORDS / f"{name}.json" for name in TABLES}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def unpack(records: dict[str, Record], out: Path) -> None:
    """Write the records' rows and strips as the cells of a bench's folder; a cell that is there stays."""
    (out / "strips").mkdir(parents=True, exist_ok=True)
    for row in (row for record in records.values() for row in record["rows"]):
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
    parser.add_argument("--tables", default=",".join(TABLES), help="which of them to make anew")
    parser.add_argument("--unpack", action="store_true", help="write the records' cells to the folder; nothing else")
    arguments = parser.parse_args()
    if arguments.unpack:
        unpack(kept_records(), arguments.out)
        return
    for name in arguments.tables.split(",") if arguments.out else ():
        write_json(gathered(name, arguments.out, arguments.retrain), RECORDS / f"{name}.json")
    records = kept_records()
    write_text(document(records), DOCUMENT)
    write_text(readme(README.read_text(encoding="utf-8"), records), README)
    print(document(records))


if __name__ == "__main__":
    main()
