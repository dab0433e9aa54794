"""What to put in a concept's place and what to protect beside it, from a word list and the model's own text encoder."""

import itertools
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from erase.concepts import Prompt, names_within, same_name, tidy
from erase.templates import NamedKind, names_any, sentence
from pipelines.family import Family

# Cosines from here on are taken for another name of the concept. Set by reasoning, not measured on a CLIP.
SAME = 0.9
NUM_NEIGHBOURS = 12
# Sentences whose features are averaged, by number in the kind's templates.
PROBES = (0, 1)


@dataclass(frozen=True)
class Word:
    """A member of the word list, the group it stands in, and what it can neutrally become."""

    text: str
    kind: NamedKind
    group: str
    neutral: str | None


@cache
def word_list() -> tuple[Word, ...]:
    """The words of words.txt."""
    words: list[Word] = []
    for line in (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, group, neutral, members = (part.strip() for part in line.split("|"))
            assert kind in get_args(NamedKind)
            names = (text.strip() for text in members.split(","))
            words += [Word(name, cast(NamedKind, kind), group, None if neutral == "-" else neutral) for name in names]
    return tuple(words)


def find_word(name: str) -> Word | None:
    """The listed word that is the name, singular or plural."""
    return next((word for word in word_list() if same_name(word.text, name)), None)


def head_word(name: str) -> Word | None:
    """The listed word that ends the name: the head of a compound says what kind of thing it is ("garbage truck": truck)."""
    parts = tidy(name).split()
    tails = (" ".join(parts[first:]) for first in range(1, len(parts)))
    return next((word for word in map(find_word, tails) if word), None)


def guess_kind(name: str) -> NamedKind:
    """The kind of a listed word or of the word that ends the name; else by how the name is written; else an object."""
    if word := find_word(name):
        return word.kind
    if re.search(r"\b(style|art|painting|drawing|aesthetic)\b", name.lower()):
        return "style"
    if word := head_word(name):
        return word.kind
    parts = name.split()
    return "person" if len(parts) > 1 and all(part[:1].isupper() for part in parts) else "object"


@torch.no_grad()
def features(family: Family, texts: list[str], batch_size: int = 64) -> Tensor:
    """What the text encoder says of each text (N, D): hidden states less those of the empty prompt, averaged over positions.

    The difference takes away what belongs to the positions and to the start token; the positions behind the text are kept,
    since in a causal encoder each of them has read all of it.
    """
    empty = family.encode_prompts([""])["prompt_embeds"].float()
    parts = []
    for first in range(0, len(texts), batch_size):
        embeds = family.encode_prompts(texts[first : first + batch_size])["prompt_embeds"].float()
        parts.append((embeds - empty).mean(1).cpu())
    return torch.cat(parts)


def similarities(family: Family, name: str, others: list[str], kind: NamedKind) -> list[float]:
    """Cosine of the name with each of the others, centred on the others' mean, averaged over sentences before the cosine."""
    total = torch.zeros(())
    for probe in PROBES:
        vectors = features(family, [sentence(kind, text, probe).text for text in (name, *others)])
        total = total + vectors - vectors[1:].mean(0)
    unit = F.normalize(total, dim=1)
    return (unit[1:] @ unit[0]).tolist()


@dataclass(frozen=True)
class Proposal:
    """What a concept becomes, what is protected beside it, and what was taken for other names of it."""

    anchor: str
    why: Literal["neutral", "nearest"]
    neighbours: tuple[str, ...]
    same: tuple[str, ...]


def related(name: str, word: Word) -> bool:
    """Whether the word asks for the concept, is part of its name, or is a kind of it (a beagle, where dogs are erased)."""
    one_names_other = names_within(name, word.text) or names_within(word.text, name)
    return one_names_other or (word.neutral is not None and names_within(name, word.neutral))


def candidates(kind: NamedKind, erased: tuple[str, ...]) -> list[Word]:
    """The listed words of the kind that are related to nothing that is erased; of "other" only the everyday ones."""
    words = (word for word in word_list() if word.kind == kind and (kind != "other" or word.neutral is None))
    return [word for word in words if not any(related(name, word) for name in erased)]


def retain_sentences(
    kind: NamedKind, neighbours: tuple[str, ...], erased: tuple[str, ...], num: int, part: int = 0
) -> list[Prompt]:
    """`num` prompts to keep, every other one for a neighbour, the rest for all else that is listed, shuffled by `part`.

    None of them names an erased concept.
    """
    words = [word for each in get_args(NamedKind) for word in candidates(each, erased)]
    others = [(word.kind, word.text) for word in words if word.text not in neighbours]
    random.Random(part).shuffle(others)
    lists = [[(kind, neighbour) for neighbour in neighbours] or others, others]
    prompts: list[Prompt] = []
    for k in itertools.count():
        if len(prompts) == num:
            return prompts
        names, turn = lists[k % 2], k // 2
        own_kind, name = names[turn % len(names)]
        prompt = sentence(own_kind, name, turn + turn // len(names))
        if not names_any(erased, prompt.text):
            prompts.append(prompt)
    raise AssertionError


def propose(family: Family, name: str, kind: NamedKind, erased: tuple[str, ...]) -> Proposal:
    """Anchor and neighbours for the concept `name` among the concepts `erased` in the same run.

    Words of the kind are ranked by the text encoder; those as near as SAME are other names of the concept, neither protected
    nor taken as anchor. The anchor is what the listed concept, or the word that ends its name, or the nearest word can
    neutrally become; else the nearest word itself.
    """
    words = candidates(kind, erased)
    scores = similarities(family, name, [word.text for word in words], kind)
    ranked = sorted(zip(scores, words, strict=True), key=lambda pair: -pair[0])
    same = tuple(word.text for score, word in ranked if score >= SAME)
    near = [word for score, word in ranked if score < SAME]
    if not near:
        raise ValueError(f"no word in the list can replace {name!r}: give --anchor and prompts.neighbours.")
    neutral = _neutral(name, kind, near[0], erased)
    anchor = neutral or near[0].text
    neighbours = [word.text for word in near if word.text != anchor][:NUM_NEIGHBOURS]
    return Proposal(anchor, "neutral" if neutral else "nearest", tuple(neighbours), same)


def _neutral(name: str, kind: NamedKind, nearest: Word, erased: tuple[str, ...]) -> str | None:
    listed, head = find_word(name), head_word(name)
    if listed and listed.kind == kind:
        neutral = listed.neutral
    elif head and head.kind == kind == "object":
        neutral = head.text
    else:
        neutral = nearest.neutral
    return None if neutral is None or any(names_within(other, neutral) for other in erased) else neutral
