"""What a run will do before it begins: the same as ever for one concept, and never one concept in place of another."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from faults import Silent
from PIL import Image

import erase.words
from benchmarks.methods_pilot import POINTS, data_key
from erase.concepts import Prompt, names_within
from erase.config import validate
from erase.data import shares
from erase.dry_run import report
from erase.plan import Plan, plan
from erase.recipes import resolve
from erase.run import execute
from erase.templates import names_any
from erase.words import Proposal, candidates, word_list
from eval.detectors import EmojiJudge, Reading
from eval.pictures import Picture, Request, hash_pixels, write_png
from pipelines.emoji.vocabulary import all_captions
from pipelines.load import EMOJI_VOCABULARY, load
from pipelines.stable_diffusion import StableDiffusion

KNOWN: Any = SimpleNamespace(vocabulary=EMOJI_VOCABULARY)  # a plan asks a model with a vocabulary for nothing else


def known(*concepts: str, settings: tuple[str, ...] = ()) -> Plan:
    return plan(resolve({"concept": concepts[0] if len(concepts) == 1 else list(concepts)}, list(settings)), KNOWN)


def digest(planned: Plan) -> str:
    def row(prompt: Prompt | None) -> Any:
        return prompt and [prompt.text, prompt.object, prompt.style, prompt.template]

    data = planned.data
    rows = [[row(p) for p in prompts] for prompts in (data.forget, data.retain, data.dual)]
    rows += [[row(p) for p in prompts] for prompts in (planned.forget_evaluation, planned.retain_evaluation)]
    values = [planned.concept.name, planned.concept.kind, list(planned.anchors), list(planned.neighbours), rows[0]]
    values += [[[row(p) for p in prompts] for prompts in data.relabelled], rows[1], rows[2], data.num_anchor, *rows[3:]]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@pytest.mark.parametrize(
    ("concept", "settings", "pinned"),
    [
        ("dog", (), "7bdc8478e6d496c0edc114b1074a82c33a04afdae4a70a4f9ce82da700a598ae"),
        ("line art", (), "d45b78ec1458eb9434f4e710012508f4ad6e4794dd5f62f528e669d6bc495e17"),
        ("a truck, pixel art style", (), "fa5a4528aef61c5487c8b735d888ddc3e71b09e71eb6d16d939d989ffa89af88"),
        ("dog", ("method.relabel=random_label",), "810851cf0923b2477a5299e91977f02914af9092fe678ceee8c07cdb5f03ab62"),
        (
            "line art",
            ("method.relabel=random_label", "method.anchor=next"),
            "2d259c92583124ed1349ec2177ea443ce4c2cc0a9db7566567de67883301d407",
        ),
        (
            "a truck, pixel art style",
            ("method.relabel=random_label",),
            "760e656b70c990546beb4499e21150ee3cb539db52632c6164cfab40ac60d47f",
        ),
    ],
)
def test_one_concepts_plan_is_that_of_the_first_version(concept: str, settings: tuple[str, ...], pinned: str) -> None:
    """Every prompt in order, hashed by the code from before several concepts could be erased together.

    Line art's by that of the day when its anchor and neighbours became those whose pictures are nearest.
    """
    assert digest(known(concept, settings=settings)) == pinned


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dog"], ["cassette"]),
        (["line art"], ["pixel art"]),
        (["neon"], ["3d"]),  # the last style
        (["tree"], ["fish"]),  # the last object
        (["a truck, pixel art style"], ["gas pump"]),
        (["dog", "cassette", "neon"], ["saw", "saw", "3d"]),  # what is erased beside it is passed over
    ],
)
def test_next_is_the_next_in_the_list_by_hand(names: list[str], expected: list[str]) -> None:
    planned = known(*names, settings=("method.anchor=next",))
    assert [target.anchors for target in planned.targets] == [(anchor,) for anchor in expected]


def test_what_becomes_the_next_is_asked_for_in_its_place_by_hand() -> None:
    planned = known("dog", settings=("method.anchor=next", "data.num_forget=4", "data.num_anchor=2")).data
    assert [
        (prompt.text, [other.text for other in row]) for prompt, row in zip(planned.forget, planned.relabelled, strict=True)
    ] == [
        ("a dog, 3d style", ["a cassette, 3d style"]),
        ("a dog in cartoon style", ["a cassette in cartoon style"]),
        ("an image of a dog, sticker style", ["an image of a cassette, sticker style"]),
        ("a dog", ["a cassette"]),
    ]
    assert [(kept.text, dual and dual.text) for kept, dual in zip(planned.retain[:3], planned.dual[:3], strict=True)] == [
        ("a cassette, 3d style", "a dog, 3d style"),
        ("a cassette in cartoon style", "a dog in cartoon style"),
        (planned.retain[2].text, None),
    ]


def test_a_list_of_one_is_that_one() -> None:
    config = validate({"concept": ["dog"]})
    assert config == validate({"concept": "dog"}) and config.concepts == ("dog",)
    assert digest(plan(config, KNOWN)) == digest(plan(validate({"concept": "dog"}), KNOWN))


SETS = {
    "objects": ("dog", "church"),
    "relatives": ("dog", "cat", "rabbit"),
    "styles": ("neon", "3d"),
    "object and style": ("dog", "neon"),
    "object and pair": ("cat", "a dog, neon style"),
    "style and pair": ("3d", "a dog, neon style"),
    "pairs of one object": ("a dog, neon style", "a dog, 3d style"),
    "four": ("dog", "church", "neon", "a fish, 3d style"),
}


@pytest.mark.parametrize("relabel", ["concept_remap", "random_label"])
@pytest.mark.parametrize("names", SETS.values(), ids=SETS)
def test_together_no_concept_stands_in_for_another_and_none_is_kept(names: tuple[str, ...], relabel: str) -> None:
    planned = known(*names, settings=(f"method.relabel={relabel}", "data.num_forget=50"))
    concepts = [target.concept for target in planned.targets]

    def asked(prompt: Prompt) -> list[str]:
        return [concept.name for concept in concepts if concept.matches(prompt)]

    forget = [asked(prompt) for prompt in planned.data.forget]
    assert all(len(matched) == 1 for matched in forget), "a forget prompt asks for two concepts"
    assert Counter(matched[0] for matched in forget) == dict(
        zip([c.name for c in concepts], shares(50, len(concepts)), strict=True)
    )
    others = [*planned.data.retain, *planned.retain_evaluation, *(p for row in planned.data.relabelled for p in row)]
    assert not any(asked(prompt) for prompt in others)
    assert len({len(row) for row in planned.data.relabelled}) == 1
    duals = [asked(prompt) for prompt in planned.data.dual if prompt]
    assert all(len(matched) == 1 for matched in duals)
    assert {matched[0] for matched in duals} == {concept.name for concept in concepts}
    assert len(planned.data.dual) == len(planned.data.retain)


def test_together_there_is_one_set_of_each_and_every_concept_is_measured_as_often() -> None:
    alone, both = known("dog"), known("dog", "church")
    assert len(both.data.forget) == 72 and len(alone.data.forget) == 48, "a further concept takes more"
    assert both.data.num_anchor == 36 and alone.data.num_anchor == 24
    assert len(both.data.retain) == len(alone.data.retain) + 12
    assert [len(target.evaluation) for target in both.targets] == [96, 96]
    assert both.forget_evaluation == [prompt for target in both.targets for prompt in target.evaluation]
    assert both.concept.name == "dog + church" and both.concept.kind == "object" and both.anchors == ("cat + castle",)
    assert [target.anchors for target in both.targets] == [("cat",), ("castle",)]
    assert known("dog", "neon").concept.kind == "mixed"


def test_an_erased_relative_is_passed_over_for_the_next_one() -> None:
    assert [target.anchors for target in known("dog", "cat").targets] == [("rabbit",), ("rabbit",)]


def test_one_anchor_each_in_their_order() -> None:
    planned = plan(resolve({"concept": ["dog", "church"], "method.anchor": ["horse", "tree"]}, []), KNOWN)
    assert [target.anchors for target in planned.targets] == [("horse",), ("tree",)]


def test_random_labels_of_unequal_number_stay_equally_likely() -> None:
    planned = known("dog", "neon", settings=("method.relabel=random_label",))
    for prompts in planned.data.relabelled:
        counts = Counter(prompt.text for prompt in prompts)
        assert len(set(counts.values())) == 1
    assert {len({p.text for p in row}) for row in planned.data.relabelled} == {23, 5}


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (["dog", "dog"], {}, "'dog' is given twice"),
        (["dog", "Dogs"], {}, "'dog' is given twice"),
        (["dog", "a dog, neon style"], {}, "'dog, neon style' is part of 'dog'"),
        (["a dog, neon style", "neon"], {}, "'dog, neon style' is part of 'neon'"),
        (["dog", "puppy"], {}, "does not know 'puppy'"),
        (["dog", "church"], {"method.anchor": "cat"}, "one anchor .'cat'. is given for 2 concepts"),
        (["dog", "church"], {"method.anchor": ["cat", "castle", "cat"]}, "3 anchors are given for 2 concepts"),
        (["dog", "church"], {"method.anchor": ["church", "castle"]}, "'church' of 'dog' is erased too"),
        (["dog", "church"], {"method.anchor": ["dog", "castle"]}, "anchor is the concept itself"),
        (["dog", "church"], {"data.num_forget": 1}, "2 concepts need one picture each"),
        (["dog", "church"], {"prompts.forget": ["a"]}, r"give prompts\.each\.dog\.forget"),
        (list(EMOJI_VOCABULARY.styles), {}, "nothing that the model draws is left"),
        ("dog", {"prompts.kind": "style"}, "'dog' is of kind 'object'"),
        ("dog", {"prompts.neighbours": ["wolf"]}, "for models that draw anything"),
        ("dog", {"prompts.each": {"cat": {}}}, r"prompts\.each\.cat matches none of the concepts"),
        ("dog", {"method.teacher": "moving"}, r"teacher=moving with method.retain=distill keeps nothing"),
        ("dog", {"prompts.becomes": ["a cat"]}, r"becomes is given without prompts\.forget"),
        ("dog", {"prompts.retain": ["a cat"]}, r"retain is given without prompts\.forget"),
        ("dog", {"prompts.forget": ["a dog"]}, "are needed too"),
        ("dog", {"prompts.forget": ["a"], "prompts.becomes": ["a"], "prompts.retain": ["b"]}, "asks for the concept itself"),
        ("dog", {"prompts.forget": ["a"], "prompts.becomes": [" "], "prompts.retain": ["b"]}, "holds an empty text"),
    ],
)
def test_what_contradicts_itself_is_refused_in_a_sentence(names: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        plan(resolve({"concept": names} | given, []), KNOWN)
    assert "\n" not in str(error.value)


def test_the_share_over_several_concepts_is_the_mean_of_theirs() -> None:
    """By hand: 3 of 4 dogs and 1 of 4 churches are still seen."""
    from erase.evaluation import measures_of

    planned = known("dog", "church", settings=("evaluation.num_forget=4",))
    seen = ["dog", "dog", "dog", "cat", "church", "dog", None, "castle"]
    readings = [(p, Reading(o, "neon")) for p, o in zip(planned.forget_evaluation, seen, strict=True)]
    readings += [(p, Reading(p.object, p.style or "3d")) for p in planned.retain_evaluation]
    record, parts = measures_of(planned, readings)
    assert parts == [(0.75, 4), (0.25, 4)]
    assert record["forget_accuracy"] == 0.5 and record["intervals"]["forget"]["n"] == 8
    assert record["ira"] == record["cra"] == 1.0 and record["intervals"]["ira"]["n"] == 22 * 6


def test_a_picture_that_cannot_be_read_is_named_and_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measures are over all prompts: one picture less would give every later prompt another one's reading."""
    from erase.evaluation import draw_and_measure

    def draws(family: Any, requests: list[Request], folder: Path, **about: Any) -> list[Picture]:
        pixels = np.full((64, 64, 3), 200, np.uint8)
        pictures = []
        for k, request in enumerate(requests):
            write_png(pixels, folder / f"{k:05d}.png")
            facts = request.model_dump() | {"file": f"{k:05d}.png", "model": about["model"]}
            pictures.append(Picture(**facts, sha256=hash_pixels(pixels), batch_size=about["batch_size"]))
        (folder / damaged).write_bytes(b"no picture")
        return pictures

    planned = known("dog", settings=("evaluation.num_forget=4", "evaluation.retain_per_cell=1"))
    planned = replace(planned, retain_evaluation=planned.retain_evaluation[:4])
    monkeypatch.setattr("eval.generate.generate", draws)
    damaged = "00002.png"
    with pytest.raises(ValueError, match=r"00002\.png cannot be read as a picture .* run the same command again") as told:
        draw_and_measure(planned, KNOWN, EmojiJudge(), tmp_path, print, model="m", use_cache=False)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["dog", "neon", "a dog, neon style"])
def test_without_an_anchor_the_concept_becomes_the_empty_prompt(name: str) -> None:
    """Nothing stands for it, so no retain picture is asked for as the concept; nothing else changes."""
    planned, plain = known(name, settings=("method.anchor=none",)), known(name)
    assert planned.anchors == () and planned.data.num_anchor == 0
    assert [[p.text for p in row] for row in planned.data.relabelled] == [[""]] * len(planned.data.forget)
    assert planned.data.dual == [None] * len(planned.data.retain)
    assert planned.data.forget == plain.data.forget and planned.data.retain == plain.data.retain[plain.data.num_anchor :]


def test_the_words_that_name_the_concepts_go_with_the_data() -> None:
    assert known("dog", "neon").data.names == ("dog", "neon")
    assert known("a dog, neon style").data.names == ("dog", "neon")


def test_the_concept_alone_is_asked_for_by_nothing_else() -> None:
    """Of several, each picture's own; and these are captions that the embedded model was trained on."""
    captions = all_captions()
    texts = {"dog": "a dog", "apple": "an apple", "neon": "neon style", "a truck in neon style": "a truck, neon style"}
    for concept, text in texts.items():
        planned = known(concept).data
        assert [prompt.text for prompt in planned.alone] == [text] * len(planned.forget) and text in captions
    several = known("dog", "neon", settings=("data.num_forget=5",)).data
    assert [prompt.text for prompt in several.alone] == ["a dog"] * 3 + ["neon style"] * 2
    assert all("dog" in prompt.text for prompt in several.forget[:3])


def test_pilot_points_share_a_data_set_if_nothing_decides_it_otherwise() -> None:
    """The shipped points do but for random labels; another anchor, other data or another concept do not."""

    def key(concept: str, method: str, *settings: str) -> str:
        return data_key(plan(resolve({"concept": concept, "method.name": method}, list(settings)), KNOWN))

    points = [(name, point) for name, points in POINTS.items() for point in points]
    shared = key("cat", "salun")
    assert {name for name, point in points if key("cat", name, *point) != shared} == {"paper"}
    changed = [("uce", "method.anchor=none"), ("munba", "method.anchor=horse"), ("concept_ablation", "data.num_anchor=12")]
    changed += [("esd", "data.num_inference_steps=3"), ("erasediff", "method.relabel=random_label")]
    assert shared not in [key("cat", *point) for point in changed] + [key("guitar", "salun")]


def test_a_known_model_takes_no_synonyms() -> None:
    with pytest.raises(ValueError, match=r"prompts.synonyms is for models that draw anything"):
        known("dog", settings=("prompts.synonyms=[puppy]",))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("method.name=concept_ablation", "method.anchor=none"), "what 'dog' becomes, and there are none: give it an anchor"),
        (("method.name=forget_me_not", "train.gradient_checkpointing=true"), "train.gradient_checkpointing discards"),
        (
            (
                "method.name=concept_ablation",
                "prompts.forget=[a dog]",
                "prompts.becomes=[a cat]",
                "prompts.retain=[a horse]",
            ),
            r"put what is in its prompts\.becomes into its prompts\.retain as well\.$",
        ),
        (("method.name=retrain", "model=owner/name", "prompts.neighbours=[]"), "retrain is for the embedded model"),
    ],
)
def test_what_a_method_cannot_do_is_said_before_any_picture_is_drawn(settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        known("dog", settings=settings)


def test_a_method_that_finds_its_pictures_is_not_refused() -> None:
    """Concept ablation with no pictures of the anchor's own has those of the retain set; by hand, those that stand in both."""
    by_hand = ("prompts.forget=[a dog]", "prompts.becomes=[a cat]", "prompts.retain=[a horse, a cat]")
    for more in (by_hand, ("data.num_anchor=0",), ("method.anchor=horse",)):
        assert any(known("dog", settings=("method.name=concept_ablation", *more)).data.dual)
    both = ("method.name=concept_ablation", "data.num_anchor=1")
    with pytest.raises(ValueError, match=r"what 'church' becomes, and there are none: give data\.num_anchor of at least 2"):
        known("dog", "church", settings=both)
    known("dog", settings=("method.name=forget_me_not",))


# --- a model that draws anything


@pytest.fixture
def open_family(tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> StableDiffusion:
    """The tiny model without its vocabulary; of the word list every seventh and what the tests name."""
    named = ("zebra", "cat", "horse", "cubism", "golden retriever", "church", "violence", "people talking")
    everyday = [w for w in word_list() if w.kind == "other" and w.neutral is None]
    words = tuple(w for k, w in enumerate(word_list()) if k % 7 == 0 or w.text in named or w in everyday)
    monkeypatch.setattr(erase.words, "word_list", lambda: words)
    return StableDiffusion(tiny_pipeline, None)


SMALL = {"data.num_forget": 12, "data.num_retain": 30, "data.num_anchor": 6, "evaluation.num_forget": 4}


def open_plan(family: Any, names: Any, **given: Any) -> Plan:
    values = {"concept": names, "model": "owner/name"} | SMALL | {k.replace("__", "."): v for k, v in given.items()}
    return plan(resolve(values, []), family)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("zebra", "object"),
        ("Brad Pitt", "person"),
        ("cubism", "style"),
        ("in the style of Miro", "style"),
        ("violence", "other"),
        ("golden retriever", "object"),
    ],
)
def test_any_concept_is_planned_from_its_name(name: str, kind: str, open_family: StableDiffusion) -> None:
    planned = open_plan(open_family, name)
    concept, data = planned.concept, planned.data
    assert concept.kind == kind and not concept.name.startswith("in the style")
    assert (len(data.forget), len(data.retain), data.num_anchor) == (12, 36, 6)
    assert len({prompt.text for prompt in data.forget}) > 4
    assert all(names_within(concept.name, prompt.text) for prompt in data.forget)
    others = [*data.retain, *(prompt for row in data.relabelled for prompt in row)]
    assert not any(names_within(concept.name, prompt.text) for prompt in others)
    assert all(names_within(planned.anchors[0], prompt.text) for row in data.relabelled for prompt in row)
    assert [dual is not None for dual in data.dual] == [True] * 6 + [False] * 30
    assert data.dual[:6] == data.forget[:6] and data.retain[:6] == [row[0] for row in data.relabelled[:6]]
    assert len({prompt.text for prompt in data.retain[6:]}) == 30, "a prompt to keep comes twice"
    assert len(planned.neighbours) >= 3 and planned.anchors[0] not in planned.neighbours
    notes = "\n".join(planned.notes)
    assert f"kind {kind} (guessed" in notes and repr(planned.anchors[0]) in notes and planned.neighbours[-1] in notes


def test_every_second_forget_prompt_asks_for_a_synonym(open_family: StableDiffusion) -> None:
    """In turn, in the same wording; the anchor's prompts beside them and the rest of the plan are as without, and no prompt to
    keep names one."""
    given = {"prompts__kind": "object", "method__anchor": "donkey", "prompts__neighbours": ["horse", "okapi"]}
    plain = open_plan(open_family, "zebra", **given)
    wide = open_plan(open_family, "zebra", prompts__synonyms=["striped horse", "quagga"], **given)
    forget = [prompt.text for prompt in wide.data.forget]
    assert forget[::2] == [prompt.text for prompt in plain.data.forget[::2]]
    assert [name for text in forget[1::2] for name in ("striped horse", "quagga") if name in text] == [
        *("striped horse", "quagga") * 3
    ]
    assert wide.data.relabelled == plain.data.relabelled and wide.data.names == ("zebra", "striped horse", "quagga")
    assert not any("quagga" in prompt.text for prompt in wide.data.retain)
    assert [prompt.text for prompt in plain.data.alone] == ["a zebra"] * len(forget)
    assert [prompt.text for prompt in wide.data.alone[:4]] == ["a zebra", "a striped horse", "a zebra", "a quagga"]
    with pytest.raises(ValueError, match=r"prompts.synonyms has 'horse'"):
        open_plan(open_family, "zebra", prompts__synonyms=["horse"], **given)


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_is_taken_for_the_same_thing_is_not_kept(
    by_hand: bool, open_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is protected by hand."""
    one, other = [word.text for word in candidates("object", ("zebra", "horse", "donkey"))][:2]
    neighbours = ["horse", one] if by_hand else ["horse"]
    given = {"prompts__kind": "object", "prompts__neighbours": neighbours, "data__num_retain": 2 * len(word_list())}
    proposal = Proposal("donkey", "nearest", ("horse",), ())
    monkeypatch.setattr("erase.plan.propose", lambda *_: proposal)
    assert {one, other} <= {prompt.object for prompt in open_plan(open_family, "zebra", **given).data.retain}
    proposal = replace(proposal, same=(one, other))
    planned = open_plan(open_family, "zebra", **given)
    kept = {prompt.object for prompt in planned.data.retain}
    assert {one, other} & kept == ({one} if by_hand else set()) and len(kept) > 40
    assert planned.notes[-1] == f"zebra: taken for the same thing, so not protected: {one}, {other}"


def test_no_anchor_is_proposed_for_a_method_that_takes_none(open_family: StableDiffusion) -> None:
    """What is asked for, and what is protected, stays as it was."""
    notes = open_plan(open_family, "zebra", method__name="esd").notes
    assert not [note for note in notes if "becomes" in note] and [note for note in notes if "protected beside it" in note]


def test_what_is_given_is_not_proposed(open_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the text encoder is asked."""
    monkeypatch.setattr(open_family, "encode_prompts", None)
    given = {"prompts__kind": "object", "method__anchor": "donkey", "prompts__neighbours": ["horse", "okapi"]}
    planned = open_plan(open_family, "zebra", **given)
    assert (planned.anchors, planned.neighbours, planned.notes) == (("donkey",), ("horse", "okapi"), ())
    kept = Counter(prompt.object for prompt in planned.data.retain)
    assert (kept["horse"], kept["okapi"]) == (8, 7), "half of 30, in turn"


def test_the_kind_decides_the_wording(open_family: StableDiffusion) -> None:
    texts = {
        kind: [p.text for p in open_plan(open_family, "gothic", prompts__kind=kind).data.forget] for kind in ("style", "object")
    }
    assert "a photo of a gothic" in texts["object"] and "a cat in the style of gothic" in texts["style"]
    assert "guessed" not in "".join(open_plan(open_family, "gothic", prompts__kind="style").notes)


def test_a_name_alone_is_worded_by_its_kind(open_family: StableDiffusion) -> None:
    names = {"zebra": "a zebra", "Brad Pitt": "Brad Pitt", "in the style of Miro": "Miro style", "violence": "violence"}
    for name, text in names.items():
        assert [prompt.text for prompt in open_plan(open_family, name).data.alone] == [text] * 12


def test_with_random_labels_the_neighbours_are_the_labels(open_family: StableDiffusion) -> None:
    planned = open_plan(open_family, "zebra", method__relabel="random_label", prompts__neighbours=["horse", "cow"])
    assert planned.anchors == ("horse", "cow") and planned.data.num_anchor == 0
    assert [[prompt.object for prompt in row] for row in planned.data.relabelled] == [["horse", "cow"]] * 12
    for kept, dual in zip(planned.data.retain, planned.data.dual, strict=True):
        assert (dual is not None) == (kept.object in ("horse", "cow"))
        assert dual is None or dual.text == kept.text.replace(kept.object, "zebra")


def test_several_by_name_never_name_each_other(open_family: StableDiffusion) -> None:
    """Also where a style's scenes show the object that is erased beside it."""
    names = ("cat", "horse", "cubism")
    planned = open_plan(open_family, list(names))
    assert planned.concept.name == "cat + horse + cubism" and planned.concept.kind == "mixed"
    assert [[n for n in names if names_within(n, prompt.text)] for prompt in planned.data.forget] == [
        [name] for name in names for _ in range(4)
    ]
    others = [*planned.data.retain, *planned.retain_evaluation, *(prompt for row in planned.data.relabelled for prompt in row)]
    assert not [prompt.text for prompt in others if names_any(names, prompt.text)]
    assert len(planned.data.retain) == 36 and planned.data.num_anchor == 6
    assert not set(names) & {*planned.neighbours, *(a for target in planned.targets for a in target.anchors)}


def test_given_prompts_and_names_go_together(open_family: StableDiffusion) -> None:
    planned = open_plan(open_family, ["nudity", "church"])
    assert planned.targets[0].concept.kind == "prompts" and planned.targets[1].anchors == ("castle",)
    assert [p.text for p in planned.data.forget[:6]] == list(planned.config.prompts.each["nudity"].forget[:6])
    assert [row[0].text for row in planned.data.relabelled[:6]] == list(planned.targets[0].anchors[:6])
    assert [p.text for p in planned.data.alone] == ["nudity"] * 6 + ["a church"] * 6


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        ("", {}, "concept is ''"),
        ("  ", {}, "the concept is empty"),
        ("!?", {}, "the concept is empty"),
        ([], {}, "concept is .*a list of texts"),
        (["zebra", ""], {}, "1 to 200 characters"),
        (["zebra", "Zebras"], {}, "'zebra' is given twice"),
        (["zebra", "a zebra"], {}, "'zebra' is given twice"),
        (["truck", "garbage truck"], {}, "'garbage truck' is part of 'truck'"),
        ("zebra", {"method.anchor": "zebra"}, "the anchor 'zebra' asks for the concept itself"),
        ("zebra", {"method.anchor": "a plains zebra"}, "asks for the concept itself"),
        ("zebra", {"method.anchor": "next"}, "only among Imagenette's ten classes, and 'zebra' is none of them"),
        ("zebra", {"prompts.neighbours": ["horse", "zebras"]}, "the neighbour 'zebras' asks for the concept itself"),
        ("zebra", {"prompts.kind": "animal"}, r"prompts\.kind is 'animal'.*'object', 'style', 'person' or 'other'"),
        (["zebra", "horse"], {"method.anchor": ["horse", "cow"]}, "'horse' of 'zebra' is erased too"),
        (["zebra", "horse"], {"prompts.each": {"zebra": {"neighbours": ["horse"]}}}, "'horse' of 'zebra' is erased too"),
        ("nudity", {"method.anchor": "cat"}, "an anchor has no effect"),
        ("nudity", {"prompts.neighbours": ["cat"]}, "neighbours has no effect"),
        ("nudity", {"prompts.synonyms": ["bareness"]}, r"prompts\.synonyms has no effect beside prompts\.forget"),
        (["zebra", "cow"], {"prompts.synonyms": ["quagga"]}, r"several give prompts\.each\.zebra\.synonyms"),
        ("zebra", {"prompts.synonyms": [" "]}, "prompts holds an empty text"),
        (["nudity", "a person"], {}, "asks for another concept that is erased"),
        ("zebra", {"prompts.each": {"zebra": {"forgot": []}}}, r"prompts\.each\.zebra\.forgot is not a setting \(known: kind,"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(
    names: Any, given: dict[str, Any], words: str, open_family: StableDiffusion
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        plan(resolve({"concept": names, "model": "owner/name"} | SMALL | given, []), open_family)
    assert "\n" not in str(error.value)


def test_a_prompt_or_a_picture_cannot_be_forgotten_and_kept(tmp_path: Path) -> None:
    prompts = ["prompts.forget=[a dog, a hound]", "prompts.becomes=[a cat]", "prompts.retain=[a house, a hound]"]
    with pytest.raises(ValueError, match=r"'a hound' is in prompts\.forget and in prompts\.retain"):
        plan(resolve({"concept": "dog"}, prompts), load("emoji"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / "x.png")
    (tmp_path / "b" / "x.txt").write_text("a cat")
    folders = [f"data.forget_images={tmp_path / 'a'}", f"data.retain_images={tmp_path / 'b'}"]
    with pytest.raises(ValueError, match="hold the same pictures"):
        plan(resolve({"concept": "dog"}, folders), load("emoji"))
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "b" / "x.png")
    assert plan(resolve({"concept": "dog"}, folders), load("emoji")).data.retain_images


@pytest.mark.parametrize("anchor", ["Cat", "a cat", "cats"])
def test_an_anchor_is_known_as_a_concept_is(anchor: str) -> None:
    assert plan(resolve({"concept": "dog", "method.anchor": anchor}, []), load("emoji")).anchors == ("cat",)
    with pytest.raises(ValueError, match="the anchor is the concept itself"):
        plan(resolve({"concept": "cat", "method.anchor": anchor}, []), load("emoji"))


def test_a_density_that_chooses_no_weight_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    family = load("emoji")
    planned = plan(resolve({"concept": "dog"}, ["saliency.density=1e-9"]), family)
    with pytest.raises(ValueError, match="less than one of 9,525,412 weights"):
        execute(planned, family, tmp_path / "run", Silent(), "base")
    with pytest.raises(ValueError, match="less than one of 9,525,412 weights"):
        report(planned, family, tmp_path / "run")
    assert not (tmp_path / "run").exists()
