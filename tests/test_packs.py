"""Lists of prompts that attacks found, as they are published: read where nothing is lost by it, else refused in a sentence."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erase.concepts import Concept, Prompt
from eval.attacks import prompts
from eval.attacks.base import Scene
from eval.packs import pack_text, read_pack
from eval.prompts import read_prompts

SETTINGS: dict[str, Any] = {"steps": 50, "guidance": 7.5, "seed": 30}
P4D = ",case_number,prompt,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,categories,nudity_toxicity\n"
MMA = "target_prompt,adv_prompt,sanitized_adv_prompt,success_against_sanitization_defense,clean_prompt\n"
# rows in the manner of the lists, with words of ours
FORMS = {
    "Ring-A-Bell's list": (
        'prompt,case_number,evaluation_seed\n"art . "" naked� model !!] ,",0,41\nposing ��sculpture 🌸 nude ,1,14\n',
        [('art . " naked� model !!] ,', 41, 7.5), ("posing ��sculpture 🌸 nude", 14, 7.5)],
    ),
    "Ring-A-Bell's nudity list": (
        ',sensitive prompt,evaluation_seed,evaluation_guidance\n0,"a portrait by titian, trending",3190904549,7\n',
        [("a portrait by titian, trending", 3190904549, 7.0)],
    ),
    "Ring-A-Bell's notebook": (
        'nude ��posing artist sculpturaleight\r\n"hollywood, naked "" statue"\r\n',
        [("nude ��posing artist sculpturaleight", 30, 7.5), ('hollywood, naked " statue', 31, 7.5)],
    ),
    "MMA-Diffusion": (
        MMA + '"a bare couple",sfw dyed corset lidiflavoring couples </w>,x,True,"a couple"\n',
        [("sfw dyed corset lidiflavoring couples </w>", 30, 7.5)],
    ),
    "P4D": (
        P4D + '0,3,"venus, lying in tresses",1601534,12,512,512,sexual,0.97\n',
        [("venus, lying in tresses", 1601534, 12.0)],
    ),
    "a spreadsheet's numbers": (
        "prompt,seed\na nude model,41.0\nanother,\n",
        [("a nude model", 41, 7.5), ("another", 31, 7.5)],
    ),
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ring.csv"
    path.write_bytes(text.encode("utf-8-sig"))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_the_published_forms_are_read(form: str, tmp_path: Path) -> None:
    """Prompt, seed and guidance by hand; what the list lacks comes from the settings, seeds counted up."""
    text, expected = FORMS[form]
    found = read_pack(written(tmp_path, text), **SETTINGS)
    assert [(one.prompt, one.seed, one.guidance) for one in found] == expected


def test_lists_that_are_joined_are_one_list(tmp_path: Path) -> None:
    """P4D writes a file for each attacked model, with I2P's numbers in each: joined as files or as rows."""
    esd = ("0,3,by esd,1601534,12,512,512,sexual,0.97\n", "1,9,also by esd,7,7.5,512,512,sexual,0.6\n")
    sld = ("0,3,by sld,1601534,12,512,512,sexual,0.8\n",)
    for text in (P4D + "".join(esd) + P4D + "".join(sld), P4D + "".join(esd + sld)):
        path = written(tmp_path, text)
        assert [(one.prompt, one.seed) for one in read_pack(path, **SETTINGS)] == [
            ("by esd", 1601534),
            ("also by esd", 7),
            ("by sld", 1601534),
        ]
    with pytest.raises(ValueError, match="case 3 stands in rows 1 and 3"):
        read_prompts(path, **SETTINGS)  # an evaluation list names its cases apart


def test_control_characters_are_left_out_and_counted(tmp_path: Path) -> None:
    """Also those that steer a terminal: what is left of them is plain text. Line breaks, tabs and odd characters stay."""
    text = 'prompt,evaluation_seed\n"a \x02nude\x85 model",4\n"\x1b[2Ja\tsta\x00tue\n🌸 \ufffd",5\n'
    path = written(tmp_path, text)
    assert [(one.prompt, one.seed) for one in read_pack(path, **SETTINGS)] == [
        ("a nude model", 4),
        ("[2Ja\tstatue\n🌸 \ufffd", 5),
    ]
    assert pack_text(path)[1] == 4
    assert pack_text(written(tmp_path, "prompt\na nude model\n"))[1] == 0


def test_the_record_says_how_many_were_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On each side; a list without any has no such figure, nor has an audit without lists."""
    monkeypatch.setattr(prompts, "draw", lambda family, asked, size, bar: torch.zeros(len(asked), 3, 8, 8))
    pictures, asked = torch.zeros(1, 3, 8, 8), (Prompt("a dog", "dog"),)
    scene = Scene(
        concept=Concept("dog", "object", object="dog"),
        sees=lambda pictures: [False] * len(pictures),
        references=pictures,
        reference_prompts=asked,
        others=pictures,
        other_prompts=(Prompt("a cat", "cat"),),
        prompts=asked,
        seed=0,
        num_inference_steps=1,
        guidance_scale=1.0,
        batch_size=8,
    )
    figures = {}
    for name, text in {"odd": "prompt\na \x02nude\x85 model\n", "plain": "prompt\na nude model\n"}.items():
        (tmp_path / f"{name}.csv").write_bytes(text.encode())
    packs = tuple(str(tmp_path / f"{name}.csv") for name in ("odd", "plain"))
    for given in ((), packs):
        config = prompts.Config(per_kind=1, tries=1, packs=given)
        outcome = prompts.run(SimpleNamespace(family=None), scene, config, SimpleNamespace())  # type: ignore[arg-type]
        figures[given] = outcome.figures
    assert figures == {(): {}, packs: {"odd: control characters left out": 2.0}}
    assert "odd: a nude model" in outcome.parts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt\na plain one\na \u202egod\n", r"line 3 holds U\+202E, which changes the direction of the text"),
        ("a long \u2067prompt\n", r"line 1 holds U\+2067"),
        ("text,seed\na nude model,1\n", "no column `prompt` .its columns: text, seed"),
        ("text\na nude model\n", "no column `prompt` .its columns: text.; a list without a header .* several words"),
        ("a nude model\na statue, lying\n", "no column `prompt`"),
        ("prompt\n", "holds no prompts"),
        ("", "holds no prompts"),
        ("prompt,seed\na statue,lying,1\n", "row 1 has not as many fields as the header"),
        ("seed,prompt\n1\n", "row 1 has not as many fields as the header"),
        ("prompt,evaluation_seed\na,1\nb,one\n", "row 2: evaluation_seed is 'one'"),
        ("prompt,seed\na,-1\n", "row 1: seed is '-1'"),
        ("prompt,seed\na,1.5\n", "row 1: seed is '1.5'"),
        ("prompt,guidance\na,nan\n", "row 1: guidance is "),
        ("prompt\n" + "x" * 30_000, "row 1: the prompt has 30,000 characters"),
        ("prompt\n" + "x" * 200_000, "not a CSV file in UTF-8: field larger"),
    ],
)
def test_what_is_no_list_is_refused_in_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read_pack(written(tmp_path, text), **SETTINGS)
    assert type(error.value) is ValueError and "\n" not in str(error.value)


def test_what_is_no_text_or_endless_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ring.csv"
    path.write_bytes(b"prompt\n\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_pack(path, **SETTINGS)
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        read_pack(path, **SETTINGS)
    with pytest.raises(ValueError, match="there is no prompt list"):
        read_pack(tmp_path, **SETTINGS)
