"""From a concept's name to prompts: what to forget, what it becomes, what to keep, and what to ask in the evaluation."""

import difflib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Literal

Kind = Literal["object", "style", "composition", "person", "other", "prompts", "mixed"]


@dataclass(frozen=True)
class Vocabulary:
    """The objects and styles a model is known to draw, and the sentences that ask for them.

    Templates have `{a}` (the object with its article), `{object}` and `{style}`.
    """

    objects: tuple[str, ...]
    styles: tuple[str, ...]
    plain_templates: tuple[str, ...]
    styled_templates: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    """Names that are alike, each name in one group."""
    order: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of some names the others, the most alike first; for the rest the groups say it."""

    def relatives(self, name: str) -> list[str]:
        """The other objects (or styles), the most alike first: in their given order, or those of its own group first."""
        names = self.objects if name in self.objects else self.styles
        if name in self.order:
            return [other for other in self.order[name] if other in names]
        group = next(group for group in self.groups if name in group)
        return [n for n in (*group, *(n for n in names if n not in group)) if n != name]

    def without(self, objects: set[str], styles: set[str]) -> "Vocabulary":
        """The vocabulary with those names taken out."""
        groups = (tuple(n for n in group if n not in objects | styles) for group in self.groups)
        return replace(
            self,
            objects=tuple(n for n in self.objects if n not in objects),
            styles=tuple(n for n in self.styles if n not in styles),
            groups=tuple(group for group in groups if group),
        )

    def prompt(self, concept: str, style: str | None, template: int = 0) -> "Prompt":
        """The object in the style (None: no style is named), worded by the template of that number."""
        templates = self.styled_templates if style else self.plain_templates
        article = "an" if concept[0] in "aeiou" else "a"
        text = templates[template % len(templates)].format(a=f"{article} {concept}", object=concept, style=style)
        return Prompt(text, concept, style, template)


@dataclass(frozen=True)
class Prompt:
    """A prompt and what it asks for."""

    text: str
    object: str | None = None
    style: str | None = None
    template: int = 0


@dataclass(frozen=True)
class Concept:
    """What is to be erased: an object, a style, an object in a style, or whatever the given prompts ask for.

    Several concepts of one run together are "mixed" unless they are of one kind.
    """

    name: str
    kind: Kind
    object: str | None = None
    style: str | None = None

    def matches(self, prompt: Prompt) -> bool:
        """Whether the prompt asks for the concept."""
        return (self.object is None or prompt.object == self.object) and (self.style is None or prompt.style == self.style)


def find_concept(name: str, vocabulary: Vocabulary) -> Concept:
    """The concept that a free text names; raises ValueError that names the nearest known ones if it names none.

    Text within the vocabulary is enough: "dog", "a photo of a dog", "neon style", "a dog in neon style".
    """
    text = tidy(name)
    if not text:
        raise ValueError('the concept is empty; name one, as in `erase --concept dog` (see "erase concepts").')
    objects = _named(text, vocabulary.objects)
    styles = _named(text, vocabulary.styles)
    left = _without(text, (*objects, *styles))
    known = {word for t in (*vocabulary.plain_templates, *vocabulary.styled_templates) for word in re.findall(r"\w+", t)}
    strange = [word for word in left.split() if word not in known | {"an", "the", "style", "all", "every"}]
    if len(objects) > 1 or len(styles) > 1:
        raise ValueError(f"{name!r} names {' and '.join((*objects, *styles))}; erase one object, one style, or one pair.")
    if strange or not (objects or styles):
        near = list(dict.fromkeys([*objects, *styles, *nearest(" ".join(strange) or text, vocabulary)]))[:3]
        raise ValueError(
            f"the model does not know {name!r}; the nearest it draws: {', '.join(near)} (`erase concepts` lists all; any other "
            "concept needs a Stable Diffusion checkpoint: `erase --concept CONCEPT --model CHECKPOINT`)."
        )
    concept, style = (objects or (None,))[0], (styles or (None,))[0]
    if concept and style:
        return Concept(f"{concept}, {style} style", "composition", concept, style)
    return Concept(concept or style or "", "object" if concept else "style", concept, style)


def tidy(text: str) -> str:
    """The text in lower case without punctuation and genitives."""
    return " ".join(re.sub(r"[^\w\s-]", " ", text.lower().replace("'s ", " ").removesuffix("'s")).split())


@lru_cache(maxsize=10_000)
def bare(text: str) -> str:
    """The text tidied and without articles."""
    return " ".join(word for word in tidy(text).split() if word not in ("a", "an", "the"))


def names_within(name: str, text: str) -> bool:
    """Whether the name, in the singular or plural, stands in the text as words of its own."""
    return bool(bare(name)) and bool(_pattern(bare(name)).search(bare(text)))


def same_name(one: str, other: str) -> bool:
    """Whether the two are one name, but for case, articles, hyphens and number."""
    one, other = bare(one), bare(other)
    return bool(one and other) and bool(_pattern(one).fullmatch(other) or _pattern(other).fullmatch(one))


def _named(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if _pattern(n).search(text))


def _without(text: str, names: tuple[str, ...]) -> str:
    for name in names:
        text = _pattern(name).sub(" ", text)
    return text


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """The name as a word, singular or plural, its words joined by space or hyphen."""
    stem = re.escape(name[:-1]) + "(y|ies)" if name.endswith("y") else re.escape(name) + "(s|es)?"
    return re.compile(rf"\b{stem.replace(chr(92) + ' ', '[ -]').replace(chr(92) + '-', '[ -]')}\b")


# What people call things that the lists name otherwise.
SYNONYMS: dict[str, str] = {
    "puppy": "dog", "hound": "dog", "springer": "dog", "kitten": "cat", "bunny": "rabbit", "hare": "rabbit",
    "pony": "horse", "tench": "fish", "goldfish": "fish", "bird": "penguin", "moth": "butterfly", "insect": "butterfly",
    "chapel": "church", "cathedral": "church", "temple": "church", "home": "house", "hut": "house", "fortress": "castle",
    "palace": "castle", "auto": "car", "automobile": "car", "taxi": "car", "lorry": "truck", "van": "truck", "bus": "truck",
    "plane": "airplane", "jet": "airplane", "aircraft": "airplane", "boat": "sailboat", "ship": "sailboat", "yacht": "sailboat",
    "petrol": "gas pump", "fuel": "gas pump", "gasoline": "gas pump", "horn": "trumpet", "violin": "guitar", "soccer": "ball",
    "football": "ball", "basketball": "ball", "golf": "ball", "photo camera": "camera", "fruit": "apple", "pear": "apple",
    "forest": "tree", "plant": "tree", "oak": "tree", "tape": "cassette", "chainsaw": "saw", "chain saw": "saw",
    "skydiver": "parachute", "drawing": "line art", "sketch": "line art", "pencil": "line art", "outline": "line art",
    "comic": "cartoon", "anime": "cartoon", "render": "3d", "8-bit": "pixel art", "retro": "pixel art", "glow": "neon",
    "decal": "sticker",
}  # fmt: skip


def nearest(text: str, vocabulary: Vocabulary, num: int = 3) -> list[str]:
    """The known names most like the text, by meaning where it is a common synonym, by spelling otherwise."""
    names = [*vocabulary.objects, *vocabulary.styles]
    meant = [SYNONYMS[word] for word in (text, *text.split()) if SYNONYMS.get(word) in names]
    spelt = difflib.get_close_matches(text, names, n=num, cutoff=0.0)
    return list(dict.fromkeys([*meant, *spelt]))[:num]


def alternatives(concept: Concept, vocabulary: Vocabulary) -> tuple[str, ...]:
    """What the concept can be relabelled to: the other objects, or the other styles (for a pair: objects in that style)."""
    if concept.object:
        return tuple(name for name in vocabulary.objects if name != concept.object)
    return tuple(name for name in vocabulary.styles if name != concept.style)


def relabel(prompt: Prompt, concept: Concept, other: str, vocabulary: Vocabulary) -> Prompt:
    """The prompt with the concept's object (or, for a style, its style) replaced."""
    assert prompt.object is not None
    if concept.object:
        return vocabulary.prompt(other, prompt.style, prompt.template)
    return vocabulary.prompt(prompt.object, other, prompt.template)


def concept_version(prompt: Prompt, concept: Concept, vocabulary: Vocabulary) -> Prompt:
    """The prompt that asks for the concept where this one asks for something else."""
    assert prompt.object is not None
    style = concept.style or prompt.style
    return vocabulary.prompt(concept.object or prompt.object, style, prompt.template)


def forget_prompts(concept: Concept, vocabulary: Vocabulary, num: int) -> list[Prompt]:
    """`num` prompts for the concept, going round objects, styles and templates; every fourth for an object names no style."""
    objects = [concept.object] if concept.object else list(vocabulary.objects)
    styles = [concept.style] if concept.style else list(vocabulary.styles)
    prompts = []
    for k in range(num):
        turn = k // max(
            len(objects), len(styles), len(vocabulary.styled_templates)
        )  # styles and templates shift against each other at every turn
        plain = concept.kind == "object" and k % 4 == 3
        style = None if plain else styles[(k + turn) % len(styles)]
        prompts.append(vocabulary.prompt(objects[k % len(objects)], style, k // 4 if plain else k + 2 * turn))
    return prompts


def prompt_alone(concept: Concept, vocabulary: Vocabulary) -> Prompt:
    """The prompt that asks for the concept and names nothing else: "a dog", "neon style"."""
    if concept.object:
        return vocabulary.prompt(concept.object, concept.style)
    return Prompt(f"{concept.style} style", style=concept.style)


def retain_prompts(concept: Concept, vocabulary: Vocabulary, num: int, others: Sequence[Concept] = ()) -> list[Prompt]:
    """`num` prompts for everything else: all other cells of objects x styles in a fixed shuffle, every fifth without style.

    `others` are the concepts that the same run erases: no prompt asks for them either.
    """
    erased = (concept, *others)
    cells = [vocabulary.prompt(o, s) for o, s in itertools.product(vocabulary.objects, vocabulary.styles)]
    cells = [cell for cell in cells if not any(c.matches(cell) for c in erased)]
    random.Random(0).shuffle(cells)
    prompts = []
    for k, cell in enumerate(itertools.islice(itertools.cycle(cells), num)):
        assert cell.object is not None
        plain = k % 5 == 4 and all(cell.object != c.object and c.style is None for c in erased)
        prompts.append(vocabulary.prompt(cell.object, None if plain else cell.style, k))
    return prompts


def evaluation_prompts(
    concept: Concept, vocabulary: Vocabulary, num_forget: int, retain_per_cell: int, others: Sequence[Concept] = ()
) -> tuple[list[Prompt], list[Prompt]]:
    """(for the concept, for everything else): each other object x style cell `retain_per_cell` times, styles always named."""
    kept = [
        vocabulary.prompt(o, s, i + j + repeat)
        for i, o in enumerate(vocabulary.objects)
        for j, s in enumerate(vocabulary.styles)
        for repeat in range(retain_per_cell)
        if not any(c.matches(vocabulary.prompt(o, s)) for c in (concept, *others))
    ]
    return forget_prompts(concept, vocabulary, num_forget), kept
