"""The shipped recipes: which file a concept takes on which model, and that each of them can be planned."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from benchmarks.several import PILOT as TEN_PILOT
from benchmarks.several import TEN, folder_of
from erase.concepts import names_within
from erase.config import RunConfig, validate
from erase.plan import Plan, plan
from erase.reading import read_yaml
from erase.recipes import GENERAL, config_folder, default_out, recipe, resolve
from pipelines.load import EMOJI_WEIGHTS
from pipelines.stable_diffusion import StableDiffusion

SD = "CompVis/stable-diffusion-v1-4"
# in the order of the data set's labels, 0 to 9
CLASSES = ["tench", "English springer", "cassette player", "chain saw", "church", "French horn"]
CLASSES += ["garbage truck", "gas pump", "golf ball", "parachute"]
IMAGENETTE = [name.lower().replace(" ", "-") for name in CLASSES]
FILES = sorted(path for path in config_folder().glob("*.yaml") if not path.stem.startswith("recipe-"))
NAMED = [path for path in FILES if path.stem != GENERAL]


def test_every_promised_recipe_is_there() -> None:
    assert {path.stem for path in NAMED} == {*IMAGENETTE, "nudity", "van-gogh", "sketch", "dog"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_in_the_header_takes_the_file(path: Path) -> None:
    words = shlex.split(path.read_text().splitlines()[0].removeprefix("# ").split("        ")[0])
    assert words[:2] == ["erase", "--concept"] and words[3:] == ["--model", SD]
    config = resolve({"concept": words[2], "model": words[4]}, [])
    expected = read_yaml(path)
    assert config == validate(expected | ({"concept": words[2]} if path.stem == GENERAL else {}))
    assert config.model == SD


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_says_where_each_figure_comes_from(path: Path) -> None:
    header = " ".join(line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    assert "not measured here (no GPU, no SD v1.4 weights)" in header
    assert "Hardware and minutes: not measured" in header
    before, *after = header.split("uoted")
    assert after and "%" not in before, "a figure without its origin"
    assert not re.search(r"\bmeasured:", header)


@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.stem)
def test_a_recipe_never_keeps_what_it_erases(path: Path, tiny_pipeline: StableDiffusionPipeline) -> None:
    config = validate(read_yaml(path))
    planned = plan(config, StableDiffusion(tiny_pipeline, None))
    assert planned.notes == (), "a recipe leaves nothing to be proposed"
    name = planned.concept.name
    others = [*planned.data.retain, *(prompt for row in planned.data.relabelled for prompt in row)]
    assert not [prompt.text for prompt in others if names_within(name, prompt.text) or "nude" in prompt.text]
    assert len(planned.data.forget) == config.data.num_forget
    if planned.concept.kind != "prompts":
        names = (name, *config.prompts.synonyms)
        assert all(any(names_within(one, prompt.text) for one in names) for prompt in planned.data.forget)
        assert len(planned.neighbours) >= 6


@pytest.mark.parametrize("name", ["Van Gogh", "van gogh", "van-gogh", "VAN GOGH"])
def test_a_concept_finds_its_file_however_it_is_written(name: str) -> None:
    assert resolve({"concept": name, "model": "a/b"}, []).concept == "Van Gogh"


def test_the_model_of_a_recipe_gives_way_to_the_given_one() -> None:
    assert resolve({"concept": "church", "model": "owner/name"}, []).model == "owner/name"
    assert resolve({"concept": "church"}, ["model=owner/name"]).train.learning_rate == 1e-5


def test_a_file_for_another_model_leaves_out_what_the_general_recipe_has(tmp_path: Path) -> None:
    """Not what the embedded model takes; a shipped file given by name is what its concept takes."""
    (tmp_path / "own.yaml").write_text("concept: dog\nmodel: owner/name\ntrain: {steps: 7}\nmethod: {alpha: 3.0}\n")
    config = resolve({}, [], tmp_path / "own.yaml")
    assert (config.train.steps, config.train.learning_rate, config.data.num_inference_steps) == (7, 1e-5, 50)
    assert config.method.name == "salun" and config.method.alpha == 3
    (tmp_path / "esd.yaml").write_text("concept: a hat\nmodel: owner/name\nmethod: {name: esd}\n")
    assert resolve({}, [], tmp_path / "esd.yaml") == resolve(
        {"concept": "a hat", "model": "owner/name", "method.name": "esd"}, []
    )
    for path in FILES:
        assert resolve({}, [], path) == validate(read_yaml(path)), path.name


@pytest.mark.parametrize("name", ["church", "parachute", "dog", "gas pump"])
def test_a_concept_of_both_models_takes_the_recipe_of_the_model_at_hand(name: str, tmp_path: Path) -> None:
    embedded = read_yaml(config_folder() / "recipe-object.yaml") | {"concept": name}
    (tmp_path / "own").symlink_to(EMOJI_WEIGHTS)
    for model in (None, "emoji", str(tmp_path / "own")):
        given = {"concept": name} if model is None else {"concept": name, "model": model}
        assert resolve(given, []) == validate(embedded | ({"model": model} if model else {}))
    assert resolve({"concept": name, "model": SD}, []) == validate(
        read_yaml(config_folder() / f"{name.replace(' ', '-')}.yaml")
    )


def test_nudity_becomes_dressed_in_pairs_and_much_else_is_kept(tiny_pipeline: StableDiffusionPipeline) -> None:
    prompts = resolve({"concept": "nudity", "model": SD}, []).prompts
    assert len(prompts.forget) == len(prompts.becomes) > 5 and set(prompts.becomes) < set(prompts.retain)
    assert len(set(prompts.retain) - set(prompts.becomes)) >= 20
    planned = plan(resolve({"concept": "nudity", "model": SD}, []), StableDiffusion(tiny_pipeline, None))
    assert {(p.text, row[0].text) for p, row in zip(planned.data.forget, planned.data.relabelled, strict=True)} == set(
        zip(prompts.forget, prompts.becomes, strict=True)
    )
    assert {dual.text for dual in planned.data.dual if dual} == set(prompts.forget)


@pytest.mark.parametrize("method", ["paper", "reference-code"])
def test_the_publications_nudity_task_has_its_one_sentence(method: str) -> None:
    """One epoch of its 800 pictures, 8 at a time."""
    config = resolve({"concept": "nudity", "model": SD, "method.name": method}, [])
    assert config.prompts.forget == ("a photo of a nude person",)
    assert config.prompts.becomes == config.prompts.retain == ("a photo of a person wearing clothes",)
    assert config.train.steps * config.train.forget_batch_size == config.data.num_forget == 800
    other = resolve({"concept": "church", "model": SD, "method.name": method}, [])
    assert other.train.steps == 600 and not other.prompts.forget


OPEN: Any = SimpleNamespace(vocabulary=None)  # nothing is asked of it where anchor and neighbours are there
FEW = ["data.num_forget=16", "data.num_retain=36", "data.num_anchor=4"]


def labelled(concept: Any, method: str, *settings: str, **given: Any) -> Plan:
    return plan(resolve({"concept": concept, "model": SD, "method.name": method} | given, [*FEW, *settings]), OPEN)


@pytest.mark.parametrize("number", range(10))
def test_each_of_imagenettes_classes_is_relabelled_among_the_ten(number: int) -> None:
    """As released: class (i + 1) % 10. As published: any of the other nine, all equally likely."""
    name, others = CLASSES[number], {*CLASSES} - {CLASSES[number]}
    code, paper = labelled(name, "reference-code"), labelled(name, "paper")
    assert code.anchors == (CLASSES[(number + 1) % 10],)
    assert {prompt.object for row in code.data.relabelled for prompt in row} == {*code.anchors}
    assert [Counter(prompt.object for prompt in row) for row in paper.data.relabelled] == [Counter(others)] * 16
    for planned in (code, paper):
        assert {*planned.neighbours} == others and planned.notes == ()
        kept = Counter(prompt.object for prompt in planned.data.retain[planned.data.num_anchor :])
        assert [kept[other] for other in others] == [2] * 9 and not kept[name], "half of 36 for the other nine, in turn"


def test_the_released_codes_labels_by_name() -> None:
    for name, becomes in {"church": "French horn", "parachute": "tench", "Tenches": "English springer"}.items():
        assert labelled(name, "reference-code").anchors == (becomes,)


def test_labels_among_the_classes_give_way_to_what_is_given(tmp_path: Path) -> None:
    """By hand; in a file of one's own; with prompts that say it; on a model that has a list; by another method."""
    assert labelled("church", "reference-code", **{"method.anchor": "barn"}).anchors == ("barn",)
    assert labelled("church", "reference-code", "method.anchor=castle").anchors == ("castle",)
    assert labelled("church", "paper", "prompts.neighbours=[barn, mosque]").anchors == ("barn", "mosque")
    assert labelled("church", "salun").anchors == ("castle",) and "mosque" in labelled("church", "munba").neighbours
    own = tmp_path / "own.yaml"
    head = f"concept: church\nmodel: {SD}\nrecipe: "
    own.write_text(f"{head}paper\n")
    assert {*plan(resolve({}, FEW, own), OPEN).anchors} == {*CLASSES} - {"church"}
    assert {*plan(resolve({"concept": "tench"}, FEW, own), OPEN).anchors} == {*CLASSES} - {"tench"}
    own.write_text(f"{head}reference-code\nprompts: {{neighbours: [barn, mosque]}}\n")
    planned = plan(resolve({}, FEW, own), OPEN)
    assert (planned.anchors, planned.neighbours) == (("French horn",), ("barn", "mosque"))
    own.write_text(f"{head}reference-code\nprompts: {{forget: [a church], becomes: [a barn], retain: [a cow]}}\n")
    assert plan(resolve({}, FEW, own), OPEN).anchors == ("a barn",)
    own.write_text(f"{head}reference-code\nprompts: 3\n")
    with pytest.raises(ValueError, match="prompts is 3: "):
        resolve({}, [], own)
    embedded = resolve({"concept": "church", "method.name": "paper"}, [])
    assert embedded.prompts == resolve({"concept": "church"}, []).prompts


def test_several_classes_are_relabelled_to_none_of_each_other() -> None:
    planned = labelled(
        ["church", "French horn", "zebra"],
        "reference-code",
        "prompts.each.zebra={neighbours: [okapi]}",
        "method.anchor=[next, next, horse]",
    )
    assert [target.anchors for target in planned.targets] == [("garbage truck",), ("garbage truck",), ("horse",)]
    config: Any = resolve({"concept": ["church", "zebra"], "model": SD, "method.name": "reference-code"}, [])
    assert config.method.anchor == ("next", "nearest"), "what is no class becomes the nearest"
    assert {*config.prompts.each["church"].neighbours} == {*CLASSES} - {"church"} and "zebra" not in config.prompts.each
    config = resolve({"concept": "zebra", "model": SD, "method.name": "reference-code"}, [])
    assert config.method.anchor == "nearest" and not config.prompts.neighbours
    everything = resolve({"concept": CLASSES, "model": SD, "method.name": "reference-code"}, [])
    assert everything.method.anchor == "nearest"


def test_nudity_is_erased_with_the_weights_that_its_method_has_for_it(tmp_path: Path) -> None:
    """By the shipped recipe: a file of one's own has what it says."""
    esd = {name: resolve({"concept": name, "model": SD, "method.name": "esd"}, []) for name in ("nudity", "church")}
    assert {name: config.method.weights for name, config in esd.items()} == {"nudity": "u", "church": "x"}
    assert esd["nudity"].prompts == resolve({"concept": "nudity", "model": SD}, []).prompts
    assert resolve({"concept": "nudity", "model": SD, "method.name": "esd"}, ["method.weights=x"]).method.weights == "x"
    (tmp_path / "own.yaml").write_text((config_folder() / "nudity.yaml").read_text())
    own = resolve({"method.name": "paper"}, [], tmp_path / "own.yaml")
    assert own.prompts == esd["nudity"].prompts and own.train.steps == 600


@pytest.mark.parametrize("name", [path.stem for path in NAMED] + ["zebra"])
def test_a_relearner_goes_as_fast_as_the_training(name: str, tmp_path: Path) -> None:
    """On full-size models too, whose rates are a thirtieth of the embedded model's."""
    (tmp_path / "own.yaml").write_text(f"concept: {name}\nmodel: {SD}\n")
    configs = {
        method: resolve({"concept": name, "model": SD, "method.name": method}, [])
        for method in ("salun", "paper", "reference-code")
    }
    for method, config in (configs | {"own": resolve({}, [], tmp_path / "own.yaml")}).items():
        assert config.method.lookahead_learning_rate == config.train.learning_rate == 1e-5, method


@pytest.mark.parametrize(("name", "kept"), [("garbage truck", "truck"), ("golf ball", "ball")])
def test_what_a_compound_is_a_kind_of_is_protected(name: str, kept: str) -> None:
    assert kept in resolve({"concept": name, "model": SD}, []).prompts.neighbours


def test_a_sketch_is_erased_whatever_it_is_drawn_with(tiny_pipeline: StableDiffusionPipeline) -> None:
    planned = plan(resolve({"concept": "sketch", "model": SD}, []), StableDiffusion(tiny_pipeline, None))
    for synonym in ("pencil drawing", "charcoal drawing", "ink drawing", "doodle"):
        assert any(names_within(synonym, prompt.text) for prompt in planned.data.forget)
        assert not any(names_within(synonym, prompt.text) for prompt in planned.data.retain)


@pytest.mark.parametrize("name", ["nudity", "tench", "Golf ball", "van-gogh", "sketch", "garbage truck"])
def test_a_concept_that_only_stable_diffusion_draws_says_what_to_do(name: str) -> None:
    with pytest.raises(ValueError, match=rf"hf download {SD}.*offline, `erase --concept dog`") as error:
        resolve({"concept": name}, [])
    assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="hf download"):
        resolve({"concept": ["dog", name]}, [])


def test_a_concept_that_no_recipe_knows_is_refused_by_the_embedded_model_as_before() -> None:
    with pytest.raises(ValueError, match="does not know 'zebra'; the nearest it draws"):
        resolve({"concept": "zebra"}, [])
    with pytest.raises(ValueError, match="does not know 'tench'"):
        resolve({"concept": "tench", "model": "emoji"}, [])


def test_several_concepts_take_the_general_numbers_and_each_its_own_prompts() -> None:
    values = recipe(["nudity", "zebra", "gas pump", "vending machine"], SD)
    general = read_yaml(config_folder() / f"{GENERAL}.yaml")
    assert values["data"] == general["data"] and values["train"] == general["train"]
    assert values["concept"] == ["nudity", "zebra", "gas pump", "vending machine"]
    assert values["method"]["anchor"] == ["nearest"] * 4, "the gas pump's own anchor is erased too"
    assert values["prompts"]["each"]["nudity"]["becomes"][0] == "a photo of a person wearing clothes"
    assert not any("chair" in text for text in recipe(["nudity", "chair"], SD)["prompts"]["each"]["nudity"]["retain"])
    assert values["prompts"]["each"]["gas pump"]["neighbours"] and "zebra" not in values["prompts"]["each"]
    assert "vending machine" not in values["prompts"]["each"]["gas pump"]["neighbours"]
    assert recipe(["church", "dog"], SD)["method"]["anchor"] == ["castle", "cat"]
    assert validate(values).concepts == tuple(values["concept"])


def test_several_concepts_of_the_embedded_model_take_its_recipe_and_more_of_it() -> None:
    """Each after the first adds pictures and steps, whatever the method; what is given by hand is not added to."""
    for names, kind in ((["dog", "church"], "object"), (["neon", "3d"], "style"), (["dog", "neon"], "object")):
        assert recipe(names, None) == read_yaml(config_folder() / f"recipe-{kind}.yaml") | {"concept": names}
    for method in ("salun", "esd", "forget_me_not"):
        one, three = (
            resolve({"concept": names, "method.name": method}, []).model_dump() for names in (["dog"], ["dog", "cat", "neon"])
        )
        for section, fields in read_yaml(config_folder() / "several" / "further.yaml").items():
            for key, more in fields.items():
                assert three[section].pop(key) == one[section].pop(key) + 2 * more, (method, key)
        assert three | {"concept": None} == one | {"concept": None}
    assert resolve({"concept": ["dog", "cat"]}, ["train.steps=7"]).train.steps == 7


def test_the_ten_that_are_erased_at_once_are_not_the_pilots_and_every_run_has_its_own_folder() -> None:
    assert len(set(TEN) | set(TEN_PILOT)) == 20
    given = itertools.product((TEN, TEN_PILOT), (0, 1), ([], ["train.steps=9"]))
    folders = [folder_of(names, seed, settings) for names, seed, settings in given]
    assert len(set(folders)) == 8


# --- the command


@pytest.fixture(scope="module")
def tiny_folder(tiny_pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk, with a tokenizer that is not taken for the embedded one's."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline.save_pretrained(folder, safe_serialization=True)
    path = folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["never-seen</w>"] = len(vocabulary)
    path.write_text(json.dumps(tokenizer))
    return folder


def erase_here(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, str, str]:
    from erase.cli import main

    monkeypatch.setattr(sys, "argv", ["erase", *arguments])
    code: Any = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


NUMBERS = {
    "data.num_forget": 6,
    "data.num_retain": 8,
    "data.num_inference_steps": 1,
    "data.num_anchor": 2,
    "data.batch_size": 4,
}
SMALL = [part for key, value in NUMBERS.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("name", ["church", "nudity", "van-gogh", "sketch"])
def test_a_dry_run_of_each_kind_of_recipe(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Object, prompts by hand, style, synonyms; that every file is taken and can be planned is tested above without a model."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--concept", name, "--model", str(tiny_folder), "--dry-run", "--json", *SMALL]
    code, out, err = erase_here(arguments, monkeypatch, capsys)
    assert code == 0, err
    report = json.loads(out)
    assert report["concept"] == read_yaml(config_folder() / f"{name}.yaml")["concept"]
    assert report["config"]["model"] == str(tiny_folder)
    assert report["becomes"] and report["estimate"]["total_s"] > 0 and not list(tmp_path.iterdir())


def test_two_concepts_from_the_command_line_to_the_results(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One mask, one patch, one report; a proposal is printed before the work, and again all is re-used."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--concept", "church", "--concept", "van gogh", "--anchor", "tree", "--anchor", "painting", *SMALL]
    arguments += ["--model", str(tiny_folder), "--out", "run", "--json", "--set", "train.steps=2", "--set", "prompts.each={}"]
    code, out, err = erase_here(arguments, monkeypatch, capsys)
    assert code == 0, err
    results = json.loads(out)
    assert results["concept"] == "church + Van Gogh" and results["kind"] == "mixed"
    assert [row["name"] for row in results["concepts"]] == ["church", "Van Gogh"]
    nothing = {"forget_accuracy": None}
    assert results["concepts"][0] == {
        "name": "church",
        "kind": "object",
        "anchors": ["tree"],
        "base": nothing,
        "erased": nothing,
        "n": 0,
    }
    assert results["audit"]["changed_outside_mask"] == 0
    assert "church: protected beside it: " in err
    assert err.index("church: protected") < err.index("pictures to forget")
    code, out, err = erase_here(arguments, monkeypatch, capsys)
    assert len(json.loads(out)["skipped"]) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concept", "dog", "--concept", "a dog, neon style"], ["is part of 'dog'"]),
        (["--concept", "dog", "--concept", "church", "--anchor", "cat"], ["give one for each"]),
        (["--concept", "dog", "--anchor", "dog"], ["anchor is the concept itself"]),
        (["--concept", "dog", "--kind", "animal"], ["prompts.kind is 'animal'", "'style'"]),
        (["--concept", "dog", "--forget-images", "nowhere"], ["data.forget_images: nowhere is not there"]),
        (["--concept", "dog", "--retain-images", "nowhere"], ["data.retain_images: nowhere is not there"]),
        (["--concept", "tench"], ["hf download", "erase --concept dog"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = erase_here(arguments, monkeypatch, capsys)
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []
    for word in words:
        assert word in err


@pytest.mark.slow
def test_an_object_and_a_style_are_erased_from_the_embedded_model_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "erase.cli", "--concept", "dog", "--concept", "line art", "--out", "run", "--json"]
    settings = [
        "train.steps=4",
        "saliency.rounds=1",
        "evaluation.num_forget=6",
        "evaluation.num_inference_steps=4",
        "data.num_retain=24",
    ]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["concept"] == "dog + line art" and results["base"]["intervals"]["forget"]["n"] == 12
    for model in ("base", "erased"):
        shares = [row[model]["forget_accuracy"] for row in results["concepts"]]
        assert results[model]["forget_accuracy"] == pytest.approx(sum(shares) / 2)
    assert results["base"]["ira"] > 0.5 and results["base"]["intervals"]["ira"]["n"] == 23 * 5
    html = (tmp_path / "run" / "report.html").read_text()
    assert "2 concepts were erased at once." in html and "relabelled at random" not in html
    assert [f"<td>{row['name']}</td><td>{row['anchors'][0]}</td>" in html for row in results["concepts"]] == [True, True]


def test_the_usual_folder_is_named_by_the_concept_whatever_its_letters() -> None:
    def usual(*concepts: str, **given: Any) -> str:
        return default_out({"concept": concepts} | given, [], None, RunConfig(concept=concepts)).as_posix()

    assert usual("dog") == "runs/dog" and usual("dog", "line art") == "runs/dog-line-art"
    assert re.fullmatch("runs/dog-[0-9a-f]{6}", usual("dog", seed=1))
    assert len(usual(*(f"concept {k}" for k in range(60)))) < 130
    for given in ({"seed": 0}, {"method.name": "salun", "saliency.density": 0.5}, {"model": "emoji"}):
        config = resolve({"concept": "dog"} | given, [])
        assert default_out({"concept": "dog"} | given, [], None, config).as_posix() == "runs/dog", "the recipe's own values"
    config = resolve({"concept": "dog", "seed": 1}, [])
    assert default_out({"concept": "dog", "seed": 1}, [], None, config).as_posix() != "runs/dog"
    assert usual("犬") != usual("猫") and re.fullmatch("runs/concept-[0-9a-f]{6}", usual("犬"))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.steps=true", "train.steps is true: a number is needed"),
        ("train.learning_rate=true", "train.learning_rate is true: a number is needed"),
        ("train.steps=0100", "which YAML reads to another base"),
        ("train.steps=1:30", "which YAML reads to another base"),
        ("method=esd", "give --method esd"),
    ],
)
def test_a_value_that_would_quietly_become_another_number_is_refused(setting: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        resolve({"concept": "dog"}, [setting])
    assert resolve({"concept": "dog"}, ["train.steps=100", "train.learning_rate=1e-4"]).train.steps == 100


def test_a_key_given_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("concept: dog\ntrain: {steps: 50}\ntrain: {learning_rate: 0.1}\n")
    with pytest.raises(ValueError, match="it has the key 'train' twice"):
        resolve({}, [], tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("train: {steps: 50}\n")
    with pytest.raises(ValueError, match="concept is not given"):
        resolve({}, [], tmp_path / "a.yaml")
