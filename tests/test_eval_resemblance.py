"""What is read off somebody's prompt list: whose prompts they are, what CLIP says of them, and what cannot be measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.evaluate import EvaluationOptions
from eval.measuring import imagenette_hits, measure_folder
from eval.pictures import Picture, Request, hash_pixels, write_manifest, write_png
from eval.resemblance import clip_scores, fid, kept_features, perceptual
from eval.results import Plan, Results, Source
from eval.sides import PictureFolder, Tools
from eval.suites import IMAGENETTE, list_requests

SETTINGS: dict[str, Any] = {"num": None, "steps": 1, "guidance": 1.0, "seed": 0}
ARTISTS = "prompt,object,style\n" + "".join(
    f'"{thing}, {artist} style",{thing},{artist}\n'
    for artist in ("Van Gogh", "Pablo Picasso")
    for thing in ("sunflowers", "boats")
)


class Seer:
    """A CLIP that sees, of every picture of one grey, the same object and the same style."""

    name = "CLIP"

    def __init__(self, answers: dict[int, tuple[str, str]]) -> None:
        self.answers = answers

    def scores(self, batch: list[Any], prompts: list[str]) -> list[float]:
        return [30.0 for _ in prompts]

    def zero_shot(self, batch: list[Any], names: list[str], template: str) -> list[dict[str, str]]:
        seen = [self.answers[int(picture[0, 0, 0])]["in the style" in template] for picture in batch]
        assert set(seen) <= set(names)
        return [{"object": one} for one in seen]


def listed(tmp_path: Path, text: str, concepts: tuple[str, ...] = (), **more: Any) -> list[Request]:
    (tmp_path / "list.csv").write_text(text)
    return list_requests(tmp_path / "list.csv", concepts, **SETTINGS | more)


def written(folder: Path, requests: list[Request], sizes: tuple[int, ...] = (16,)) -> PictureFolder:
    """Pictures of the requests, number k of grey k and with the k-th of the sizes in turn."""
    folder.mkdir(parents=True)
    pictures = []
    for k, request in enumerate(requests):
        pixels = np.full((sizes[k % len(sizes)],) * 2 + (3,), k, np.uint8)
        write_png(pixels, folder / f"{k:05d}.png")
        facts = request.model_dump() | {"file": f"{k:05d}.png", "sha256": hash_pixels(pixels)}
        pictures.append(Picture(**facts, model="m", batch_size=1))
    write_manifest(pictures, folder)
    return PictureFolder(folder)


def plan_of(concepts: tuple[str, ...], suite: str = "prompts", base: bool = True) -> Plan:
    one = Source(name="x", sha256="0" * 64)
    return Plan(suite=suite, concepts=concepts, model=one, baseline=one if base else None)


def by_clip(side: PictureFolder, concepts: tuple[str, ...], answers: list[tuple[str, str]]) -> dict[str, tuple[float, int]]:
    """(value, n) of each row that CLIP's answers give."""
    parts: dict[str, Any] = {"rows": []}
    tools: Any = SimpleNamespace(missing={})
    clip: Any = Seer(dict(enumerate(answers)))
    clip_scores(plan_of(concepts, base=False), {"model": side}, clip, tools, parts)
    return {row.key: (row.model.value, row.model.n) for row in parts["rows"]}


def measured(
    tmp_path: Path, requests: list[Request], concepts: tuple[str, ...], suite: str = "prompts", **sizes: Any
) -> Results:
    """The results of two equal sides."""
    for side in ("base", "model"):
        written(tmp_path / side, requests, **sizes if side == "model" else {})
    (tmp_path / "plan.json").write_text(plan_of(concepts, suite).model_dump_json())
    return measure_folder(tmp_path, Tools(EvaluationOptions(suite=suite, clip=str(tmp_path / "no clip"))))


@pytest.mark.parametrize(
    ("seen", "forgotten"),
    [
        (("sunflowers", "van gogh"), 0.0),
        (("boats", "van gogh"), 0.0),  # another object does not make the style forgotten
        (("sunflowers", "pablo picasso"), 1.0),
    ],
)
def test_an_erased_style_is_forgotten_when_clip_sees_another_style(tmp_path, seen, forgotten) -> None:
    requests = listed(tmp_path, ARTISTS, ("Van Gogh",))
    assert [request.role for request in requests] == ["forget", "forget", "retain", "retain"]
    answers = [seen, seen, ("sunflowers", "pablo picasso"), ("boats", "van gogh")]
    rows = by_clip(written(tmp_path / "model", requests), ("Van Gogh",), answers)
    assert rows["ua_clip_style"] == (forgotten, 2) and rows["retained_clip_style"] == (0.5, 2)
    assert rows["retained_clip"] == (1.0, 2) and "ua_clip" not in rows, "the sunflowers are not what was erased"


@pytest.mark.parametrize("name", ["church", "Church", "CHURCH"])
@pytest.mark.parametrize(("seen", "forgotten"), [("church", 0.0), ("tench", 1.0)])
def test_an_object_is_forgotten_when_clip_sees_another_whatever_its_case(tmp_path, name, seen, forgotten) -> None:
    requests = listed(tmp_path, "prompt,class\na church,Church\na tench,Tench\n", (name,))
    rows = by_clip(written(tmp_path / "model", requests), (name,), [(seen, ""), ("tench", "")])
    assert rows == {"clip_score": (30.0, 1), "ua_clip": (forgotten, 1), "retained_clip": (1.0, 1)}


def test_a_list_of_one_style_leaves_clip_no_choice(tmp_path) -> None:
    requests = listed(tmp_path, "prompt,artist\nIrises by Vincent van Gogh,Vincent van Gogh\n", ("Van Gogh",))
    tools: Any = SimpleNamespace(missing={})
    parts: dict[str, Any] = {"rows": []}
    sides = {"model": written(tmp_path / "model", requests)}
    clip: Any = Seer({})
    clip_scores(plan_of(("Van Gogh",)), sides, clip, tools, parts)
    assert parts["rows"] == [] and set(tools.missing) == {"CLIP score", "Forgotten (UA)"}


def test_imagenettes_classifier_counts_names_in_any_case_and_says_nothing_of_a_style(tmp_path) -> None:
    requests = listed(tmp_path, "prompt,class,style\na church,Church,Van Gogh\n", ("Church",))
    picture, reading = written(tmp_path / "model", requests).pictures[0], {"index": IMAGENETTE["tench"]}
    assert imagenette_hits(plan_of(("Church",)))["ua"](picture, reading) is True
    assert imagenette_hits(plan_of(("Van Gogh",)))["ua"](picture, reading) is None


def test_without_a_prompt_of_the_concept_all_are_measured_under_that_name(tmp_path) -> None:
    text = "case_number,prompt,evaluation_seed\n0,Old stone church in countryside.,1\n1,Tiny village church.,2\n"
    results = measured(tmp_path, listed(tmp_path, text, ("church",)), ("church",))
    assert "no prompt of the list is known to ask for church" in results.not_measured["Forgotten (UA)"]
    assert [row.label for row in results.rows] == ["SSIM between base and model, all prompts"]


def test_where_the_concepts_prompts_are_known_the_others_are_the_retained_ones(tmp_path) -> None:
    text = "prompt,artist\nIrises,Vincent van Gogh\nThe bull,Pablo Picasso\nThe dove,Pablo Picasso\n"
    results = measured(tmp_path, listed(tmp_path, text, ("Van Gogh",)), ("Van Gogh",))
    assert [(row.label, row.model.n) for row in results.rows] == [("SSIM between base and model, retained prompts", 2)]
    assert "Forgotten (UA)" not in results.not_measured
    told = results.not_measured["collapse gate: whether pictures show something"]
    assert results.gate and "no classifier" in told


class ByGrey:
    """A network and detector that reads a picture's grey, and says how often it was asked."""

    name = "by grey"

    def __init__(self, sha256: str = "0" * 64, times: int = 1) -> None:
        self.sha256, self.times, self.asked = sha256, times, 0

    def features(self, batch: list[Any]) -> np.ndarray:
        self.asked += len(batch)
        return np.array([[self.times * float(pixels[0, 0, 0])] for pixels in batch])

    def read(self, batch: list[Any]) -> list[dict[str, Any]]:
        return [{"grey": row[0]} for row in self.features(batch).tolist()]

    def card(self) -> dict[str, object]:
        return {"name": self.name, "sha256": self.sha256}


def test_what_one_detector_read_is_not_taken_for_anothers(tmp_path) -> None:
    """Of one name, of other weights; and what each read is not read again."""
    side = written(tmp_path / "model", listed(tmp_path, "prompt\na\nb\nc\n"))
    for asked in (3, 0):
        for detector, greys in ((ByGrey("a" * 64), [0, 1, 2]), (ByGrey("b" * 64, times=10), [0, 10, 20])):
            assert [reading["grey"] for reading in side.readings(detector).values()] == greys
            assert detector.asked == asked


def test_features_are_kept_for_the_pictures_and_the_network_that_they_are_of(tmp_path) -> None:
    requests = listed(tmp_path, "prompt\na\nb\n")
    side, network = written(tmp_path / "model", requests), ByGrey()
    for _ in range(2):
        assert kept_features(side, network).tolist() == [[0.0], [1.0]] and network.asked == 2
    assert kept_features(side, ByGrey("b" * 64, times=10)).tolist() == [[0.0], [10.0]]
    other = np.full((16, 16, 3), 7, np.uint8)
    write_png(other, tmp_path / "model" / "00000.png")
    first = side.pictures[0].model_copy(update={"sha256": hash_pixels(other)})
    write_manifest([first, side.pictures[1]], tmp_path / "model")
    assert kept_features(PictureFolder(tmp_path / "model"), network).tolist() == [[7.0], [1.0]]


def test_fid_by_hand_over_the_models_pictures(tmp_path) -> None:
    """Greys 0, 1, 2 of the model, of the base 0, 1, 2, 3, the last of which is lost: means 1 and 1.5, variances 1 and 5/3.

    One-dimensional: the gap's square, and that of the standard deviations. n is the model's.
    """
    requests = listed(tmp_path, "prompt\na\nb\nc\nd\n")
    sides = {side: written(tmp_path / side, requests) for side in ("base", "model")}
    (tmp_path / "model" / "00003.png").unlink()
    network = ByGrey()
    tools: Any = SimpleNamespace(missing={}, options=SimpleNamespace(few=True), get=lambda _: network)
    parts: dict[str, Any] = {"rows": []}
    fid(sides, tools, parts)
    rows = {row.key: row for row in parts["rows"]}
    assert {key: row.model.n for key, row in rows.items()} == {"fid": 3, "kid": 3} and "n = 3" in rows["fid"].label
    expected = 0.5**2 + (1 - (5 / 3) ** 0.5) ** 2
    assert rows["fid"].model.value == pytest.approx(expected) and rows["fid"].base is None


@pytest.mark.parametrize("suite", ["prompts", "i2p"])
def test_a_list_of_the_concept_alone_has_results_without_a_gate(tmp_path, suite, monkeypatch) -> None:
    monkeypatch.setattr("eval.measuring.nudity", lambda *_: None)
    monkeypatch.setattr(Tools, "get", lambda *_: None)
    requests = listed(tmp_path, "prompt\na bath\na beach\n", ("nudity",), role="forget")
    results = measured(tmp_path, requests, ("nudity",), suite)
    assert results.gate is None and results.rows == ()
    assert set(results.not_measured) == {"collapse gate", "FID and KID", "LPIPS", "SSIM"}
    assert "2 readable retained pictures" in results.not_measured["collapse gate"]


def test_pictures_of_two_sizes_are_not_compared_and_that_is_said(tmp_path) -> None:
    requests = listed(tmp_path, "prompt\na\nb\nc\nd\n")
    results = measured(tmp_path, requests, (), sizes=(16, 24))
    assert [(row.key, row.model.n) for row in results.rows] == [("ssim", 2)]
    assert "in 2 of 4 pairs" in results.not_measured["SSIM"]
    parts: dict[str, Any] = {"rows": []}
    tools = SimpleNamespace(missing={}, get=lambda _: lambda *_: pytest.fail("compared"))
    sides = {"base": written(tmp_path / "b", requests[:1]), "model": written(tmp_path / "m", requests[:1], (24,))}
    perceptual("LPIPS", sides, tools, parts)  # type: ignore[arg-type]
    assert parts["rows"] == [] and "in 1 of 1 pairs" in tools.missing["LPIPS"]
