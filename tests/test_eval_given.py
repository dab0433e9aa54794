"""Somebody's pictures are matched to the prompts by their names or their manifest, and whatever does not fit is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.given import in_common, take_over
from eval.pictures import Request, read_manifest, read_pixels

CASES = ("0", "5", "17")


def asked(**more: Any) -> list[Request]:
    facts = {"guidance": 3.0, "steps": 2, "object": "dog", "role": "forget"} | more
    return [Request(prompt=f"prompt {case}", seed=100 * k, case=case, **facts) for k, case in enumerate(CASES)]


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for k, name in enumerate(names):
        Image.new("RGB", (16, 16), (k, k, k)).save(path / name)
    (path / "notes.txt").touch()
    return path


def copied(path: Path, requests: list[Request], out: Path) -> Path:
    """The folder's pictures as an evaluation keeps them, with a manifest."""
    requests, (pictures,), _ = in_common(requests, [path])
    take_over(path, pictures, requests, out)
    return out


def test_a_file_is_named_after_its_case(tmp_path) -> None:
    source = folder_of(tmp_path / "theirs", "000.png", "5_0.jpg", "17_1.png", "17_0.png", "00017_02.png")
    requests, (pictures,), told = in_common(asked(), [source])
    assert [p.file for p in pictures] == ["000.png", "5_0.jpg", "17_0.png", "17_1.png", "00017_02.png"] and told == ""
    assert [(r.prompt, r.seed) for r in requests[2:]] == [("prompt 17", 200), ("prompt 17", 201), ("prompt 17", 202)]


def test_they_are_copied_under_the_names_that_a_model_draws_under(tmp_path) -> None:
    out = copied(folder_of(tmp_path / "theirs", "0.png", "5.jpg", "17.png"), asked(), tmp_path / "out")
    assert [p.file for p in read_manifest(out)] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(out / "00001.png") as image:
        assert image.format == "PNG"
    assert np.array_equal(read_pixels(out / "00001.png"), read_pixels(tmp_path / "theirs" / "5.jpg"))


def test_only_what_both_sides_have_is_measured_and_the_rest_is_said(tmp_path) -> None:
    one = folder_of(tmp_path / "one", "5.png", "17_0.png", "17_1.png")
    other = folder_of(tmp_path / "other", "0.png", "17.jpg", "5.png", "5_1.png")
    requests, (ours, theirs), told = in_common(asked(), [one, other])
    assert [r.case for r in requests] == ["5", "17"]
    assert [(a.file, b.file) for a, b in zip(ours, theirs, strict=True)] == [("5.png", "5.png"), ("17_0.png", "17.jpg")]
    assert "for 2 of 3 prompts" in told and "2 pictures have no counterpart" in told
    with pytest.raises(ValueError, match="no picture for the same prompt"):
        in_common(asked(), [folder_of(tmp_path / "a", "0.png"), folder_of(tmp_path / "b", "5.png")])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "holds no pictures"),
        (("18.png",), r"18\.png belongs to no prompt.*no case 18"),
        (("17_final.png",), r"17_final\.png belongs to no prompt"),
        (("17.png", "17_0.png"), r"17\.png and 17_0\.png are both picture 0 of case 17"),
    ],
)
def test_a_folder_that_does_not_fit_is_said(tmp_path, names, words) -> None:
    with pytest.raises(ValueError, match=words):
        in_common(asked(), [folder_of(tmp_path / "theirs", *names)])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 3}, "picture 0 has steps 2, the suite asks for 3"),
        ({"guidance": 7.5}, r"guidance 3\.0, the suite asks for 7\.5"),
        ({"width": 24, "height": 16}, "width None, the suite asks for 24"),
    ],
)
def test_a_manifest_of_other_settings_is_refused(tmp_path, more, words) -> None:
    drawn = copied(folder_of(tmp_path / "theirs", "0.png", "5.png", "17.png"), asked(), tmp_path / "drawn")
    with pytest.raises(ValueError, match=words):
        in_common(asked(**more), [drawn])
    with pytest.raises(ValueError, match="other prompts or seeds: picture 2 of 3 differs from the suite's 2"):
        in_common(asked()[:2], [drawn])


def test_a_manifests_pictures_are_for_what_is_asked_now(tmp_path) -> None:
    """Drawn when nothing, or something else, was erased; now they are the concept's."""
    before = asked(role="retain", object=None)
    drawn = copied(folder_of(tmp_path / "theirs", "0.png", "5.png", "17.png"), before, tmp_path / "drawn")
    now = asked(style="neon")
    again = copied(drawn, now, tmp_path / "again")
    assert [picture.request() for picture in read_manifest(again)] == now
    assert [p.sha256 for p in read_manifest(again)] == [p.sha256 for p in read_manifest(drawn)]
