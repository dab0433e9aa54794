"""The records of the methods' tables: their lines by hand, and that what is shown is what the rows say."""

import json
from typing import Any

import pytest

from benchmarks.methods_table import (
    DOCUMENT,
    README,
    RECORDS,
    TITLES,
    between,
    cells_of_table,
    document,
    kept_rows,
    method_rows,
    readme,
)
from erase.benching.cells import TABLE
from erase.benching.table import against, summarise

MACHINE = {"date": "2026-11-26", "processor": "one", "threads": 1, "torch": "2"}


def row(method: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    figures = {"ua": 100.0, "ira": 99.0, "cra": 98.0, "fd": 1.5, "ssim": 0.9, "lpips": None, "attack": None}
    counts = {"none_retained": 0.5, "none_forget": 0.0, "n_forget": 96, "n_retained": 120, "seconds": 10.0, "peak_rss_gb": 1.0}
    mask = None if method in ("base", "retrain") else 0.5
    named = {"concept": "neon", "kind": "style", "method": method, "density": mask, "seed": seed, "collapsed": False}
    return {**named, **figures, **counts, "environment": MACHINE, **more}


def record(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"rows": list(rows), "lines": summarise(list(rows)), "against": against(list(rows)), "note": "a note"}


def test_the_default_concept_by_concept() -> None:
    base = row("base", ua=0.0, ira=100.0, cra=100.0, fd=1.2, ssim=None)
    found = kept_rows(record(base, row("salun"), row("salun", 1, ira=97.0, fd=0.9), row("paper", ua=50.0)))
    assert found == [("neon", "100.0", "100.0 → 98.0", "100.0 → 98.0", "0.5", "1.00", "0.900", "192 / 240")]


def test_every_method_in_short() -> None:
    found = method_rows(record(row("base", ua=0.0, ssim=None), row("esd", density=None, attack=25.0), row("uce")))
    assert found == [
        ("base", "", "0.0", "99.0", "98.0", "1.50", "not measured", "not measured"),
        ("esd", "no mask", "100.0", "99.0", "98.0", "1.50", "0.900", "25"),
        ("uce", "mask 0.5", "100.0", "99.0", "98.0", "1.50", "0.900", "not measured"),
    ]


def test_the_tables_cells() -> None:
    default, every = cells_of_table("default"), cells_of_table("all")
    assert {cell.concept for cell in default} == set(TABLE) and len(default) == 2 * 3 * len(TABLE)
    assert {cell.concept for cell in every} == {"dog", "neon"} and {cell.density for cell in every} == {0.5, None}
    assert {"salun", "paper", "esd", "uce", "munba"} <= {cell.method for cell in every} and "retrain" not in {
        c.method for c in every
    }


def test_only_what_is_between_the_marks_is_replaced() -> None:
    marks = "<!-- all: python -m benchmarks.methods_table -->\n", "<!-- /all -->"
    assert between(f"a\n{marks[0]}old\n{marks[1]}\nb", "all", "new\n") == f"a\n{marks[0]}new\n{marks[1]}\nb"
    with pytest.raises(ValueError, match="has no marks"):
        between("a", "all", "new")


@pytest.mark.parametrize("name", TITLES)
def test_a_record_says_what_its_rows_say(name: str) -> None:
    kept = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    lines = json.loads(json.dumps(summarise(kept["rows"])))
    assert lines == kept["lines"] and json.loads(json.dumps(against(kept["rows"]))) == kept["against"]
    known = {(cell.concept, cell.method, cell.density, cell.seed) for cell in cells_of_table(name)}
    own = [row for row in kept["rows"] if row["method"] not in ("base", "retrain")]
    assert own and {(row["concept"], row["method"], row["density"], row["seed"]) for row in own} <= known
    assert all(row["changed_outside_mask"] == 0 for row in own)


def test_the_documents_are_what_the_records_make_of_them() -> None:
    records = {name: json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8")) for name in TITLES}
    assert DOCUMENT.read_text(encoding="utf-8") == document(records)
    shown = README.read_text(encoding="utf-8")
    assert shown == readme(shown, records)
