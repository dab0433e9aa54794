"""The configuration: every field described, every mistake named, every shipped YAML valid."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from erase.config import SETTINGS, RunConfig, override, validate
from erase.methods import METHODS
from erase.methods.base import Config
from erase.reading import read_yaml
from erase.recipes import config_folder, resolve


def sections(config: type[Config], path: str = "") -> Iterator[tuple[str, type[Config]]]:
    """(dotted path, class) of a config and of every config within."""
    yield path, config
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from sections(field.annotation, f"{path}{name}.")
        elif config is RunConfig and name == "method":
            for kind in SETTINGS.values():
                yield from sections(kind, f"{path}{name}.")


FIELDS = [(path + name, field) for path, config in sections(RunConfig) for name, field in config.model_fields.items()]
FIELDS_IDS = [f"{path}-{k}" for k, (path, _) in enumerate(FIELDS)]


def test_there_are_fields() -> None:
    names = {path for path, _ in FIELDS}
    assert {"concept", "saliency.density", "train.steps", "method.alpha", "evaluation.seed", "data.num_forget"} <= names


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=FIELDS_IDS)
def test_every_field_has_a_sentence_and_a_sound_default(path: str, field: Any) -> None:
    assert field.description and field.description.rstrip().endswith((".", ")")), f"{path} has no description"
    assert field.is_required() == (path == "concept")


def test_every_method_of_the_config_is_a_method_and_every_one_does_something() -> None:
    assert SETTINGS.keys() == METHODS.keys()
    for method in METHODS.values():
        assert (method.rows is None) == (method.loss is None)
        assert [method.rows, method.start, method.remake] != [None] * 3
        assert method.line and method.paper


def test_a_config_is_frozen() -> None:
    config = RunConfig(concept="dog")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 1


@pytest.mark.parametrize("path", sorted(config_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_yaml_is_valid(path: Path) -> None:
    config = validate(read_yaml(path))
    assert config.concept


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("saliency.density", 0),
        ("saliency.density", 1.5),
        ("saliency.density", math.nan),
        ("saliency.density", -0.1),
        ("saliency.density", "half"),
        ("saliency.density", None),
        ("train.steps", 0),
        ("train.steps", 1.5),
        ("train.steps", 100_001),  # from there on the streams of train.py and best.py, 100,000 apart, repeat
        ("train.learning_rate", 0),
        ("train.learning_rate", math.inf),
        ("method.alpha", -1),
        ("method.alpha", math.nan),
        ("method.anchor_share", 1.01),
        ("method.relabel", "elsewhere"),
        ("method.name", "unknown"),
        ("data.num_forget", 0),
        ("data.forget_guidance_scale", 0.5),
        ("evaluation.batch_size", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("concept", ""),
        ("concept", "x" * 201),
        ("train", 5),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field_named(path: str, value: object) -> None:
    values: dict[str, Any] = {"concept": "dog"}
    level = values
    *parents, last = path.split(".")
    for parent in parents:
        level = level.setdefault(parent, {})
    level[last] = value
    with pytest.raises(ValueError, match=rf"^{path} is ") as error:
        validate(values)
    assert repr(value) in str(error.value)


def test_the_concept_is_required() -> None:
    with pytest.raises(ValueError, match="concept"):
        validate({})


@pytest.mark.parametrize("character", ["\n", "\x00", *(chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))])
def test_a_concept_has_no_characters_that_hide_what_it_says(character: str) -> None:
    """Those that join letters, as many languages need, are fine."""
    with pytest.raises(ValueError, match="no line breaks or control characters"):
        validate({"concept": f"dog{character}gip"})
    assert validate({"concept": "a\u200db\u200cc"}).concept == "a\u200db\u200cc"


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"seed is -1.*; train\.steps is 0"):
        validate({"concept": "dog", "seed": -1, "train": {"steps": 0}})


@pytest.mark.parametrize(("path", "section"), list(sections(RunConfig)), ids=[path or "top" for path, _ in sections(RunConfig)])
def test_an_unknown_key_is_refused_and_the_known_ones_are_named(path: str, section: type[Config]) -> None:
    values: dict[str, Any] = {"concept": "dog"}
    level = values
    for parent in path.split(".")[:-1]:
        level = level.setdefault(parent, {})
    if path == "method.":
        level["name"] = section.model_fields["name"].default
    level["densty"] = 1
    known = ", ".join(section.model_fields)
    with pytest.raises(ValueError, match=rf"^{path}densty is not a setting \(known: {known}\)"):
        validate(values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"concept: [dog", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"concept: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"- dog", "must hold a mapping"),
        (b"", "must hold a mapping"),
        (b"dog", "must hold a mapping"),
    ],
)
def test_bad_yaml_is_refused_with_the_file_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no config file"):
        read_yaml(tmp_path / "none.yaml")


def test_override_goes_down_dots_and_keeps_what_is_beside() -> None:
    values = {"concept": "dog", "train": {"steps": 5, "warmup_steps": 1}}
    assignments = ["train.steps=9", "method.alpha=0.5", "concept=line art", "method.alpha=2", "train.learning_rate=1e-4"]
    assert override(values, assignments) == {
        "concept": "line art",
        "train": {"steps": 9, "warmup_steps": 1, "learning_rate": "1e-4"},
        "method": {"alpha": 2},
    }
    assert validate(values).train.learning_rate == 1e-4


def test_a_value_may_have_an_equals_sign() -> None:
    assert override({}, ["concept=a=b"]) == {"concept": "a=b"}


@pytest.mark.parametrize("assignment", ["train.steps", "=5", "", "train.steps=[1", "seed=\t3", "concept.x=1", "concept.x.y=1"])
def test_a_bad_assignment_is_refused_and_named(assignment: str) -> None:
    with pytest.raises(ValueError, match="--set") as error:
        override({"concept": "dog"}, [assignment])
    assert repr(assignment) in str(error.value)


def test_a_resolved_config_written_as_yaml_is_read_as_the_same(tmp_path: Path) -> None:
    config = resolve({"concept": "line art", "saliency.density": 0.25}, ["train.steps=7", "method.retain=denoise"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"versions": {"erase": "0.1.0"}}))
    assert resolve({}, [], path) == config
    assert (config.saliency.density, config.train.steps, config.method.retain) == (0.25, 7, "denoise")


def test_the_file_gives_way_to_flags_and_flags_to_assignments(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("concept: dog\nseed: 1\nsaliency: {density: 0.1, rounds: 2}\n")
    config = resolve({"seed": 2, "saliency.density": 0.2}, ["saliency.density=0.3"], path)
    assert (config.seed, config.saliency.density, config.saliency.rounds) == (2, 0.3, 2)


@pytest.mark.parametrize(("concept", "recipe"), [("dog", "object"), ("neon", "style"), ("a dog, neon style", "object")])
def test_the_recipe_is_that_of_the_concepts_kind(concept: str, recipe: str) -> None:
    values = read_yaml(config_folder() / f"recipe-{recipe}.yaml") | {"concept": concept}
    assert resolve({"concept": concept}, []) == validate(values)


def test_a_preset_for_a_model_that_is_not_here_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"hf download CompVis/stable-diffusion-v1-4"):
        resolve({"concept": "nudity"}, [])
    config = resolve({"concept": "nudity", "model": "CompVis/stable-diffusion-v1-4"}, [])
    assert config.model == "CompVis/stable-diffusion-v1-4" and config.prompts.forget


def test_a_flag_goes_into_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("concept: dog\nsaliency:\n")
    assert resolve({"saliency.density": 0.2}, [], path).saliency.density == 0.2


@pytest.mark.parametrize(("content", "flag"), [("saliency: 3", "saliency.density"), ("method: salun", "method.name")])
def test_a_flag_for_a_section_that_the_file_fills_wrongly_is_refused(content: str, flag: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"concept: dog\n{content}\n")
    with pytest.raises(ValueError, match=flag):
        resolve({flag: 0.2}, [], path)


def test_a_concept_too_long_for_a_file_name_is_refused_as_such() -> None:
    with pytest.raises(ValueError, match="concept"):
        resolve({"concept": "a" * 300}, [])
