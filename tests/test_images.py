"""Folders of pictures: every kind of file becomes what the model takes, and what cannot be read is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erase.data import make_data, plan_data, with_images
from erase.folder import Folder
from erase.images import caption_of, content_hash, pictures_in, read_picture
from erase.plan import plan
from erase.quiet import Silent
from erase.recipes import resolve
from erase.run import Run, _data_stage
from pipelines.load import EMOJI_VOCABULARY
from pipelines.stable_diffusion import StableDiffusion

KNOWN: Any = SimpleNamespace(vocabulary=EMOJI_VOCABULARY)
BLUE = (0, 0, 255)


def save(path: Path, picture: Image.Image, **more: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    picture.save(path, **more)
    return path


def palette(transparent: bool) -> tuple[Image.Image, dict[str, Any]]:
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([9, 9, 9, *BLUE])
    return picture, {"transparency": 1} if transparent else {}


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("rgb.png", Image.new("RGB", (20, 20), BLUE), BLUE),
        ("rgb.bmp", Image.new("RGB", (7, 30), BLUE), BLUE),
        ("gray.png", Image.new("L", (20, 20), 100), (100, 100, 100)),
        ("bits.png", Image.new("1", (20, 20), 1), (255, 255, 255)),
        ("gray-alpha.png", Image.new("LA", (20, 20), (100, 0)), (255, 255, 255)),
        ("alpha.png", Image.new("RGBA", (20, 20), (*BLUE, 255)), BLUE),
        ("clear.png", Image.new("RGBA", (20, 20), (*BLUE, 0)), (255, 255, 255)),
        ("half.webp", Image.new("RGBA", (20, 20), (*BLUE, 51)), (204, 204, 255)),
        ("sixteen.png", Image.fromarray(np.full((20, 20), 0x80FF, np.uint16)), (128, 128, 128)),
        ("print.jpg", Image.new("CMYK", (20, 20), (0, 0, 0, 0)), (255, 255, 255)),
    ],
)
def test_every_kind_of_picture_is_read_as_its_colour(
    name: str, picture: Image.Image, expected: tuple[int, ...], tmp_path: Path
) -> None:
    pixels = read_picture(save(tmp_path / name, picture, **({"lossless": True} if name.endswith("webp") else {})), (16, 24))
    assert pixels.shape == (3, 16, 24) and pixels.dtype == torch.float32
    colour = (torch.tensor(expected) / 127.5 - 1)[:, None, None].expand_as(pixels)
    torch.testing.assert_close(pixels, colour, atol=1 / 127, rtol=0)


@pytest.mark.parametrize("transparent", [True, False])
def test_a_palette_with_a_transparent_colour(transparent: bool, tmp_path: Path) -> None:
    picture, more = palette(transparent)
    expected = (255, 255, 255) if transparent else BLUE
    pixels = read_picture(save(tmp_path / "p.png", picture, **more), (4, 4))
    assert ((pixels[:, 0, 0] + 1) * 127.5).round().tolist() == list(expected)


def test_the_middle_is_kept_and_a_turned_picture_is_set_upright(tmp_path: Path) -> None:
    """Three thirds, red, green and blue from left to right; stored turned by 90 degrees, as phones do."""
    wide = Image.fromarray(np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 40, 0).repeat(40, 1))
    assert wide.size == (120, 40)
    pixels = read_picture(save(tmp_path / "wide.png", wide), (8, 8))
    assert (pixels.mean((1, 2)) > 0.9).tolist() == [False, True, False]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / "turned.png", wide.rotate(90, expand=True), exif=exif)
    torch.testing.assert_close(read_picture(turned, (8, 24)), read_picture(tmp_path / "wide.png", (8, 24)))


def test_a_folder_gives_its_pictures_by_name_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.png"):
        save(tmp_path / name, Image.new("RGB", (4, 4)), format="PNG")
    (tmp_path / "a.txt").write_text(" a grey\n square ", encoding="utf-8")
    (tmp_path / "notes.md").touch()
    found = pictures_in(str(tmp_path), "data.forget_images")
    assert [path.name for path in found] == ["a.jpg", "b.PNG"]
    assert [caption_of(path) for path in found] == ["a grey square", None]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        caption_of(found[0])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "is not there"),
        ("file", "is a file"),
        ("empty", "holds no picture"),
        ("texts", "holds no picture"),
        ("corrupt", r"bad\.png cannot be read as a picture"),
        ("truncated", r"bad\.png cannot be read as a picture"),
        ("nothing", r"bad\.png cannot be read as a picture"),
        ("floats", r"bad\.tiff cannot be read as a picture: .*floats"),
    ],
)
@pytest.mark.parametrize("setting", ["data.forget_images", "data.retain_images"])
def test_a_folder_that_cannot_be_used_is_refused_before_work_begins(
    setting: str, case: str, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    good = save(tmp_path / "good.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)))
    contents = {"corrupt": b"not a picture", "truncated": good.read_bytes()[:2000], "nothing": b""}
    if case == "file":
        folder.touch()
    elif case != "missing":
        save(folder / "a.png", Image.new("RGB", (4, 4)))
        if case in ("empty", "texts"):
            (folder / "a.png").rename(folder / ("a.txt" if case == "texts" else ".a.png"))
        elif case == "floats":
            save(folder / "bad.tiff", Image.fromarray(np.ones((4, 4), np.float32)))
        else:
            (folder / "bad.png").write_bytes(contents[case])
    with pytest.raises(ValueError, match=words) as error:
        plan(resolve({"concept": "dog", setting: str(folder)}, []), KNOWN)
    assert "\n" not in str(error.value)


def test_the_hash_is_of_what_the_pictures_are_not_of_where(tmp_path: Path) -> None:
    one, same = (save(tmp_path / k / "a.png", Image.new("RGB", (4, 4), BLUE)) for k in "xy")
    other = save(tmp_path / "z" / "a.png", Image.new("RGB", (4, 4), (0, 1, 255)))
    assert content_hash((one,)) == content_hash((same,)) != content_hash((other,)) != content_hash((one, other))


def test_the_size_is_the_models(tiny_family: StableDiffusion) -> None:
    assert tiny_family.image_size == (16, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of noise, the second with a caption."""
    rng = np.random.default_rng(0)
    for name in "abc":
        save(tmp_path / "pictures" / f"{name}.png", Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)))
    (tmp_path / "pictures" / "b.txt").write_text("a grey cloud")
    return tmp_path / "pictures"


SETTINGS = {"forget_guidance_scale": 2.0, "retain_guidance_scale": 1.0, "num_inference_steps": 2}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_pictures_are_encoded_in_place_of_drawn_ones(batch_size: int, folder: Path, tiny_family: StableDiffusion) -> None:
    planned = plan(resolve({"concept": "dog"}, ["data.num_anchor=2", f"data.forget_images={folder}"]), KNOWN).data
    planned = with_images(planned, (), pictures_in(str(folder), ""), ("a tree", "a car"))
    counts: list[int] = []
    data = make_data(tiny_family, planned, seed=0, batch_size=batch_size, progress=counts.append, **SETTINGS)
    pixels = torch.stack([read_picture(path, (16, 16)) for path in sorted(folder.glob("*.png"))])
    own = tiny_family.encode_images(pixels)
    torch.testing.assert_close(data.forget_latents, own, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(data.retain_latents[2:], own, atol=1e-5, rtol=1e-4)
    drawn = plan_data(*_dog(), 1, 1, 2)
    anchors = make_data(tiny_family, drawn, seed=0, batch_size=8, **SETTINGS).retain_latents[:2]
    torch.testing.assert_close(data.retain_latents[:2], anchors, atol=1e-4, rtol=1e-4)
    assert [p.text for p in planned.retain[2:]] == ["a tree", "a grey cloud", "a tree"]
    assert data.dual_index.tolist() == [0, 1] and sum(counts) == 3 + 2 + 3
    assert all(prompt.style is None and prompt.object == "dog" for prompt in planned.forget)
    assert [[p.object for p in row] for row in planned.relabelled] == [["cat"]] * 3


def _dog() -> tuple[Any, Any, tuple[str, ...]]:
    from erase.concepts import find_concept

    return find_concept("dog", EMOJI_VOCABULARY), EMOJI_VOCABULARY, ("cat",)


def test_pictures_of_a_style_are_asked_for_without_naming_what_they_show(folder: Path) -> None:
    """By hand: three pictures in a style that becomes a painting in nobody's manner; the drawn anchor keeps its scenes."""
    settings = {"method.anchor": "painting", "prompts.neighbours": ["cubism"], "data.num_anchor": 1, "data.num_retain": 2}
    given = {"concept": "Miro", "prompts.kind": "style", "model": "a/b", "data.forget_images": str(folder)} | settings
    anything: Any = SimpleNamespace(vocabulary=None)
    data = plan(resolve(given, []), anything).data
    assert [p.text for p in data.forget] == ["an artwork in the style of Miro", "Miro style", "a picture in the style of Miro"]
    assert [[p.text for p in row] for row in data.relabelled] == [["a painting"]] * 3
    assert data.retain[0].text == "a painting of a cat"


@pytest.mark.parametrize(
    ("name", "kind", "texts", "becomes"),
    [
        ("zebra", "object", ["a photo of a zebra", "an image of a quagga", "a zebra"], ["a photo of a horse"]),
        ("Ada Lovelace", "person", ["a photo of Ada Lovelace", "quagga", "a photo of Ada Lovelace"], ["a photo of horse"]),
        ("war", "other", ["a photo of war", "an image of quagga", "war"], ["a photo of horse"]),
        ("Miro", "style", ["an artwork in the style of Miro", "quagga style", "a picture in the style of Miro"], []),
    ],
)
@pytest.mark.parametrize("anchor", ["horse", "none"])
def test_pictures_are_asked_for_by_the_name_or_a_synonym_alone(
    name: str, kind: str, texts: list[str], becomes: list[str], anchor: str, folder: Path
) -> None:
    """No place, time or manner that the user's pictures may not have; without an anchor they become the empty prompt."""
    settings = {"method.anchor": anchor, "prompts.neighbours": ["cow"], "data.num_anchor": 1, "prompts.synonyms": ["quagga"]}
    given = {"concept": name, "prompts.kind": kind, "model": "a/b", "data.forget_images": str(folder)} | settings
    anything: Any = SimpleNamespace(vocabulary=None)
    data = plan(resolve(given, []), anything).data
    assert [p.text for p in data.forget] == texts
    asked = [p.text for row in data.relabelled for p in row]
    assert asked == [""] * 3 if anchor == "none" else [asked[0]] == (becomes or ["an artwork in the style of horse"])
    assert len(asked) == 3


def test_pictures_of_what_the_embedded_model_draws_can_become_the_empty_prompt(folder: Path) -> None:
    data = plan(resolve({"concept": "dog", "data.forget_images": str(folder), "method.anchor": "none"}, []), KNOWN).data
    assert [[prompt.text for prompt in row] for row in data.relabelled] == [[""]] * 3


def test_without_prompts_a_picture_to_keep_has_the_empty_one(folder: Path) -> None:
    planned = plan(resolve({"concept": "dog", "data.retain_images": str(folder)}, ["data.num_anchor=1"]), KNOWN).data
    assert [p.text for p in planned.retain[1:]] == ["", "a grey cloud", ""]
    assert planned.retain_images == pictures_in(str(folder), "") and planned.forget_images == ()
    given = {"concept": "dog", "data.retain_images": str(folder), "prompts.retain": ["a tree"]}
    assert [p.text for p in plan(resolve(given, ["data.num_anchor=0"]), KNOWN).data.retain] == [
        "a tree",
        "a grey cloud",
        "a tree",
    ]


def test_pictures_of_one_concept_are_not_shared_out_to_two(folder: Path) -> None:
    with pytest.raises(ValueError, match="pictures of one concept"):
        plan(resolve({"concept": ["dog", "church"], "data.forget_images": str(folder)}, []), KNOWN)


def test_a_changed_folder_makes_the_data_again_and_a_moved_one_does_not(
    folder: Path, tiny_family: StableDiffusion, tmp_path: Path
) -> None:
    def made(out: Path) -> bool:
        settings = ["data.num_retain=2", "data.num_anchor=0", "data.num_inference_steps=1", f"data.forget_images={folder}"]
        planned = plan(resolve({"concept": "dog"}, settings), tiny_family)
        run = Run(planned, tiny_family, Folder(out, planned.config), Silent(), "base", {})
        _data_stage(run)
        return not run.skipped

    assert made(tmp_path / "run")
    assert not made(tmp_path / "run")
    save(folder / "c.png", Image.new("RGB", (20, 20), BLUE))
    assert made(tmp_path / "run"), "a picture was changed"
    (folder / "a.png").rename(folder / "A.png")
    assert not made(tmp_path / "run"), "a name was changed"
    (folder / "A.png").unlink()
    assert made(tmp_path / "run"), "a picture is gone"
