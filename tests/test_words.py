"""The word list, and what is proposed from it: the text encoder's geometry decides, and nothing that is erased is proposed."""

import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

import erase.words
from erase.templates import PLAIN_STYLES, SCENES, TEMPLATES, plain_name, sentence, sentences, with_article
from erase.words import (
    SAME,
    Word,
    candidates,
    features,
    find_word,
    guess_kind,
    head_word,
    propose,
    retain_sentences,
    similarities,
    word_list,
)
from pipelines.load import EMOJI_WEIGHTS
from pipelines.stable_diffusion import StableDiffusion

WORDS = word_list()


def test_the_list_is_some_hundreds_of_words_each_once_with_their_groups_neutral() -> None:
    assert len(WORDS) > 400
    assert not [name for name, count in Counter(word.text for word in WORDS).items() if count > 1]
    assert {word.kind for word in WORDS} == TEMPLATES.keys()
    for word in WORDS:
        assert word.text == " ".join(word.text.split()) and word.text and "|" not in word.text
        if word.kind == "style":
            assert word.neutral in PLAIN_STYLES
        if word.kind == "object" and word.neutral:
            assert find_word(word.neutral), f"{word.neutral} is no word of the list itself"


@pytest.mark.parametrize(
    ("name", "found", "head"),
    [
        ("dog", "dog", None),
        ("Dogs", "dog", None),
        ("a chainsaw", None, None),
        ("chain-saw", "chain saw", None),
        ("garbage truck", "garbage truck", "truck"),
        ("old red garbage trucks", None, "garbage truck"),
        ("VAN GOGH", "Van Gogh", None),
        ("Van Gogh's", "Van Gogh", None),
        ("thing", None, None),
        ("", None, None),
        ("??", None, None),
    ],
)
def test_listed_words_and_heads_of_compounds(name: str, found: str | None, head: str | None) -> None:
    word, tail = find_word(name), head_word(name)
    assert (word and word.text, tail and tail.text) == (found, head)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dog", "object"),
        ("a flying saucer", "object"),
        ("Van Gogh", "style"),
        ("sketch", "style"),
        ("moody style", "style"),
        ("generative art", "style"),
        ("Ada Lovelace", "person"),
        ("Grace Hopper", "person"),
        ("Golden Retriever", "object"),
        ("Red Fox", "object"),
        ("nudity", "other"),
        ("drug use", "other"),
    ],
)
def test_the_kind_is_guessed(name: str, kind: str) -> None:
    assert guess_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a dog"),
        ("owl", "an owl"),
        ("English springer", "an English springer"),
        ("a cup", "a cup"),
        ("The Sun", "The Sun"),
        ("sunglasses", "sunglasses"),
        ("cactus", "a cactus"),
        ("wine glass", "a wine glass"),
    ],
)
def test_articles(name: str, expected: str) -> None:
    assert with_article(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("in the style of Monet", "Monet"),
        ("neon style", "neon"),
        ("the style of  Van  Gogh", "Van Gogh"),
        ("style", "style"),
        ("a dog", "a dog"),
    ],
)
def test_a_style_is_called_by_its_name(name: str, expected: str) -> None:
    assert plain_name(name) == expected


def test_sentences_by_hand() -> None:
    assert sentence("object", "owl", 0).text == "a photo of an owl"
    assert sentence("style", "cubism", 1).text == "a house in a garden, cubism style"
    assert sentence("style", "painting", 1).text == "a painting of a house in a garden"
    assert sentence("person", "a person", 1).text == "a portrait of a person"
    assert [prompt.template for prompt in sentences("object", "owl", 10, avoid=("city", "photo"))] == [
        1,
        2,
        5,
        7,
        9,
        10,
        13,
        15,
        17,
        18,
    ]
    with pytest.raises(ValueError, match="every wording for 'red'"):
        sentences("style", "red", 1, avoid=("style", "red"))


def test_all_wordings_and_scenes_come_round() -> None:
    texts = {prompt.text for prompt in sentences("style", "cubism", len(SCENES) * len(TEMPLATES["style"]))}
    assert len(texts) == len(SCENES) * len(TEMPLATES["style"])


# --- the encoder


@pytest.fixture(scope="module")
def trained() -> StableDiffusion:
    """The embedded model's own text encoder, trained to tell its objects and styles."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        str(EMOJI_WEIGHTS), unet=None, vae=None, scheduler=None, safety_checker=None, requires_safety_checker=False
    )
    family = object.__new__(StableDiffusion)
    family.pipeline = pipeline
    return family


@pytest.fixture
def family(tiny_pipeline: StableDiffusionPipeline) -> StableDiffusion:
    """A tiny CLIP whose embeddings a test may set."""
    parts = tiny_pipeline.components | {"text_encoder": copy.deepcopy(tiny_pipeline.text_encoder)}
    return StableDiffusion(StableDiffusionPipeline(**parts, requires_safety_checker=False), None)


def embed(family: StableDiffusion, places: dict[str, tuple[float, float]]) -> None:
    """Put the names' tokens into a plane of the embedding space, far out so that the plane decides."""
    encoder: CLIPTextModel = family.pipeline.text_encoder
    weight = encoder.get_input_embeddings().weight
    with torch.no_grad():
        for name, place in places.items():
            (token,) = family.pipeline.tokenizer(name, add_special_tokens=False).input_ids
            weight[token] = 0.0
            weight[token, :2] = 6.0 * torch.tensor(place)
            weight[token, 2:4] = -6.0 * torch.tensor(place)  # the layer norms take away the mean


NAMES = ("dog", "cat", "horse", "church", "castle", "house")
# degrees
ANGLES = {"dog": 0, "cat": 40, "horse": 75, "church": 180, "castle": 220, "house": 255}
PLANE = {name: (math.cos(math.radians(angle)), math.sin(math.radians(angle))) for name, angle in ANGLES.items()}


@pytest.fixture
def short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six words without a neutral, and one whose neutral is one of them."""
    words = (*(Word(name, "object", "things", None) for name in NAMES), Word("tree", "object", "kinds", "church"))
    monkeypatch.setattr(erase.words, "word_list", lambda: words)


def test_features_are_the_mean_difference_to_the_empty_prompt(family: StableDiffusion) -> None:
    """Written out with the tokenizer and the encoder themselves."""
    texts = ["a dog", "a photo of a church", ""]
    tokens = family.pipeline.tokenizer(texts, padding="max_length", max_length=family.pipeline.tokenizer.model_max_length)
    with torch.no_grad():
        states = family.pipeline.text_encoder(torch.tensor(tokens.input_ids)).last_hidden_state
    expected = torch.stack([sum(states[k] - states[2]) / states.shape[1] for k in range(3)])
    torch.testing.assert_close(features(family, texts), expected)
    torch.testing.assert_close(features(family, texts, batch_size=1), expected)
    assert features(family, [""]).abs().max() == 0


def test_the_start_and_the_positions_say_nothing(family: StableDiffusion) -> None:
    """An offset that the text does not decide, as large as may be, leaves the features as they are."""
    before = features(family, ["a dog", "a church"])
    encode = family.encode_prompts
    shift = 100 * torch.randn(before.shape[1], generator=torch.Generator().manual_seed(0))
    family.encode_prompts = lambda prompts: {"prompt_embeds": encode(prompts)["prompt_embeds"] + shift}  # type: ignore[method-assign]
    torch.testing.assert_close(features(family, ["a dog", "a church"]), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_geometry_decides_what_is_near(swapped: bool, family: StableDiffusion, short_list: None) -> None:
    """With dog and church in each other's place, so are their neighbours."""
    embed(family, PLANE | ({"dog": PLANE["church"], "church": PLANE["dog"]} if swapped else {}))
    others = ["cat", "horse", "castle", "house"]
    scores = dict(zip(others, similarities(family, "dog", others, "object"), strict=True))
    near, far = ("castle", "cat") if swapped else ("cat", "castle")
    assert scores[near] > max(score for name, score in scores.items() if name != near)
    assert scores[near] > 0.3 > scores[far]
    proposal = propose(family, "dog", "object", ("dog",))
    assert (proposal.anchor, proposal.why) == ("castle" if swapped else "cat", "nearest")
    assert proposal.anchor not in proposal.neighbours and "dog" not in proposal.neighbours
    assert proposal.neighbours[0] == ("house" if swapped else "horse")


def test_what_is_all_but_the_same_is_neither_anchor_nor_protected(family: StableDiffusion, short_list: None) -> None:
    embed(family, PLANE | {"cat": PLANE["dog"]})
    assert similarities(family, "dog", ["cat", "church"], "object")[0] > SAME
    proposal = propose(family, "dog", "object", ("dog",))
    assert proposal.same == ("cat",)
    assert proposal.anchor == "horse" and "cat" not in proposal.neighbours


def test_an_erased_neighbour_is_passed_over(family: StableDiffusion, short_list: None) -> None:
    embed(family, PLANE)
    proposal = propose(family, "dog", "object", ("dog", "cat"))
    assert proposal.anchor == "horse" and "cat" not in proposal.neighbours


def test_kinds_of_the_concept_are_not_protected_and_become_it_when_they_are_erased(
    family: StableDiffusion, short_list: None
) -> None:
    embed(family, PLANE)
    assert "tree" not in [word.text for word in candidates("object", ("church",))]
    assert propose(family, "tree", "object", ("tree",)).anchor == "church"
    assert propose(family, "tree", "object", ("tree",)).why == "neutral"
    assert propose(family, "tree", "object", ("tree", "church")).anchor != "church"


def test_nothing_left_to_propose_is_said(family: StableDiffusion, short_list: None) -> None:
    embed(family, dict.fromkeys((*NAMES, "tree"), PLANE["dog"]))
    with pytest.raises(ValueError, match=r"no word in the list can replace .*--anchor"):
        propose(family, "dog", "object", (*NAMES, "tree"))


@pytest.mark.parametrize(
    ("name", "kind", "anchor"),
    [
        ("beagle", "object", "dog"),
        ("grumpy cat", "object", "cat"),
        ("Claude Monet", "style", "painting"),
        ("Grace Hopper", "person", "a person"),
        ("nudity", "other", "a person wearing clothes"),
    ],
)
def test_the_neutral_is_the_lists_whatever_the_geometry(
    name: str, kind: str, anchor: str, family: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ("beagle", "cat", "Claude Monet", "nudity", "people talking")
    words = tuple(word for k, word in enumerate(WORDS) if k % 9 == 0 or word.text in named)
    monkeypatch.setattr(erase.words, "word_list", lambda: words)
    proposal = propose(family, name, kind, (name,))  # type: ignore[arg-type]
    assert (proposal.anchor, proposal.why) == (anchor, "neutral")


def test_what_must_not_be_drawn_is_never_protected() -> None:
    """Nudity's nearest words are other names of it; of unsafe and everyday doing only the latter is kept."""
    for erased in (("nudity",), ("zebra",)):
        texts = {word.text for word in candidates("other", erased)}
        assert "people talking" in texts
        assert not texts & {"pornography", "a naked woman", "gore", "suicide", "drug use"}


def test_half_of_what_is_kept_are_the_neighbours_in_every_wording() -> None:
    prompts = retain_sentences("object", ("horse", "cow"), ("zebra",), 64)
    near = [prompt for prompt in prompts if prompt.object in ("horse", "cow")]
    assert len(near) == 32
    assert {(prompt.object, prompt.template % 8) for prompt in near} == {(n, t) for n in ("horse", "cow") for t in range(8)}
    assert {prompt.style is None for prompt in prompts} == {True, False}
    assert retain_sentences("object", ("horse", "cow"), ("zebra",), 20) == prompts[:20]
    assert retain_sentences("object", ("horse", "cow"), ("zebra",), 64, part=1)[1::2] != prompts[1::2]


def test_a_trained_encoder_finds_the_same_thing_in_other_words(trained: StableDiffusion) -> None:
    """Each of six objects, asked for in one wording, is nearest to itself in another."""
    names = ["dog", "church", "guitar", "apple", "car", "penguin"]
    one = features(trained, [f"an image of a {name}" for name in names])
    other = features(trained, [f"a {name}, neon style" for name in names])
    scores = F.normalize(one - one.mean(0), dim=1) @ F.normalize(other - other.mean(0), dim=1).T
    assert scores.argmax(1).tolist() == list(range(6))
    assert scores.diagonal().min() > scores[~torch.eye(6, dtype=torch.bool)].max()
