"""From a free text to a concept, and from a concept to prompts that do and prompts that do not ask for it."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erase.concepts import (
    SYNONYMS,
    Concept,
    Prompt,
    alternatives,
    concept_version,
    evaluation_prompts,
    find_concept,
    forget_prompts,
    nearest,
    relabel,
    retain_prompts,
)
from pipelines.load import EMOJI_VOCABULARY as VOCABULARY

DOG = Concept("dog", "object", object="dog")
NEON = Concept("neon", "style", style="neon")
NEON_DOG = Concept("dog, neon style", "composition", object="dog", style="neon")
KINDS = pytest.mark.parametrize("concept", [DOG, NEON, NEON_DOG], ids=["object", "style", "composition"])


def test_every_prompt_of_the_vocabulary_names_its_own_concept() -> None:
    """24 objects x 6 styles in every wording, and the objects and the styles alone."""
    for concept, style in itertools.product(VOCABULARY.objects, VOCABULARY.styles):
        expected = Concept(f"{concept}, {style} style", "composition", concept, style)
        for template in range(len(VOCABULARY.styled_templates)):
            text = VOCABULARY.prompt(concept, style, template).text
            assert find_concept(text, VOCABULARY) == expected, text
    for concept in VOCABULARY.objects:
        for template in range(len(VOCABULARY.plain_templates)):
            text = VOCABULARY.prompt(concept, None, template).text
            assert find_concept(text, VOCABULARY) == Concept(concept, "object", object=concept), text
    for style in VOCABULARY.styles:
        for text in (style, f"{style} style"):
            assert find_concept(text, VOCABULARY) == Concept(style, "style", style=style), text


def test_a_style_becomes_the_one_whose_pictures_are_nearest_as_measured() -> None:
    """benchmarks.likeness measured the drawings; without a style its next is the nearest."""
    measured = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "likeness.json").read_text())["nearest"]
    assert {style: VOCABULARY.relatives(style) for style in VOCABULARY.styles} == measured
    assert VOCABULARY.without(set(), {"cartoon"}).relatives("line art") == [n for n in measured["line art"] if n != "cartoon"]
    assert VOCABULARY.relatives("cat")[:3] == ["dog", "rabbit", "horse"], "objects have groups"


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("Dogs", DOG),
        ("  the DOG!\n", DOG),
        ("every dog", DOG),
        ("all neon", NEON),
        ("neon dogs", NEON_DOG),
        ("dog in neon", NEON_DOG),
        ("churches", Concept("church", "object", object="church")),
        ("cartoon car", Concept("car, cartoon style", "composition", "car", "cartoon")),
        ("3D", Concept("3d", "style", style="3d")),
    ],
)
def test_a_concept_in_other_words(text: str, concept: Concept) -> None:
    assert find_concept(text, VOCABULARY) == concept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("!?", "is empty"),
        ("dog cat", "names dog and cat"),
        ("neon cartoon dog", "names dog and cartoon and neon"),
        ("puppy", "does not know 'puppy'; the nearest it draws: dog,"),
        ("pengiun", "the nearest it draws: penguin,"),
        ("dogfish", "does not know 'dogfish'"),
        ("a dog with a hat", "does not know 'a dog with a hat'"),
        ("the style", "does not know"),
        ("犬", "does not know '犬'"),
    ],
)
def test_a_text_that_names_no_single_concept_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_concept(text, VOCABULARY)


def test_a_known_name_within_an_unknown_text_is_among_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"the nearest it draws: .*\bdog\b"):
        find_concept("hot dog", VOCABULARY)


@settings(max_examples=120, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text("dogcarneart 3-_.,'style", max_size=20)))
def test_any_text_is_a_concept_of_the_vocabulary_or_a_value_error(text: str) -> None:
    try:
        concept = find_concept(text, VOCABULARY)
    except ValueError:
        return
    assert concept.object in (None, *VOCABULARY.objects) and concept.style in (None, *VOCABULARY.styles)
    assert (concept.object or concept.style) and all(part.lower() in text.lower() for part in (concept.object or "",))
    assert find_concept(concept.name, VOCABULARY) == concept, "the concept's own name names another"


def test_synonyms_lead_into_the_vocabulary() -> None:
    names = {*VOCABULARY.objects, *VOCABULARY.styles}
    assert set(SYNONYMS.values()) <= names
    assert not set(SYNONYMS) & names
    assert all(nearest(word, VOCABULARY)[0] == name for word, name in SYNONYMS.items())


def test_nearest_names_are_as_many_as_asked_for_and_differ() -> None:
    for text in ("dog", "puppy", "zzz", "a kitten and a puppy"):
        names = nearest(text, VOCABULARY, 4)
        assert len(names) == len(set(names)) == 4
    assert nearest("a kitten and a puppy", VOCABULARY)[:2] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        (DOG, [True, True, True, False, False]),
        (NEON, [True, False, False, True, False]),
        (NEON_DOG, [True, False, False, False, False]),
    ],
)
def test_matches_by_hand(concept: Concept, expected: list[bool]) -> None:
    asked = [("dog", "neon"), ("dog", "3d"), ("dog", None), ("cat", "neon"), ("cat", None)]
    assert [concept.matches(Prompt("", *names)) for names in asked] == expected


def test_prompts_by_hand() -> None:
    assert VOCABULARY.prompt("apple", "neon", 0) == Prompt("an apple, neon style", "apple", "neon", 0)
    assert VOCABULARY.prompt("gas pump", None, 1) == Prompt("an image of a gas pump", "gas pump", None, 1)
    assert VOCABULARY.prompt("dog", "3d", 5).text == "3d dog"
    assert VOCABULARY.prompt("dog", "3d", 6).text == "a dog, 3d style"


@KINDS
def test_alternatives_are_all_others_of_the_domain(concept: Concept) -> None:
    others = alternatives(concept, VOCABULARY)
    domain = VOCABULARY.styles if concept.kind == "style" else VOCABULARY.objects
    own = concept.style if concept.kind == "style" else concept.object
    assert sorted([*others, own]) == sorted(domain)


@KINDS
@pytest.mark.parametrize("num", [1, 7, 48, 200])
def test_forget_prompts_all_ask_for_the_concept(concept: Concept, num: int) -> None:
    prompts = forget_prompts(concept, VOCABULARY, num)
    assert len(prompts) == num
    assert all(concept.matches(prompt) for prompt in prompts)
    assert all(find_concept(prompt.text, VOCABULARY).object in (prompt.object, None) for prompt in prompts)
    assert forget_prompts(concept, VOCABULARY, num + 5)[:num] == prompts


@KINDS
@pytest.mark.parametrize("num", [1, 7, 144, 400])
def test_retain_prompts_never_ask_for_the_concept(concept: Concept, num: int) -> None:
    """Neither by their labels nor by their words."""
    prompts = retain_prompts(concept, VOCABULARY, num)
    assert len(prompts) == num
    for prompt in prompts:
        assert not concept.matches(prompt)
        read = find_concept(prompt.text, VOCABULARY)
        assert (read.object, read.style) == (prompt.object, prompt.style)


def test_forget_prompts_go_round_everything_the_concept_leaves_open() -> None:
    dogs = forget_prompts(DOG, VOCABULARY, 48)
    assert {prompt.style for prompt in dogs} == {None, *VOCABULARY.styles}
    assert sum(prompt.style is None for prompt in dogs) == 12
    assert len({prompt.text for prompt in dogs}) > 24
    assert Counter(prompt.object for prompt in forget_prompts(NEON, VOCABULARY, 48)) == dict.fromkeys(VOCABULARY.objects, 2)
    texts = {prompt.text for prompt in forget_prompts(NEON_DOG, VOCABULARY, 6)}
    assert texts == {template.format(a="a dog", object="dog", style="neon") for template in VOCABULARY.styled_templates}


@KINDS
def test_retain_prompts_cover_every_other_cell_before_one_comes_again(concept: Concept) -> None:
    cells = [c for c in itertools.product(VOCABULARY.objects, VOCABULARY.styles) if not concept.matches(Prompt("", *c))]
    prompts = retain_prompts(concept, VOCABULARY, len(cells))
    named = [(prompt.object, prompt.style) for prompt in prompts if prompt.style]
    assert len(set(named)) == len(named), "a cell came twice"
    assert Counter(prompt.object for prompt in prompts) == Counter(concept for concept, _ in cells)
    plain = sum(prompt.style is None for prompt in prompts)
    assert plain == (len(cells) // 5 if concept.kind == "object" else 0)


@KINDS
def test_relabelled_prompts_do_not_ask_for_the_concept_and_come_back(concept: Concept) -> None:
    """The same wording with the concept replaced; the concept put back in gives the prompt as it was."""
    for prompt in forget_prompts(concept, VOCABULARY, 30):
        for other in alternatives(concept, VOCABULARY):
            changed = relabel(prompt, concept, other, VOCABULARY)
            assert not concept.matches(changed) and other in changed.text
            assert concept_version(changed, concept, VOCABULARY) == prompt


@KINDS
@pytest.mark.parametrize("per_cell", [1, 3])
def test_evaluation_prompts_ask_for_each_other_cell_equally_often(concept: Concept, per_cell: int) -> None:
    forget, kept = evaluation_prompts(concept, VOCABULARY, 50, per_cell)
    assert len(forget) == 50 and all(concept.matches(prompt) for prompt in forget)
    cells = {(prompt.object, prompt.style) for prompt in kept}
    assert len(cells) == {"object": 23 * 6, "style": 24 * 5, "composition": 24 * 6 - 1}[concept.kind]
    assert Counter((prompt.object, prompt.style) for prompt in kept) == dict.fromkeys(cells, per_cell)
    assert not any(concept.matches(prompt) for prompt in kept)
