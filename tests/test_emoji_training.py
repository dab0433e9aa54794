"""The embedded model's training scripts: loop, tokenizer, captions, pictures, judge."""

import copy
import json
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pipelines.emoji import train
from pipelines.emoji.autoencoder import build_autoencoder, encode
from pipelines.emoji.denoiser import build_scheduler, build_unet
from pipelines.emoji.fit import fit
from pipelines.emoji.judge import NONE, Judge, corrupt, pictures_of_nothing, strange_manners
from pipelines.emoji.render import BACKGROUNDS, SIZE, Drawings, compose, grounds
from pipelines.emoji.text import PromptCache, labelled_prompt, tokenize
from pipelines.emoji.tokenizer import MAX_LENGTH, build_tokenizer, byte_symbols
from pipelines.emoji.vocabulary import OBJECTS, STRANGERS, STYLES, all_captions, caption, with_article
from pipelines.load import EMOJI_VOCABULARY, EMOJI_WEIGHTS, load
from pipelines.stable_diffusion import StableDiffusion

STEPS, SETTINGS = 12, {"batch_size": 4, "learning_rate": 0.05, "decay_from": 0.5}


def problem() -> tuple[nn.Module, Callable[[torch.Generator, int], tuple[Tensor, dict[str, float]]]]:
    """A tiny module with a frozen weight, and a loss that draws its batch from the generator."""
    torch.manual_seed(21)
    module = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))
    module[0].bias.requires_grad_(False)

    def loss_fn(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        inputs = torch.randn(4, 3, generator=generator)
        loss = (module(inputs) - inputs[:, :2] * 50).square().sum()  # steep enough to be clipped
        return loss, {"loss": loss.item(), "index": float(step)}

    return module, loss_fn


def raw_weights(seed: int = 0) -> list[list[Tensor]]:
    """The weights after each step by torch's own AdamW, with the docstring's schedule and clipping at 1."""
    module, loss_fn = problem()
    values = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(values, betas=(0.9, 0.99), weight_decay=1e-3)
    generator, rows = torch.Generator(), []
    for step in range(STEPS):
        generator.manual_seed(seed * 1_000_003 + step)
        tail = max(0.0, 2 * (step / STEPS - 0.5))
        optimizer.param_groups[0]["lr"] = 0.05 * (step + 1) / 100 * (1 - 0.98 * tail)
        optimizer.zero_grad()
        loss_fn(generator, step)[0].backward()
        nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        rows.append([value.detach().clone() for value in values])
    return rows


def fitted(out: Path, **changes: object) -> list[Tensor]:
    module, loss_fn = problem()
    fit({"m": module}, loss_fn, out=out, steps=STEPS, **(SETTINGS | changes))
    return [p.detach() for p in module.parameters() if p.requires_grad]


def test_without_an_average_it_is_adamw(tmp_path: Path) -> None:
    for value, expected in zip(fitted(tmp_path / "m", ema=0.0), raw_weights()[-1], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_what_is_left_is_the_moving_average(tmp_path: Path) -> None:
    """Decay min(.5, (k + 1) / (k + 11)) at step k, from the weights before training, written out here."""
    module, _ = problem()
    averages = [p.detach().clone() for p in module.parameters() if p.requires_grad]
    for k, weights in enumerate(raw_weights()):
        decay = min(0.5, (k + 1) / (k + 11))
        averages = [decay * average + (1 - decay) * w for average, w in zip(averages, weights, strict=True)]
    for value, expected in zip(fitted(tmp_path / "m", ema=0.5), averages, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stopped_at", [1, 7, 11])
def test_resumed_is_uninterrupted(stopped_at: int, tmp_path: Path) -> None:
    expected = fitted(tmp_path / "whole")
    module, loss_fn = problem()

    def stops(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stopped_at:
            raise KeyboardInterrupt
        return loss_fn(generator, step)

    with pytest.raises(KeyboardInterrupt):
        fit({"m": module}, stops, out=tmp_path / "m", steps=STEPS, checkpoint_every_s=-1, **SETTINGS)
    for value, whole in zip(fitted(tmp_path / "m"), expected, strict=True):
        assert torch.equal(value, whole)


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    expected = fitted(tmp_path / "m")
    module, _ = problem()

    def never(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        raise AssertionError("a step was taken")

    fit({"m": module}, never, out=tmp_path / "m", steps=STEPS, **SETTINGS)
    trained = [p for p in module.parameters() if p.requires_grad]
    assert all(torch.equal(p, value) for p, value in zip(trained, expected, strict=True))


def test_the_seed_matters_and_the_frozen_weight_stays(tmp_path: Path) -> None:
    frozen = copy.deepcopy(problem()[0][0].bias)
    module, loss_fn = problem()
    fit({"m": module}, loss_fn, out=tmp_path / "m", steps=STEPS, seed=1, **SETTINGS)
    assert torch.equal(module[0].bias, frozen)
    assert not torch.equal(module[0].weight, fitted(tmp_path / "other")[0])


def test_the_log_has_means_and_samples(tmp_path: Path) -> None:
    fitted(tmp_path / "m", log_every=5)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [20, 40, 48]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert [line["index"] for line in lines] == [2.0, 7.0, 10.5], "the means are not of the steps since the last line"


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    module, loss_fn = problem()

    def spoilt(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, record = loss_fn(generator, step)
        return (loss * float("nan") if step == 4 else loss), record

    with pytest.raises(ValueError, match="the loss is nan at step 4; the last checkpoint is kept"):
        fit({"m": module}, spoilt, out=tmp_path / "m", steps=STEPS, checkpoint_every_s=-1, **SETTINGS)
    for value, whole in zip(fitted(tmp_path / "m"), fitted(tmp_path / "whole"), strict=True):
        assert torch.equal(value, whole)


TEXTS = [
    "a dog, neon style",
    "Собака на пляже",
    "犬の写真",
    "كلب صغير",
    "כלב",
    "강아지",
    "ภาพสุนัข",
    "🐶🔥👩‍🚀",
    "naïve café ½ ² \uff46\uff55\uff4c\uff4c",
    "e\u0301",
    "\x00\x01\x07",
    "\u200b\u202e\ufeff",
    ' ,.!?"$%&/()=[]{}',
    "12345",
    "don't it's",
    "</w> <b>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_script_is_tokenized_without_loss(text: str, tokenizer: CLIPTokenizer) -> None:
    """No unknown token; but for case and white space the text comes back."""
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]
    back = tokenizer.decode(ids, skip_special_tokens=True)
    assert re.sub(r"\s", "", back) == re.sub(r"\s", "", unicodedata.normalize("NFC", text).lower())


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_becomes_24_tokens(text: str, tokenizer: CLIPTokenizer) -> None:
    tokens = tokenize(tokenizer, [text])
    assert tokens.shape == (1, MAX_LENGTH)
    assert tokens.min() >= 0 and tokens.max() < len(tokenizer)
    assert tokens[0, 0] == tokenizer.bos_token_id and tokenizer.eos_token_id in tokens[0]


@pytest.mark.parametrize("text", ["", "dog " * 2500, "犬" * 10_000])
def test_the_empty_and_the_endless_prompt(text: str, tiny_family: StableDiffusion) -> None:
    embeds = tiny_family.encode_prompts([text, "a dog"])["prompt_embeds"]
    assert embeds.shape == (2, MAX_LENGTH, 16)
    assert torch.isfinite(embeds).all()


def test_no_caption_is_truncated_and_no_two_are_alike(tokenizer: CLIPTokenizer) -> None:
    rows = [tuple(ids) for ids in tokenizer(all_captions()).input_ids]
    assert max(map(len, rows)) <= MAX_LENGTH
    assert len(set(rows)) == len(rows)


def test_the_byte_symbols_are_those_of_byte_level_bpe() -> None:
    symbols = byte_symbols()
    assert len(symbols) == 256 and set(symbols) == set(ByteLevel.alphabet())
    assert [symbols[ord(c)] for c in "aZ9!~"] == list("aZ9!~") and symbols[ord(" ")] == "Ġ"


def test_the_tokenizer_is_built_the_same_each_time(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    again = build_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert len(tokenize(tokenizer, ["x"])[0]) == again.model_max_length == MAX_LENGTH


def test_captions_are_all_among_all_captions_and_as_often_as_said() -> None:
    """65 % name object and style, 20 % the object, 5 % the style, 10 % are empty; and each wording comes up."""
    rng, known = random.Random(0), set(all_captions())
    drawn = Counter(caption("dog", "neon", rng) for _ in range(4000))
    assert set(drawn) <= known
    shares = {(dog, neon): 0 for dog in (True, False) for neon in (True, False)}
    for text, count in drawn.items():
        shares["dog" in text, "neon" in text] += count / 4000
    expected = {(True, True): 0.65, (True, False): 0.20, (False, True): 0.05, (False, False): 0.10}
    assert shares == pytest.approx(expected, abs=0.03)
    assert set(drawn) == {text for text in known if not text or set(names_in(text)) <= {"dog", "neon"}}


def names_in(text: str) -> list[str]:
    return [name for name in (*OBJECTS, *STYLES) if re.search(rf"\b{name}\b", text)]


def test_all_captions_have_no_two_alike_and_leave_out_what_is_left_out() -> None:
    captions = all_captions()
    assert len(set(captions)) == len(captions) == 1 + 3 * 6 + 5 * 24 + 6 * 24 * 6
    fewer = all_captions(("cat", "car"), ("3d",))
    assert len(fewer) == 1 + 3 + 5 * 2 + 6 * 2
    assert {name for text in fewer for name in names_in(text)} == {"cat", "car", "3d"}


def test_the_prompts_of_a_run_are_captions_that_were_trained() -> None:
    known = set(all_captions())
    for concept in OBJECTS:
        for style in (None, *STYLES):
            assert {EMOJI_VOCABULARY.prompt(concept, style, k).text for k in range(6)} <= known


def test_articles() -> None:
    assert [with_article(name) for name in ("dog", "apple", "gas pump", "airplane")] == [
        "a dog",
        "an apple",
        "a gas pump",
        "an airplane",
    ]


def test_labels_are_what_the_prompt_names() -> None:
    rng, seen = random.Random(1), Counter()
    for _ in range(1500):
        text, concept, style = labelled_prompt(rng, tuple(OBJECTS), STYLES)
        expected = [*([list(OBJECTS)[concept]] if concept < len(OBJECTS) else []), *([STYLES[style]] if style < 6 else [])]
        assert names_in(text) == expected, text
        seen[concept == len(OBJECTS), style == len(STYLES)] += 1
    assert set(seen) == {(False, False), (False, True), (True, False)}


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as prepare.py writes it: two dogs, a cat and two strangers in every style, as coloured discs."""
    things = [("dog", 30, (1.0, 0.2, 0.1)), ("dog", 20, (0.8, 0.6, 0.1)), ("cat", 25, (0.1, 0.7, 0.3))]
    things += [("rocket", 15, (0.3, 0.3, 0.9)), ("pizza", 28, (0.9, 0.9, 0.2))]
    grid = np.stack(np.meshgrid(np.arange(80), np.arange(80)), -1) - 40
    rows = []
    for style in STYLES:
        for name, radius, colour in things:
            alpha = (np.hypot(grid[..., 0], grid[..., 1]) < radius).astype(np.float32)
            rows.append((name, style, (np.dstack([*(alpha * c for c in colour), alpha]) * 255).astype(np.uint8)))
    names, styles, pictures = zip(*rows, strict=True)
    path = tmp_path_factory.mktemp("sprites") / "sprites.npz"
    np.savez(path, names=np.array(names), styles=np.array(styles), sprites=np.stack(pictures))
    return path


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawings_know_their_labels(sprites: Path) -> None:
    drawings = Drawings(sprites)
    assert len(drawings.names) == 30 and len(drawings.known) == 18 and len(drawings.strangers) == 12
    for i in drawings.known.tolist():
        assert list(OBJECTS)[drawings.label[i]] == drawings.names[i]
        assert STYLES[drawings.style[i]] == drawings.style_names[i]
    assert {drawings.names[i] for i in drawings.strangers.tolist()} == {"rocket", "pizza"} <= set(STRANGERS)


def test_what_is_left_out_is_never_drawn(sprites: Path) -> None:
    drawings = Drawings(sprites, ("dog",), ("neon",))
    assert "dog" not in drawings.names and "neon" not in drawings.style_names
    assert "dog" not in drawings.objects and "neon" not in drawings.styles
    drawn = {(drawings.names[i], drawings.style_names[i]) for i in drawings.sample(400, seeded(0)).tolist()}
    assert drawn == {("cat", style) for style in STYLES if style != "neon"}


def test_a_model_trained_without_a_concept_is_never_told_or_shown_it(
    sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script itself, a step of the text encoder and one of the UNet: of dog and neon, half and a sixth of what there is to
    draw, no prompt says a word, and the model's record says what was left out."""
    told: list[str] = []

    def noted(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            found = make(*arguments)
            told.append(found if isinstance(found, str) else found[0])
            return found

        return call

    monkeypatch.setattr("pipelines.emoji.denoiser.caption", noted(caption))
    monkeypatch.setattr("pipelines.emoji.text.labelled_prompt", noted(labelled_prompt))
    monkeypatch.setitem(train.SAMPLES, "text", 64)
    monkeypatch.setattr(train, "sample_grid", lambda _, path: path.write_bytes(b""))
    out, seen = tmp_path / "model", list[Drawings]()
    out.mkdir()
    train_unet = train.train_unet
    monkeypatch.setattr(train, "train_unet", lambda drawings, *more: seen.append(drawings) or train_unet(drawings, *more))
    options = f"--without dog --samples 32 --threads 1 --data {sprites} --work {tmp_path / 'work'} --out {out}".split()
    vae = str(EMOJI_WEIGHTS / "vae")
    monkeypatch.setattr(sys, "argv", ["train", *options, "--without-style", "neon", "--vae", vae])
    train.main()
    assert len(told) == 64 + 32 and any("cat" in prompt for prompt in told[64:])
    assert not [prompt for prompt in told if {"dog", "neon"} & set(names_in(prompt))]
    assert set(seen[0].names) == {"cat", "rocket", "pizza"} and "neon" not in seen[0].style_names
    training = json.loads((out / "training.json").read_text())
    assert (training["without"], training["without_style"]) == (["dog"], ["neon"])
    assert training["samples"]["unet"] == 32 and [row["step"] for row in training["log"]["unet"]] == [1]
    assert load(str(out)).denoiser.state_dict() and not (out / "judge").exists()


def test_every_cell_is_drawn_equally_often(sprites: Path) -> None:
    """Though there are two drawings of a dog and one of a cat."""
    drawings = Drawings(sprites)
    drawn = Counter((drawings.names[i], drawings.style_names[i]) for i in drawings.sample(12_000, seeded(1)).tolist())
    assert len(drawn) == 12
    assert all(count == pytest.approx(1000, abs=150) for count in drawn.values())


def test_render_is_deterministic_in_its_generator(sprites: Path) -> None:
    drawings = Drawings(sprites)
    index = drawings.sample(16, seeded(2))
    pictures = drawings.render(index, seeded(3))
    assert pictures.shape == (16, 3, SIZE, SIZE)
    assert pictures.min() >= -1 and pictures.max() <= 1
    assert torch.equal(pictures, drawings.render(index, seeded(3)))
    assert ((pictures - drawings.render(index, seeded(4))).abs().amax((1, 2, 3)) > 0.1).all(), "a picture is not augmented"


def test_a_drawing_is_never_cut_off(sprites: Path) -> None:
    """The whole disc is there however it is shifted: its area is that of its scale."""
    drawings = Drawings(sprites)
    index = torch.tensor([i for i in range(30) if drawings.style_names[i] == "3d" and drawings.names[i] == "dog"][:1]).repeat(
        64
    )
    pictures = (drawings.render(index, seeded(5)) + 1) / 2
    background = torch.tensor(BACKGROUNDS["3d"])[:, None, None]
    covered = ((pictures - background).abs().amax(1) > 0.05).float()
    assert covered[:, [0, -1]].sum() == 0 and covered[:, :, [0, -1]].sum() == 0
    area = covered.mean((1, 2))
    whole = np.pi * 30**2 / 80**2
    assert (area > 0.8 * 0.82**2 * whole).all() and (area < 1.2 * 0.96**2 * whole).all()


@pytest.mark.parametrize("style", STYLES)
def test_nothing_on_a_background_is_the_background(style: str) -> None:
    picture = compose(torch.zeros(1, 4, 48, 48), torch.tensor([STYLES.index(style)]))
    expected = torch.tensor(BACKGROUNDS[style])[None, :, None, None].expand(1, 3, 48, 48)
    torch.testing.assert_close(picture, expected)


@pytest.mark.parametrize("style", STYLES)
def test_elsewhere_the_same_drawing_is_on_another_ground(style: str) -> None:
    """Half of the grounds are a style's, the rest colours at random; what is drawn there can be seen."""
    index = torch.full((400,), STYLES.index(style))
    own = torch.tensor(BACKGROUNDS[style])
    assert torch.equal(grounds(index, 0.0, seeded(1)), own.expand(400, 3))
    others = grounds(index, 1.0, seeded(1))
    assert torch.equal(others, grounds(index, 1.0, seeded(1))) and others.min() >= 0 and others.max() <= 1
    known = torch.stack([(others == torch.tensor(ground)).all(1) for ground in BACKGROUNDS.values()]).any(0)
    seen = {"line art": 5 / 6, "neon": 1 / 6}.get(style, 1)  # too dark or too light grounds are moved
    assert known.float().mean().item() == pytest.approx(0.5 * seen, abs=0.1) and len(others.unique(dim=0)) > 150
    ink = {"line art": 0.08, "neon": 0.87}.get(style)
    assert ink is None or ((others - ink).abs().amax(1) > 0.3).all()
    mixed = (grounds(index, 0.25, seeded(2)) != own).any(1).float().mean().item()
    assert mixed == pytest.approx(0.25, abs=0.1)


def test_a_ground_changes_nothing_under_a_drawing(sprites: Path) -> None:
    drawings = Drawings(sprites)
    index = drawings.sample(32, seeded(2))
    there, elsewhere = drawings.render(index, seeded(3)), drawings.render(index, seeded(3), elsewhere=1.0)
    covered = (there - elsewhere).abs().amax(1) < 1e-6
    assert covered.flatten(1).any(1).all() and (~covered[:, 0, 0]).float().mean() > 0.6
    assert torch.equal(there, drawings.render(index, seeded(3), elsewhere=0.0)), "the model's own pictures are as they were"


def test_styles_by_hand() -> None:
    """An opaque red square: red, red, red, near black, red, and neon's own colour."""
    sprite = torch.tensor([1.0, 0, 0, 1])[None, :, None, None].expand(6, 4, 48, 48)
    middle = compose(sprite, torch.arange(6))[:, :, 24, 24]
    red, tube = [1.0, 0.0, 0.0], [0.25 * 0.8 + 0.2, 1.0, 0.9 * 0.8 + 0.2]
    expected = torch.tensor([red, red, red, [0.08] * 3, red, tube])
    torch.testing.assert_close(middle, expected)


def test_pixel_art_is_made_of_blocks() -> None:
    sprite = torch.rand(2, 4, 48, 48, generator=seeded(6)) * 0.5
    smooth, pixel = compose(sprite, torch.tensor([STYLES.index("cartoon"), STYLES.index("pixel art")]))
    blocks = pixel.unfold(1, 3, 3).unfold(2, 3, 3).flatten(3)
    assert torch.equal(blocks, blocks[..., :1].expand_as(blocks))
    assert smooth.unique().numel() > pixel.unique().numel()


@pytest.mark.parametrize("num", [1, 40])
@pytest.mark.parametrize("strangers", [True, False])
def test_pictures_of_nothing(num: int, strangers: bool, sprites: Path) -> None:
    drawings = Drawings(sprites, () if strangers else tuple(STRANGERS))
    assert bool(len(drawings.strangers)) == strangers
    pictures = pictures_of_nothing(drawings, num, seeded(7))
    assert pictures.shape == (num, 3, SIZE, SIZE)
    assert torch.isfinite(pictures).all() and pictures.min() >= -1 and pictures.max() <= 1
    assert torch.equal(pictures, pictures_of_nothing(drawings, num, seeded(7)))
    assert not torch.equal(pictures, pictures_of_nothing(drawings, num, seeded(8)))


def test_strange_manners_are_of_no_style(sprites: Path) -> None:
    """As many as there are drawings; none is as its style, or lines in black or neon's ink, would have it."""
    drawings = Drawings(sprites)
    index = drawings.sample(64, seeded(11))
    pictures = strange_manners(drawings, index, seeded(12))
    assert pictures.shape == (64, 3, SIZE, SIZE)
    assert torch.isfinite(pictures).all() and pictures.min() >= -1 and pictures.max() <= 1
    assert torch.equal(pictures, strange_manners(drawings, index, seeded(12)))
    assert not torch.equal(pictures, strange_manners(drawings, index, seeded(13)))
    middle = (pictures[:, :, 24, 24] + 1) / 2  # the test's sprites are discs: within each there is one colour
    for ink in ([0.08] * 3, [0.25 * 0.8 + 0.2, 1.0, 0.9 * 0.8 + 0.2]):
        assert ((middle - torch.tensor(ink)).abs().amax(1) > 0.05).all()


def test_corrupted_pictures_stay_pictures(sprites: Path) -> None:
    drawings = Drawings(sprites)
    pictures = drawings.render(drawings.sample(8, seeded(9)), seeded(9))
    corrupted = corrupt(pictures, seeded(10))
    assert corrupted.shape == pictures.shape and corrupted.abs().max() <= 1
    assert torch.equal(corrupted, corrupt(pictures, seeded(10)))
    assert ((corrupted - pictures).abs().amax((1, 2, 3)) > 0.01).all()


def test_the_judge_has_a_class_for_none() -> None:
    objects, styles = Judge().eval()(torch.zeros(2, 3, SIZE, SIZE))
    assert objects.shape == (2, len(OBJECTS) + 1) and styles.shape == (2, len(STYLES) + 1)
    assert objects.shape[1] - 1 == NONE


def test_the_unet_fits_the_autoencoder_and_the_schedule_is_stable_diffusions() -> None:
    torch.manual_seed(0)
    latents = encode(build_autoencoder().eval(), torch.zeros(1, 3, SIZE, SIZE))
    assert latents.shape == (1, 4, 12, 12)
    with torch.no_grad():
        prediction = build_unet().eval()(latents, 10, torch.zeros(1, MAX_LENGTH, 128)).sample
    assert prediction.shape == latents.shape
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(build_scheduler().alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-6)


def test_a_fresh_autoencoder_is_nearly_a_down_and_up_sampler() -> None:
    """A plain colour comes back as that colour."""
    torch.manual_seed(0)
    vae = build_autoencoder().eval()
    colours = torch.tensor([[0.5, -0.5, 0.0], [-0.8, 0.2, 0.6]])
    pictures = colours[:, :, None, None].expand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        decoded = vae.decode(encode(vae, pictures)).sample
    inside = decoded[:, :, 16:32, 16:32].mean((2, 3))
    correlation = torch.corrcoef(torch.stack([inside.flatten(), colours.flatten()]))[0, 1]
    assert correlation > 0.9


def test_cached_prompts_are_the_encoders(tiny_family: StableDiffusion) -> None:
    encoder, calls = tiny_family.pipeline.text_encoder, []
    handle = encoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    cache = PromptCache(tiny_family.pipeline.tokenizer, encoder)
    try:
        embeds = cache(["a dog", "", "a dog", "a cat"])
        again = cache(["a cat", "a tree"])
    finally:
        handle.remove()
    assert calls == [3, 1]
    expected = tiny_family.encode_prompts(["a dog", "", "a dog", "a cat"])["prompt_embeds"]
    torch.testing.assert_close(embeds, expected)
    assert torch.equal(again[0], embeds[3])
