"""The records of the methods' tables: their lines by hand, and that what is shown is what the rows say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import methods_documents, methods_table
from benchmarks.methods_documents import (
    BLOCKS,
    document,
    made_on,
    mask_sentence,
    methods_page,
    missing_of,
    not_run,
    papers_block,
    plots,
    readme,
)
from benchmarks.methods_figures import default_rows, mask_rows, method_rows, with_mask_minus_without
from benchmarks.methods_table import DOCUMENT, METHODS_PAGE, README, kept_records
from benchmarks.methods_tables import TABLES, absent, common
from erase.benching.cells import TABLE_CONCEPTS, Cell
from erase.benching.table import against, summarise
from erase.methods import METHODS
from erase.recipes import resolve
from erase.source import ROOT

MACHINE = {"date": "2026-11-26", "processor": "one", "cores": 2, "threads": 1, "torch": "2"}
KEPT = kept_records()


def row(method: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    figures = {"ua": 100.0, "ira": 99.0, "cra": 98.0, "fd": 1.5, "ssim": 0.9, "lpips": None, "attack": None}
    counts = {"none_retained": 0.5, "none_forget": 0.0, "n_forget": 96, "n_retained": 120, "seconds": 10.0, "peak_rss_gb": 1.0}
    mask = None if method in ("base", "retrain") else 0.5
    named = {
        "name": f"neon-{method}-{seed}",
        "concept": "neon",
        "kind": "style",
        "method": method,
        "density": mask,
        "seed": seed,
        "collapsed": False,
    }
    names = {"by_name": {"dog": [6, 6], "cat": [5, 6]}}
    return {**named, **figures, **counts, **names, "environment": MACHINE, **more}


def record(*rows: dict[str, Any]) -> dict[str, Any]:
    parts = {"rows": list(rows), "lines": summarise(list(rows)), "against": against(list(rows)), "note": "a note"}
    return {**parts, "not_measured": {"LPIPS": "a reason"}}


def said(block: str) -> str:
    """The block without its breaks of lines."""
    return " ".join(block.split())


BASE = row("base", ua=0.0, ira=100.0, cra=100.0, fd=1.2, ssim=None)


def test_the_default_concept_by_concept() -> None:
    """Dog: of 6 and 6 pictures 6 and 3 show it, 25 % less than of the base's 6; cat as in the base."""
    second = row("salun", 1, ira=97.0, fd=0.9, by_name={"dog": [3, 6], "cat": [5, 6]})
    found = default_rows(record(BASE, row("salun"), second, row("paper", ua=50.0)))
    assert found == [
        ("neon", "100.0", "100.0 → 98.0", "100.0 → 98.0", "25.0 (dog)", "0.5", "1.00", "0.900", "192 / 240"),
    ]
    assert default_rows(record(BASE, row("salun")))[0][4] == "none"
    kept = record(BASE, row("salun"), row("paper", collapsed=True), row("paper", 1))
    told = said(BLOCKS["default"][1](kept))
    assert "1 of 2 cells of `paper` fail the [collapse gate]" in told
    assert ": nothing that the judge knows is in 0 % of their pictures for the concept's prompts and in 0 % of the kept" in told
    fallen = [
        row("paper", none_forget=87.5, collapsed=True),
        row("paper", 1, none_forget=100.0, collapsed=True),
        row("paper", 2),
    ]
    assert "is in 88 to 100 % of their pictures" in said(BLOCKS["default"][1](record(BASE, row("salun"), *fallen)))
    assert "collapse" not in BLOCKS["default"][1](record(BASE, row("salun"), row("paper")))


def test_the_default_beside_the_papers_loss() -> None:
    """Of one concept no interval can be known, and no verdict. Over four, of which one was looked at: UA 100 - 99, and - 90."""
    block = said(BLOCKS["default"][1](record(BASE, row("salun"), row("paper", fd=2.4))))
    assert "mean over 1 concepts and over parts of them [95 % interval]" in block
    assert "| all (1) | not measured | not measured | not measured | not measured | not measured | too few |" in block
    assert "FD-emoji / floor: 1.25 on the mean, of the paper's loss 2.00." in block
    kinds = {"3d": "style", "dog": "object", "church": "object", "fish": "object"}
    models = [row("base", concept=name, kind=kind) for name, kind in kinds.items()]
    ours = [row("salun", concept=name, kind=kind) for name, kind in kinds.items()]
    theirs = [row("paper", concept=name, kind=kind, ua=90.0 if name == "3d" else 99.0) for name, kind in kinds.items()]
    lines = BLOCKS["default"][1](record(*models, *ours, *theirs)).splitlines()
    found = {line.split(" | ")[0]: line for line in lines if (line.startswith("| ") and "[" in line) or "too few" in line}
    assert found["| all (4)"].startswith("| all (4) | +3.25 [-3.91, +10.41] | +0.00") and found["| all (4)"].endswith(" tied |")
    assert "| +1.00 [+1.00, +1.00] |" in found["| objects (3)"] and found["| objects (3)"].endswith(" better |")
    assert "| +4.00 [" in found["| held out (3)"] and found["| styles (1)"].endswith(" too few |")


def test_the_mean_over_what_was_held_out_is_without_what_was_looked_at() -> None:
    """Of 3d UA 90 and 80, FD 2.4 over its floor of 1.2; dog, line art and neon, far better, do not count."""
    known = [row(name, concept=concept) for concept in ("dog", "line art", "neon") for name in ("base", "salun", "paper")]
    own = [BASE, row("salun", ua=90.0, fd=2.4), row("salun", 1, ua=80.0, fd=2.4), row("paper")]
    own = [one | {"concept": "3d"} for one in own]
    block = said(BLOCKS["default"][1](record(*known, *own)))
    assert "over the 1 concepts held out: UA 85.00, IRA 99.00, CRA 98.00, FD-emoji / floor 2.00." in block
    assert "held out" not in BLOCKS["default"][1](record(*own))


def attacked(prompt: tuple[int, int], word: tuple[int, int] | None, status: str = "PASS") -> dict[str, Any]:
    """What the bench keeps of a cell's attacks: each with how many of its tries succeeded."""
    found = {
        probe: {"status": status, "model": {"value": one[0] / one[1], "n": one[1]}}
        for probe, one in (("adversarial_prompt", prompt), ("concept_inversion", word))
        if one
    }
    return {"attack": 0.0, "attacked": {"quick": True, "found": found}}


def test_every_method_in_short_with_its_concepts_side_by_side() -> None:
    dogs = [row("base", concept="dog", ua=0.0, fd=3.0, ssim=None), row("uce", concept="dog", ua=90.0, fd=6.0)]
    esd = row("esd", density=None, collapsed=True, **attacked((1, 4), (3, 24)))
    kept = record(BASE, dogs[0], row("uce", **attacked((1, 4), (3, 12))), dogs[1], row("retrain", ssim=None), esd)
    found = method_rows(kept)
    whole = "0.900 / 0.900"
    assert found == [
        ("base", "", "0.0 / 0.0", "100.0 / 99.0", "100.0 / 98.0", "34.33", "1.00 / 1.00", "- / -", "- / -", "- / -"),
        ("uce", "0.5", "100.0 / 90.0", "99.0 / 99.0", "98.0 / 98.0", "0.00", "1.25 / 2.00", whole, "1 / -", "3 of 12 / -"),
        ("retrain", "", "100.0 / -", "99.0 / -", "98.0 / -", "0.00", "1.25 / -", "- / -", "- / -", "- / -"),
        (
            *("esd [1 of 1 collapsed]", "none", "100.0 / -", "99.0 / -", "98.0 / -", "0.00", "1.25 / -", "0.900 / -"),
            *("1 / -", "3 of 24 / -"),
        ),
    ]
    without = record(BASE, row("uce"))
    assert len(method_rows(without)[0]) == 8 and "| adversarial" not in BLOCKS["all"][1](without)
    block = BLOCKS["all"][1](kept)
    assert "SSIM | adversarial prompt, of 4 | learned word |" in block and "(models of seed 0)" in said(block)
    unmeasured = row("uce", **attacked((1, 4), (3, 12), "NOT MEASURED"))
    assert method_rows(record(BASE, unmeasured))[1][8:] == ("-", "-")


def test_what_the_mask_changes_is_the_mean_over_pairs_of_cells() -> None:
    """Two pairs: UA 90 - 100 and 96 - 98, FD 3 - 2.4 over a floor of 1.2 and then equal; a cell without its pair is out."""
    pairs = [row("uce", ua=90.0, fd=3.0, ssim=0.8), row("uce", ua=100.0, fd=2.4, ssim=0.7, density=None)]
    pairs += [row("uce", 1, ua=96.0), row("uce", 1, ua=98.0, density=None)]
    kept = record(BASE, *pairs, row("uce", 2), row("esd"))
    first, second = with_mask_minus_without(kept)["uce"]
    assert first == pytest.approx([-10, 0, 0, 0.5, 0.1]) and second == pytest.approx([-2, 0, 0, 0, 0])
    ((method, num, ua, ira, _, fd, ssim),) = mask_rows(kept)
    assert (method, num, ua, ira) == ("uce", "2", "-6.0 [-56.8, +44.8]", "+0.0 [+0.0, +0.0]"), "4 sqrt(2) 12.706 / sqrt(2)"
    assert fd.startswith("+0.250 [") and ssim.startswith("+0.0500 [")
    assert "SSIM of kept pictures moves by +0.050 to +0.050;" in mask_sentence(kept)
    assert "higher under 0 of 1 methods and lower under 0, and UA lower under 0 and higher under 0 (" in mask_sentence(kept)
    even = [row("uce", seed, ua=90.0 + seed, ssim=0.8 + seed / 100) for seed in range(3)]
    even += [row("uce", seed, ua=98.0, ssim=0.7, density=None) for seed in range(3)]
    told = mask_sentence(record(BASE, *even))
    assert "higher under 1 of 1 methods and lower under 0, and UA lower under 1 and higher under 0 (" in told
    assert mask_rows(record(BASE, row("uce"), row("uce", density=None)))[0][2:] == ("+0.0", "+0.0", "+0.0", "+0.000", "+0.0000")
    assert mask_sentence(kept) in said(BLOCKS["all"][1](kept))
    assert "minus without" not in document({"all": record(BASE, row("esd"))})


def test_only_concepts_and_seeds_that_every_method_has_count() -> None:
    dog = {"concept": "dog"}
    rows = [BASE, row("base", **dog), row("salun"), row("salun", 1), row("salun", **dog), row("esd"), row("esd", 2)]
    assert common(rows) == [BASE, row("salun"), row("esd")]
    assert common([BASE]) == [] == common([*rows, row("uce", 5)])
    whole = [
        row(method, seed, concept=concept) for method in ("salun", "esd") for seed in (0, 1) for concept in ("neon", "dog")
    ]
    begun = [row(method, 2, concept="dog") for method in ("salun", "esd")]
    assert common([*whole, *begun]) == whole, "a seed of one concept would weigh as much as one of both"
    assert common([*whole[:1], *whole[4:5], *begun]) == [*whole[:1], *whole[4:5], *begun]


def test_the_tables_cells() -> None:
    default, every, ablation = (TABLES[name].cells() for name in ("default", "all", "ablation"))
    assert {cell.concept for cell in default} == set(TABLE_CONCEPTS) and len(default) == 2 * 3 * len(TABLE_CONCEPTS)
    assert {cell.concept for cell in every} == {"dog", "neon"} and {cell.density for cell in every} == {0.5, None}
    assert {"salun", "paper", "esd", "uce", "munba"} <= {cell.method for cell in every} and "retrain" not in {
        c.method for c in every
    }
    shipped, short, *changed = (cell.config(()) for cell in ablation if (cell.concept, cell.seed) == ("cat", 0))
    assert shipped == resolve({"concept": "cat"}, [])
    assert short == resolve({"concept": "cat"}, ["train.steps=60"]) != shipped
    assert all(one not in (shipped, short) and one.train.steps == 60 for one in changed), "each does something"


def test_what_was_not_run_is_said() -> None:
    every = TABLES["default"]
    left = absent(every, [BASE, row("salun"), row("salun", 2)])
    assert left[1:] == ["paper, mask 0.5", "seed 1", "attacks on these cells"]
    assert left[0].startswith("dog, church, ") and "neon" not in left[0]
    rows = [row(line[0], seed, concept=concept) for concept in TABLE_CONCEPTS for line in every.lines for seed in range(3)]
    assert absent(every, rows) == ["attacks on these cells"]
    assert absent(every, [*rows[1:], rows[0] | {"attacked": {}}]) == []
    assert absent(every, [one for one in rows if one["seed"] == 0])[0] == "seeds 1 and 2"
    assert not_run("default", record(BASE, *rows)) == ["Not run yet: attacks on these cells."]
    shown = document({"default": record(BASE, row("salun"), row("paper"))})
    assert "gas pump, parachute" in shown and "; seeds 1 and 2; attacks on these cells.\n" in shown


def test_only_what_is_between_the_marks_is_replaced() -> None:
    records = {"all": record(BASE, row("salun"))}
    text, expected = "", ""
    for name in ("papers", "all"):
        head, end = f"{name}\n<!-- {name}: python -m benchmarks.methods_table -->\n", f"<!-- /{name} -->\nafter\n"
        text += f"{head}old\n{end}"
        expected += f"{head}{BLOCKS[name][1](records['all'])}{end}"
    assert readme(text, records) == expected
    with pytest.raises(ValueError, match="has no marks"):
        readme("a", records)


def test_each_method_with_its_paper_its_files_and_its_result() -> None:
    dog = row("uce", concept="dog", ua=90.0, collapsed=True)
    lines = papers_block(record(BASE, row("uce"), row("uce", density=None, ua=1.0), dog, row("retrain", ira=99.5))).splitlines()
    found = {line.split("`")[1]: line for line in lines[2:]}
    assert found.keys() == {*METHODS, "paper"}
    assert "Gandikota et al., WACV 2024" in found["uce"] and "](erase/methods/uce.py)" in found["uce"]
    assert found["uce"].endswith("| neon 100.0 / 99.0 / 98.0; dog 90.0 / 99.0 / 98.0 (collapsed) |")
    assert found["retrain"].endswith("| neon 100.0 / 99.5 / 98.0 |") and found["esd"].endswith("| not measured |")
    for line in lines[2:]:
        for target in re.findall(r"\]\((.+?)\)", line):
            assert (ROOT / target).is_file(), target


def test_what_was_begun_is_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 1 of a concept with both lines, over a floor of 1.2; of another without its pair nothing is said."""

    def cell(method: str, seed: int = 0, **more: Any) -> dict[str, Any]:
        return row(method, seed, name=Cell("neon", method, 0.5, seed).name, **more)

    kept = record(BASE, cell("salun", fd=1.2), cell("paper", fd=2.4))
    more = [cell("salun", 1, fd=2.4), cell("paper", 1, fd=1.8, collapsed=True), cell("salun", 2)]
    attacked = {"attack": 0.0}

    class Collected:
        """What a bench's folder has that was made by this code and with the shipped settings."""

        def __init__(self, *_: Any, collect: bool) -> None:
            assert collect, "nothing is run"
            rows = (*kept["rows"], more[0] | {"attacked": attacked}, *more[1:])
            self.rows = {one["name"]: one for one in rows}

        def measure_base(self, concept: str) -> dict[str, Any] | None:
            return BASE | {"name": "cat-base"} if concept == "cat" else None

        def run_cell(self, cell: Cell) -> dict[str, Any] | None:
            return self.rows.get(cell.name)

    monkeypatch.setattr(methods_table, "Bench", Collected)
    found = {one["name"]: one for one in methods_table.begun(tmp_path, {"default": kept})}
    assert set(found) == {"cat-base", *(one["name"] for one in more)}
    assert found[more[0]["name"]] == more[0] | {"attacked": attacked}
    told = said(BLOCKS["default"][1](kept | {"begun": more}))
    assert "Seed 1 is in no table yet; on neon, FD-emoji / floor is 2.00 (seed 0: 1.00), of the paper's loss " in told
    assert "1.50 (seed 0: 2.00), 1 of 1 collapsed." in told and "Seed 2 is" not in told
    methods_table.unpack({"default": kept | {"begun": [more[0] | {"attacked": attacked}]}}, tmp_path / "new")
    assert all((tmp_path / "new" / part / "neon-salun-0.5-1.json").is_file() for part in ("cells", "attacks"))


def test_what_each_part_of_the_default_does_is_told_beside_the_whole() -> None:
    """One line a change: of a setting, of the density; the base is in no line."""
    changed = row("salun+train.steps=60+method.teacher=moving", ua=90.0, collapsed=True)
    short = [row("salun+train.steps=60", fd=1.8), row("salun+train.steps=60", density=0.1, fd=2.4)]
    kept = record(BASE, row("salun"), *short, changed)
    marks = "<!-- ablation: python -m benchmarks.methods_table -->\n<!-- /ablation -->\n"
    found = methods_page(marks, {"ablation": kept}).splitlines()
    first = next(number for number, line in enumerate(found) if "**as shipped**" in line)
    assert found[first : first + 4] == [
        "| **as shipped** | 100.0 | 99.0 | 98.0 | 1.25 | 0.900 | 10 |",
        "| `train.steps=60` | 100.0 | 99.0 | 98.0 | 1.50 | 0.900 | 10 |",
        "| `saliency.density=0.1` | 100.0 | 99.0 | 98.0 | 2.00 | 0.900 | 10 |",
        "| `method.teacher=moving`; 1 of 1 collapsed | 90.0 | 99.0 | 98.0 | 1.25 | 0.900 | 10 |",
    ]
    assert found[first + 5] == "neon; seed 0; 2026-11-26, one, 2 cores."


def test_each_methods_rows_stand_in_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own rows alone, what collapsed is said, and a strip is shown where there is one."""
    bare = row("uce", density=None, collapsed=True, ua=70.0)
    kept = {"all": record(BASE, row("uce", **attacked((1, 4), (3, 12))), bare, row("esd", ua=50.0))}
    names = (*(name for name in METHODS if name != "retrain"), "paper")
    marks = "".join(f"<!-- said-{n}: python -m benchmarks.methods_table -->\n??<!-- /said-{n} -->\n" for n in names)
    monkeypatch.setattr(methods_documents, "ROOT", tmp_path)
    monkeypatch.setattr(methods_documents, "RECORDS", tmp_path / "kept")
    found = methods_page(marks, kept)
    uce, esd = (found.split(f"<!-- said-{name}")[1].split(f"<!-- /said-{name}")[0] for name in ("uce", "esd"))
    assert "| 0.5 | 100.0 | 99.0 | 98.0 | - | 1.25 | 0.900 | 1 | 3 |" in uce
    assert "| none | 70.0 |" in uce and "50.0" not in uce
    assert "1 of 2 cells fail the" in uce and "50.0" in esd and "cells fail" not in esd
    assert "??" not in found and "![" not in found
    (tmp_path / "kept" / "strips").mkdir(parents=True)
    (tmp_path / "kept" / "strips" / "neon-uce-0.5-0.webp").touch()
    assert "](../kept/strips/neon-uce-0.5-0.webp)" in methods_page(marks, kept)
    assert methods_page("as it is", {"default": kept["all"]}) == "as it is"


def test_cells_are_gathered_and_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the bench's cells; the record, without what is not common to all."""
    (tmp_path / "out" / "cells").mkdir(parents=True)
    rows = [row("base", ua=0.0, ssim=None), row("salun"), row("salun", 1), row("paper")]
    found = {"rows": rows, "not_measured": {}, "base_sha256": "1"}
    monkeypatch.setattr(methods_table, "bench", lambda *_, **__: found)
    monkeypatch.setattr(methods_table, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(methods_table, "RECORDS", tmp_path / "records")
    made = methods_table.gathered("default", tmp_path / "out", None)
    assert [(line["method"], line["seed"]) for line in made["rows"]] == [("base", 0), ("salun", 0), ("paper", 0)]
    assert made["lines"] == summarise(made["rows"]) and "environment" not in made and "LPIPS" in made["not_measured"]
    found["rows"] = [one | {"lpips": 0.04} for one in rows]
    assert "LPIPS" not in methods_table.gathered("default", tmp_path / "out", None)["not_measured"]
    assert not list((tmp_path / "out" / "cells").iterdir())
    found["rows"] = rows[:1]
    with pytest.raises(SystemExit, match="no concept and seed"):
        methods_table.gathered("default", tmp_path / "out", None)


def test_the_records_are_a_folder_that_the_bench_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_table, "RECORDS", tmp_path / "records")
    (tmp_path / "records" / "strips").mkdir(parents=True)
    (tmp_path / "records" / "strips" / "neon-salun-0.webp").write_bytes(b"strip")
    attacked = {"name": "neon-esd-0", "attack": 12.5, "quick": True, "found": {}}
    esd = row("esd") | {"attack": 12.5, "attacked": attacked}
    records = {"default": record(BASE, row("salun")), "all": record(BASE, esd)}
    methods_table.unpack(records, tmp_path / "out")
    cells = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").iterdir()}
    assert cells == {"neon-base-0": BASE, "neon-salun-0": row("salun"), "neon-esd-0": row("esd")}
    (kept,) = (tmp_path / "out" / "attacks").iterdir()
    assert kept.name == "neon-esd-0.json" and json.loads(kept.read_text()) == attacked
    assert (tmp_path / "out" / "strips" / "neon-salun-0.webp").read_bytes() == b"strip"
    (tmp_path / "out" / "cells" / "neon-esd-0.json").write_text("{}")
    methods_table.unpack(records, tmp_path / "out")
    assert (tmp_path / "out" / "cells" / "neon-esd-0.json").read_text() == "{}", "a cell that is there stays"


def test_a_document_says_where_its_figures_are_from() -> None:
    default = record(BASE, row("salun"), row("paper", 1))
    shown = document({"default": default})
    assert "Made: seeds 0, 1; 2026-11-26, one, 2 cores." in shown and "Not measured: LPIPS: a reason" in shown
    assert made_on(record(BASE, row("salun"))) == "seed 0; 2026-11-26, one, 2 cores"
    later = record(BASE, row("salun", environment=MACHINE | {"date": "2026-11-27"}))
    assert made_on(later) == "seed 0; 2026-11-26 and 2026-11-27, one, 2 cores"


@pytest.mark.parametrize("name", KEPT)
def test_a_record_says_what_its_rows_say(name: str) -> None:
    kept = KEPT[name]
    assert json.loads(json.dumps(summarise(kept["rows"]))) == kept["lines"]
    for made, line in zip(against(kept["rows"]), kept["against"], strict=True):
        assert made == {key: value if not isinstance(value, list) else pytest.approx(value) for key, value in line.items()}
    own = [row for row in kept["rows"] if row["method"] not in ("base", "retrain")]
    assert common(kept["rows"]) == kept["rows"] and all(row["changed_outside_mask"] == 0 for row in own)
    lines = {(row["method"], row["density"]) for row in own}
    pairs = {(row["concept"], row["seed"]) for row in own}
    assert len(own) == len(lines) * len(pairs), "every line is of the same concepts and seeds"
    assert lines <= set(TABLES[name].lines) and {concept for concept, _ in pairs} <= set(TABLES[name].concepts)
    assert missing_of(kept).keys() <= kept["not_measured"].keys()


def test_the_documents_are_what_the_records_make_of_them() -> None:
    assert {"default", "all"} <= KEPT.keys()
    assert DOCUMENT.read_text(encoding="utf-8") == document(KEPT)
    shown = README.read_text(encoding="utf-8")
    assert shown == readme(shown, KEPT)
    told = METHODS_PAGE.read_text(encoding="utf-8")
    assert told == methods_page(told, KEPT)


def test_the_plots_are_of_the_records(tmp_path: Path) -> None:
    for name, kept in KEPT.items():
        plots(name, kept, tmp_path)
    for plot in tmp_path.iterdir():
        assert plot.read_text() == (methods_documents.PICTURES / plot.name).read_text(), plot.name
    assert len(list(tmp_path.iterdir())) == 2 * len(KEPT)
