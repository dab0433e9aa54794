"""A picture depends on its own request alone: not on order, batch, resuming, or the number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.generate import draw_share, finished, gather, generate, noted, to_pixels
from eval.pictures import (
    Picture,
    Request,
    Stream,
    chunks,
    hash_pixels,
    read_manifest,
    read_pixels,
    write_manifest,
    write_png,
)

MODEL = "m" * 64


def asked(num: int, **more) -> list[Request]:
    objects = ("dog", "cat", "car")
    return [
        Request(prompt=f"a {objects[k % 3]}", seed=100 + k, steps=2, object=objects[k % 3], **({"guidance": 3.0} | more))
        for k in range(num)
    ]


def hashes(folder: Path) -> dict[int, str]:
    return {picture.seed: hash_pixels(read_pixels(folder / picture.file)) for picture in read_manifest(folder)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_pipeline) -> dict[int, str]:
    from conftest import family_of

    folder = tmp_path_factory.mktemp("reference")
    generate(family_of(tiny_pipeline), asked(13), folder, model=MODEL, batch_size=13)
    return hashes(folder)


def test_the_manifest_tells_how_to_draw_each_picture_again(tiny_family, tmp_path) -> None:
    pictures = generate(tiny_family, asked(3), tmp_path, model=MODEL, batch_size=2)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.jsonl", "00000.png", "00001.png", "00002.png"}
    line = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[2])
    assert {k: line[k] for k in ("file", "prompt", "seed", "guidance", "steps", "model", "batch_size")} == {
        "file": "00002.png", "prompt": "a car", "seed": 102, "guidance": 3.0, "steps": 2, "model": MODEL, "batch_size": 2,
    }  # fmt: skip
    by_hand = tiny_family.pipeline(
        ["a car"] * 8,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(102) for _ in range(8)],
        output_type="np",
    ).images[0]
    assert hash_pixels((by_hand * 255).round().astype(np.uint8)) == pictures[2].sha256
    assert hash_pixels(read_pixels(tmp_path / "00002.png")) == pictures[2].sha256
    assert len(set(hashes(tmp_path).values())) == 3, "three requests, three pictures"


@pytest.mark.parametrize("batch_size", [1, 5, 8, 12])
@pytest.mark.parametrize("order", [1, -1])
def test_batch_size_and_order_do_not_change_a_pixel(reference, new_family, tmp_path, batch_size, order) -> None:
    generate(new_family(), asked(13)[::order], tmp_path, model=MODEL, batch_size=batch_size)
    assert hashes(tmp_path) == reference


def test_two_processes_draw_what_one_draws(reference, new_family, tmp_path) -> None:
    for place in (0, 1):
        draw_share(new_family(), asked(13), tmp_path, {}, MODEL, 3, (place, 2))
    shares = [len((tmp_path / f"manifest.{place}.jsonl").read_text().splitlines()) for place in (0, 1)]
    assert sorted(shares) == [6, 7]
    gather(tmp_path, noted(tmp_path, asked(13), MODEL))
    assert hashes(tmp_path) == reference
    assert [picture.seed for picture in read_manifest(tmp_path)] == [100 + k for k in range(13)]


def test_an_interrupted_drawing_goes_on_and_draws_only_what_is_missing(reference, new_family, tmp_path) -> None:
    class StopError(Exception):
        pass

    def stop(_: int) -> None:
        if len(list(tmp_path.glob("*.png"))) >= 6:
            raise StopError

    with pytest.raises(StopError):
        generate(new_family(), asked(13), tmp_path, model=MODEL, batch_size=3, progress=stop)
    with (tmp_path / "manifest.0.jsonl").open("a") as notes:
        notes.write('{"file": "00009')  # a line cut off by a crash
    Image.new("RGB", (16, 16)).save(tmp_path / "00001.png")  # and a picture that is not what was drawn
    assert set(finished(tmp_path, asked(13), MODEL)) == {0, 2, 3, 4, 5}
    before = (tmp_path / "00002.png").stat().st_mtime_ns
    counts: list[int] = []
    generate(new_family(), asked(13), tmp_path, model=MODEL, batch_size=3, progress=counts.append)
    assert hashes(tmp_path) == reference
    assert (tmp_path / "00002.png").stat().st_mtime_ns == before
    assert counts[0] == 5 and sum(counts) == 13


@pytest.mark.parametrize("change", ["model", "steps", "guidance", "seed"])
def test_pictures_of_another_model_or_other_settings_are_drawn_again(new_family, tmp_path, change) -> None:
    generate(new_family(), asked(2), tmp_path, model=MODEL, batch_size=2)
    model = "n" * 64 if change == "model" else MODEL
    settings = {"steps": 3, "guidance": 2.0, "seed": 7}
    requests = asked(2)
    if change != "model":
        requests = [request.model_copy(update={change: settings[change]}) for request in requests]
    assert finished(tmp_path, requests, model) == {}
    generate(new_family(), requests, tmp_path, model=model, batch_size=2)
    assert set(finished(tmp_path, requests, model)) == {0, 1}


def test_guidance_and_size_are_each_pictures_own(new_family, tmp_path) -> None:
    """As I2P asks: every row its own guidance and size, whatever stands beside it."""
    base = asked(4)
    requests = [
        base[0],
        base[1].model_copy(update={"width": 24, "height": 16}),
        base[2].model_copy(update={"guidance": 7.0}),
        base[3].model_copy(update={"width": 24, "height": 16}),
    ]
    generate(new_family(), requests, tmp_path / "all", model=MODEL, batch_size=8)
    assert [read_pixels(tmp_path / "all" / f"0000{k}.png").shape[:2] for k in range(4)] == [
        (16, 16),
        (16, 24),
        (16, 16),
        (16, 24),
    ]
    generate(new_family(), requests[1:2], tmp_path / "one", model=MODEL, batch_size=8)
    assert hashes(tmp_path / "one")[101] == hashes(tmp_path / "all")[101]


def test_to_pixels_rounds_and_clips() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1 / 127.5, 1.0, 9.0])
    assert to_pixels(values.view(1, 1, 1, 6).expand(1, 3, 1, 6))[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


def a_picture(name: str, pixels: np.ndarray, seed: int = 0) -> Picture:
    facts = {"prompt": "x", "seed": seed, "guidance": 1.0, "steps": 1, "batch_size": 1}
    return Picture(**facts, file=name, model=MODEL, sha256=hash_pixels(pixels))


def test_a_stream_names_what_it_cannot_read_and_goes_on(tmp_path) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(5)]
    pictures = [a_picture(f"{k}.png", image, k) for k, image in enumerate(pixels)]
    for picture, image in zip(pictures, pixels, strict=True):
        write_png(image, tmp_path / picture.file)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:80])
    write_png(pixels[0], tmp_path / "2.png")
    (tmp_path / "3.png").unlink()
    stream = Stream(tmp_path, pictures, batch_size=2)
    seen = [(row.file, image) for rows, batch in stream for row, image in zip(rows, batch, strict=True)]
    assert [name for name, _ in seen] == ["0.png", "4.png"]
    assert all(np.array_equal(image, pixels[k]) for (_, image), k in zip(seen, (0, 4), strict=True))
    assert list(stream.unreadable) == ["1.png", "2.png", "3.png"]
    assert "cannot be read" in stream.unreadable["1.png"] and "hash differs" in stream.unreadable["2.png"]
    assert "3.png" in stream.unreadable["3.png"]


def test_pictures_of_every_kind_become_8_bit_rgb(tmp_path) -> None:
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    rgb = np.stack([ramp, ramp.T, 255 - ramp], 2)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp.astype(np.uint16) * 256 + 77).save(tmp_path / "grey16.png")
    Image.fromarray(np.dstack([rgb, ramp])).save(tmp_path / "alpha.png")
    Image.fromarray(rgb).quantize(64, dither=Image.Dither.NONE).save(tmp_path / "palette.png")
    grey = np.repeat(ramp[:, :, None], 3, 2)
    assert np.array_equal(read_pixels(tmp_path / "grey.png"), grey)
    assert np.array_equal(read_pixels(tmp_path / "grey16.png"), grey)
    assert np.array_equal(read_pixels(tmp_path / "alpha.png"), rgb)
    assert read_pixels(tmp_path / "palette.png").shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: Image.new("RGB", (1, 1)).save(p), "1 x 1"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: p.write_text("not a picture"), "cannot be read"),
        (lambda p: None, "cannot be read"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, make, words) -> None:
    make(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=rf"odd\.png .*{words}"):
        read_pixels(tmp_path / "odd.png")


def test_a_missing_and_a_damaged_manifest_are_said(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.jsonl"):
        read_manifest(tmp_path)
    write_manifest([a_picture("0.png", np.zeros((8, 8, 3), np.uint8))], tmp_path)
    (tmp_path / "manifest.jsonl").write_text((tmp_path / "manifest.jsonl").read_text() + '{"file": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_manifest(tmp_path)


def test_chunks() -> None:
    assert list(chunks([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(chunks([], 2)) == []


STREAMING = """
import resource, sys
from pathlib import Path
from eval.pictures import Stream, read_manifest

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

folder = Path(sys.argv[1])
pictures = read_manifest(folder) * 100
before, seen = peak(), 0
for rows, batch in Stream(folder, pictures):
    seen += sum(image.nbytes for image in batch)
print(len(pictures), seen / 2**30, peak() - before)
"""


@pytest.mark.slow
def test_ten_thousand_pictures_never_stand_in_memory_together(tmp_path) -> None:
    """10,000 pictures of 256 x 256 are 1.8 GB as 8-bit values and 7.3 GB as floats; reading them takes a few MB."""
    pixels = [np.full((256, 256, 3), k, np.uint8) for k in range(100)]
    pictures = [a_picture(f"{k}.png", image, k) for k, image in enumerate(pixels)]
    for picture, image in zip(pictures, pixels, strict=True):
        write_png(image, tmp_path / picture.file)
    write_manifest(pictures, tmp_path)
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", STREAMING, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    num, read_gb, grown_gb = map(float, done.stdout.split())
    assert num == 10_000 and read_gb > 1.8
    assert grown_gb < 0.2
