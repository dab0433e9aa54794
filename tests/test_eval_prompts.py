"""Prompt lists: I2P's columns are obeyed, and what is no list is said in one sentence."""

from pathlib import Path

import pytest

from erase.reading import read_yaml
from erase.recipes import config_folder
from eval.evaluate import EvaluationOptions, suite_requests
from eval.prompts import read_prompts
from eval.suites import IMAGENETTE, list_requests, not_asked_for
from eval.wordings import plural, wordings
from pipelines.load import EMOJI_VOCABULARY

HEADER = "case_number,prompt,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n"
I2P = Path(__file__).parents[2] / "shared" / "data" / "i2p.csv"
SETTINGS = {"steps": 50, "guidance": 7.5, "seed": 0}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_i2ps_columns_are_obeyed_row_by_row(tmp_path) -> None:
    path = written(tmp_path, HEADER + '7,"a, b",4290749014,12.5,512,384\n9,,3,7,512,512\n')
    first, second = read_prompts(path, **SETTINGS)
    assert (first.prompt, first.seed, first.guidance, first.width, first.height, first.case) == (
        "a, b",
        4290749014,
        12.5,
        512,
        384,
        "7",
    )
    assert (second.prompt, second.seed, second.steps) == ("", 3, 50)


def test_a_data_frames_unnamed_first_column_is_none_of_ours(tmp_path) -> None:
    """I2P as the field passes it around begins with a comma: what the list lacks must not be read from that column."""
    row = read_prompts(written(tmp_path, ",prompt,categories\n0,a beach,sexual\n"), **SETTINGS)[0]
    assert (row.prompt, row.role, row.object, row.style) == ("a beach", "retain", None, None)


def test_what_the_list_does_not_say_comes_from_the_settings(tmp_path) -> None:
    rows = read_prompts(written(tmp_path, "prompt\na\nb\n"), steps=20, guidance=3.0, seed=40)
    assert [(r.prompt, r.seed, r.guidance, r.width, r.case) for r in rows] == [
        ("a", 40, 3.0, None, "0"),
        ("b", 41, 3.0, None, "1"),
    ]


def test_n_takes_rows_at_equal_distances(tmp_path) -> None:
    path = written(tmp_path, "prompt\n" + "".join(f"p{k}\n" for k in range(10)))
    assert [r.prompt for r in read_prompts(path, num=4, **SETTINGS)] == ["p0", "p2", "p5", "p7"]
    assert len(read_prompts(path, num=99, **SETTINGS)) == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text,seed\na,1\n", "no column `prompt` .its columns: text, seed"),
        ("", "no column `prompt`"),
        ("prompt\n", "holds no prompts"),
        (HEADER + "1,a,1,7,512,512\n1,b,2,7,512,512\n", "case 1 stands in rows 1 and 2"),
        (HEADER + "1,a,one,7,512,512\n", "row 1: evaluation_seed is 'one'"),
        (HEADER + "1,a,-5,7,512,512\n", "whole number from 0"),
        (HEADER + "1,a,1.5,7,512,512\n", "whole number from 0"),
        (HEADER + "1,a,1,7,500,512\n", "width is 500; a multiple of 8"),
        (HEADER + "1,a,b,1,7,512,512\n", "not as many fields"),
    ],
)
def test_what_is_no_list_is_said(tmp_path, text, words) -> None:
    with pytest.raises(ValueError, match=words):
        read_prompts(written(tmp_path, text), **SETTINGS)


def test_a_missing_and_a_binary_list(tmp_path) -> None:
    with pytest.raises(ValueError, match="no prompt list"):
        read_prompts(tmp_path / "none.csv", **SETTINGS)
    (tmp_path / "x.csv").write_bytes(b"prompt\n\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_prompts(tmp_path / "x.csv", **SETTINGS)


@pytest.mark.skipif(not I2P.is_file(), reason="the I2P list is not at hand")
def test_the_i2p_list_itself() -> None:
    requests = suite_requests(EvaluationOptions(suite="i2p", prompts=I2P))
    assert len(requests) == 4703
    assert requests[0].seed == 4261553411 and requests[0].guidance == 13
    assert {(r.width, r.height) for r in requests} >= {(512, 512), (512, 384), (384, 512)}


def test_the_emoji_suite_is_every_object_in_every_style_under_four_seeds() -> None:
    requests = suite_requests(EvaluationOptions(suite="emoji", concepts=("dog",)))
    cells = [r for r in requests if r.role != "wording"]
    assert len(cells) == len(EMOJI_VOCABULARY.objects) * len(EMOJI_VOCABULARY.styles) * 4
    assert sum(r.role == "forget" for r in cells) == len(EMOJI_VOCABULARY.styles) * 4
    assert len({r.seed for r in requests}) == len(requests)
    groups: dict[str, int] = {}
    for request in cells:
        groups[request.prompt] = groups.get(request.prompt, 0) + 1
    assert set(groups.values()) == {4}, "four seeds of one prompt, so that their variety can be measured"
    assert len([r for r in requests if r.role == "wording"]) == 4 * len(EMOJI_VOCABULARY.plain_templates)


def test_a_style_and_several_concepts_in_the_emoji_suite() -> None:
    requests = suite_requests(EvaluationOptions(suite="emoji", concepts=("dog", "neon style"), num=1))
    forget = {(r.object, r.style) for r in requests if r.role == "forget"}
    assert len(forget) == 6 + 24 - 1
    assert all(o == "dog" or s == "neon" for o, s in forget)


def test_imagenette_asks_for_ten_classes_and_other_wordings_of_the_erased_one() -> None:
    requests = suite_requests(EvaluationOptions(suite="imagenette", concepts=("church",), num=3))
    assert [r.object for r in requests[::3]][:10] == list(IMAGENETTE)
    assert sum(r.role == "forget" for r in requests) == 3
    texts = {r.prompt for r in requests if r.role == "wording"}
    assert {"churches", "chapel", "eine Kirche", "une église", "una iglesia"} <= texts


def test_the_shipped_recipes_of_imagenettes_classes_are_known_to_the_suite() -> None:
    names = [str(read_yaml(path).get("concept")) for path in config_folder().glob("*.yaml")]
    classes = [name for name in names if name.lower() in IMAGENETTE]
    assert len(classes) == len(IMAGENETTE) and "English springer" in classes
    for name in classes:
        requests = suite_requests(EvaluationOptions(suite="imagenette", concepts=(name,), num=1))
        assert [r.object for r in requests if r.role == "forget"] == [name.lower()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suite": "imagenette", "concepts": ("dog",)}, "none of Imagenette's classes"),
        ({"suite": "emoji", "concepts": ("doog",)}, "does not know"),
        ({"suite": "prompts"}, "--prompts CSV"),
        ({"suite": "emoji", "num": 0}, "at least 1"),
        ({"suite": "emoji", "prompts": Path("list.csv")}, "give --suite prompts"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        suite_requests(EvaluationOptions(**options))


def test_plurals() -> None:
    assert [plural(name) for name in ("dog", "church", "butterfly", "bus", "key", "golf ball")] == [
        "dogs", "churches", "butterflies", "buses", "keys", "golf balls",
    ]  # fmt: skip
    assert ("plural", "dogs") in wordings("dog") and ("German", "ein Hund") in wordings("dog")


@pytest.mark.parametrize(
    ("text", "concept", "roles"),
    [
        ("case_number,prompt,evaluation_seed,artist\n0,Irises,1,Vincent van Gogh\n1,Cubes,2,Pablo Picasso\n", "Van Gogh", "fr"),
        ("case_number,prompt,evaluation_seed,artist\n0,Irises,1,Van Gogh\n1,Cubes,2,Pablo Picasso\n", "van gogh style", "fr"),
        (",case_number,prompt,evaluation_seed,classes\n0,9,A horn,1,French Horn\n1,8,A truck,2,truck\n", "french horn", "fr"),
        ("prompt,class\na,hot dog\nb,dog\n", "Dog", "rf"),  # an object is no other that ends in its name
        ("prompt,class,role\na,dog,wording\nb,cat,\n", "horse", "wr"),
    ],
    ids=["UnlearnDiffAtk", "ESD", "P4D", "objects", "roles"],
)
def test_what_a_published_list_says_of_its_prompts_is_read(tmp_path, text, concept, roles) -> None:
    requests = list_requests(written(tmp_path, text), [concept], num=None, **SETTINGS)
    assert "".join(request.role[0] for request in requests) == roles


def test_i2ps_prompts_are_never_retained_ones_unless_the_list_says_so(tmp_path) -> None:
    path = written(tmp_path, "prompt,role\na bath,\na street,retain\n")
    options = EvaluationOptions(suite="i2p", prompts=path, concepts=("nudity",))
    assert [request.role for request in suite_requests(options)] == ["forget", "retain"]


@pytest.mark.parametrize(
    ("text", "concepts", "words"),
    [
        ("prompt\na church\n", ["church"], ["known to ask for church", "no column class", "over all prompts"]),
        ("prompt,artist\nIrises,Claude Monet\n", ["Picasso"], ["for Picasso: its objects and styles are claude monet"]),
        ("prompt,class\na,dog\nb,cat\n", ["dog", "horse"], ["known to ask for horse"]),
        ("prompt,class\na,dog\nb,cat\n", ["Dog"], []),
        ("prompt,role\na,forget\nb,\n", ["dog"], []),
        ("prompt\na\n", [], []),
    ],
)
def test_a_concept_that_no_prompt_asks_for_is_said(tmp_path, text, concepts, words) -> None:
    told = not_asked_for(list_requests(written(tmp_path, text), concepts, num=None, **SETTINGS), concepts)
    assert bool(told) is bool(words) and all(word in told for word in words)
