"""What looking ahead buys: the lines are runs, the document is what the record makes of it."""

import json

import pytest

from benchmarks.relearning import DOCUMENT, LINES, RECORD, cell, table, told
from erase.benching.cells import PILOT
from eval.measure import Share


def test_every_line_is_a_run_on_a_pilot_concept() -> None:
    for line in LINES:
        config = cell(line).config(())
        assert config.concept in PILOT
        for setting in line:
            key, _, value = setting.partition("=")
            part, _, name = key.partition(".")
            assert getattr(getattr(config, part), name) == float(value)
    assert len({cell(line).name for line in LINES}) == len(LINES)


def test_a_row_by_hand() -> None:
    word = {"status": "PASS", "model": Share(1, 24).record()}
    found = {"relearning": {"figures": {"steps": 40.0, "back": 1.0}}, "concept_inversion": word}
    figures = {"ua": 100.0, "ira": 99.5, "cra": 98.0, "none_forget": 2.0, "fd": 3.0, "ssim": 0.9, "seconds": 61.6}
    row = {"method": "salun+method.lookahead_share=1+train.steps=90", **figures, "attacked": {"found": found}}
    shown = ("100.0", "99.5", "98.0", "2.0", "1.50", "0.900")
    assert told(row, 2.0) == ("`lookahead_share=1`, `train.steps=90`", *shown, "40", "1 of 24", "62")
    found["relearning"]["figures"]["back"] = 0.0
    word["status"] = "NOT MEASURED"
    assert told(row | {"method": "salun"}, 2.0) == ("as shipped", *shown, "not in 40", "weak attack", "62")


@pytest.mark.skipif(not RECORD.is_file(), reason="no line was run yet")
def test_the_document_is_what_the_record_makes_of_it() -> None:
    assert table(json.loads(RECORD.read_text(encoding="utf-8"))) in DOCUMENT.read_text(encoding="utf-8")
