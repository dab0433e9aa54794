"""What looking ahead buys on the pilot style: steps until fine-tuning brings it back, against what is kept.

    python -m benchmarks.relearning [--out runs/relearning]   # every line that is not there yet; 8 minutes each, one thread
    python -m benchmarks.relearning --collect [--out ...]     # the record of the lines that are there; nothing is run
    python -m benchmarks.relearning --show                    # the table in docs/methods.md from the record; nothing is run

Each line is a cell of the bench (`erase bench methods`) on a pilot concept, with two of the audit's probes on its model:
relearning and concept inversion. results/relearning.json has every row.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.documents import between
from erase.benching.attack import Attack
from erase.benching.cells import Bench, Cell
from erase.benching.table import piped
from erase.files import write_json, write_text
from erase.terminal import Bars

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "results" / "relearning.json"
DOCUMENT = ROOT / "docs" / "methods.md"
CONCEPT = "sticker"
PROBES = ("relearning", "concept_inversion")
LINES = (
    (),
    ("train.steps=120",),
    ("train.steps=60",),
    ("method.lookahead_share=0.33", "method.alpha=2", "train.steps=90"),
    ("method.lookahead_share=0.33", "method.alpha=2", "train.steps=120"),
    ("method.lookahead_share=0.5", "method.alpha=2", "train.steps=90"),
    ("method.lookahead_share=0.75", "method.alpha=4", "train.steps=90"),
)
HEAD = (
    "settings",
    "UA",
    "IRA",
    "CRA",
    "“none” for its prompts",
    "FD-emoji / floor",
    "SSIM",
    "back after",
    "found by a learned word",
    "s",
)

Row = dict[str, Any]


def cell(line: tuple[str, ...]) -> Cell:
    """The bench's cell of a line."""
    return Cell(CONCEPT, "+".join(["salun", *line]), 0.5, 0)


def told(row: Row, floor: float) -> tuple[str, ...]:
    """A row as the table shows it."""
    found = row["attacked"]["found"]
    relearning, word = found["relearning"]["figures"], found["concept_inversion"]
    back = f"{relearning['steps']:g}" if relearning["back"] else f"not in {relearning['steps']:g}"
    settings = ", ".join(f"`{part.removeprefix('method.')}`" for part in row["method"].split("+")[1:]) or "as shipped"
    seen = word["model"]
    share = "weak attack" if word["status"] == "NOT MEASURED" else f"{round(seen['value'] * seen['n'])} of {seen['n']}"
    figures = (
        *(f"{row[key]:.1f}" for key in ("ua", "ira", "cra", "none_forget")),
        f"{row['fd'] / floor:.2f}",
        f"{row['ssim']:.3f}",
    )
    return (settings, *figures, back, share, f"{row['seconds']:.0f}")


def table(record: Row) -> str:
    """The lines of the record, and where they are from."""
    rows = [told(row, record["base"]["fd"]) for row in record["rows"]]
    machines = [row["environment"] for row in record["rows"]]
    places = sorted(
        {f"{one['date']}, {one['processor']}, {one['threads']} thread(s), load {one['load']:.0f}" for one in machines}
    )
    n = record["rows"][0]["n_forget"], record["rows"][0]["n_retained"]
    return f"{piped(HEAD, rows)}\n{CONCEPT}, seed 0, n {n[0]} / {n[1]}; {'; '.join(places)}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/relearning"))
    parser.add_argument("--collect", action="store_true", help="the lines that are there")
    parser.add_argument("--show", action="store_true", help="the record as it is")
    arguments = parser.parse_args()
    if not arguments.show:
        base = Bench(arguments.out, (), Bars(), collect=arguments.collect).measure_base(CONCEPT)
        if base is None:
            raise SystemExit(f"{arguments.out} has no cell of the base yet.")
        bench, rows = Bench(arguments.out, (), Bars(), Attack(names=PROBES), arguments.collect), []
        for line in LINES:
            row = bench.run_cell(cell(line))
            rows += [row] if row and "attacked" in row else []
            write_json({"base": base, "rows": rows}, RECORD)
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    shown = table(record)
    write_text(between(DOCUMENT.read_text(encoding="utf-8"), "relearning", "python -m benchmarks.relearning", shown), DOCUMENT)
    print(shown)


if __name__ == "__main__":
    main()
