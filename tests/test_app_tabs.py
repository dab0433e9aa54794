"""What the tabs do, without a browser: two models on one page, the plan, the board of runs, a damaged run."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio")
import gradio as gr

from erase.app import explore
from erase.app.actions import Actions
from erase.app.catalog import Catalog, catalog
from erase.app.guard import Ask, Limits, Scene
from erase.app.jobs import Jobs
from erase.app.orders import Orders
from erase.app.page import build
from erase.app.screen import Screen, Sight
from erase.app.studio import Drawn, Studio
from erase.config import LoadConfig
from erase.recipes import resolve

LIMITS = Limits()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """The embedded model."""
    return Studio(Catalog({"emoji": "emoji"}, {}, tmp_path_factory.mktemp("studio")), LoadConfig())


@pytest.mark.parametrize("text", ["", '{"kind": "obj', '{"model": "emoji"}', "[]", '{"kind": "object", "model": "emoji"}'])
def test_a_damaged_run_does_not_keep_the_page_from_opening(text: str, tmp_path: Path, studio: Studio) -> None:
    run = tmp_path / "dog"
    run.mkdir()
    (run / "patch.safetensors").write_bytes(b"x")
    (run / "results.json").write_text(text)
    actions = Actions(catalog([], tmp_path), studio, None, Screen(), LIMITS)  # type: ignore[arg-type]
    assert actions.examples("emoji")[0] == "a dog, neon style"
    if not text.endswith("}"):
        with pytest.raises(gr.Error, match=r"results\.json is damaged"):
            actions.explore("dog", "emoji")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
        explore.records_of(run)


# --- two models on a page


@pytest.mark.parametrize(("size", "said"), [(48, "same noise"), (64, "the models&#x27; noise differs in size")])
def test_models_of_two_sizes_are_compared_and_not_said_to_start_from_one_noise(
    size: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(scene: Scene, _: Ask) -> Any:
        side = {"small": 48, "large": size}[scene.model]
        yield Drawn((np.zeros((side, side, 3), np.uint8),), 1.0, latents=(4, side // 4, side // 4))

    found = Catalog({"small": "small", "large": "large"}, {}, tmp_path)
    screen = SimpleNamespace(look=lambda _, pixels: [Sight("a dog")] * len(pixels))
    studio = SimpleNamespace(stream=stream, load=lambda _: SimpleNamespace(family=None))
    actions = Actions(found, studio, None, screen, LIMITS)  # type: ignore[arg-type]
    *_, (_, _, told, *_) = actions.compare("small", "large", [], "a dog", 0, 1, 3, 0)
    assert said in told and ("pixel for pixel" in told) == (size == 48)


@pytest.fixture
def orders(studio: Studio, tmp_path: Path) -> Orders:
    """The Erase tab of the embedded model and of one that draws anything and is never loaded."""
    found = Catalog({"emoji": "emoji", "open": "owner/name"}, {}, tmp_path)
    return Orders(found, studio, Jobs(tmp_path, 4, Screen()), LIMITS, {})


@pytest.mark.parametrize(
    ("model", "concept", "chosen"), [("open", "church", "church"), ("open", "dog", "dog"), ("emoji", "van gogh", "dog")]
)
def test_the_form_follows_the_model(model: str, concept: str, chosen: str, orders: Orders) -> None:
    """Untouched, it is the command line's `erase --concept ... --model ...`."""
    box = orders.choices(model, concept)
    assert box.value == chosen and ("van gogh" in box.choices[0][0] or ("van gogh", "van gogh") in box.choices) == (
        model == "open"
    )
    other = {"open": "emoji", "emoji": "open"}[model]
    before = orders.recipe(other, "dog", "salun")
    values = [a if isinstance(b, dict) else b for a, b in zip(before, orders.recipe(model, chosen, "salun"), strict=True)]
    config, _, _ = orders._config(model, chosen, "salun", "", tuple(values))
    assert config == resolve({"concept": chosen} | ({"model": "owner/name"} if model == "open" else {}), [])


def as_shown(orders: Orders, filled: list[Any]) -> list[Any]:
    """The form's widgets after an answer of /recipe: those of other methods keep their defaults."""
    settings = orders.settings()
    fields = [setting.default if isinstance(value, dict) else value for setting, value in zip(settings, filled, strict=False)]
    return [*fields, *filled[len(settings) :]]


@pytest.mark.parametrize(
    "before", [("open", "church", "salun"), ("emoji", "dog", "salun"), ("open", "church", "esd"), ("emoji", "dog", "uce")]
)
def test_a_button_pressed_before_the_form_has_followed_takes_the_new_recipe_and_what_is_by_hand(
    before: tuple[str, str, str], orders: Orders
) -> None:
    """Typing a concept and pressing "Erase" is one movement: the form then still holds the recipe of the concept before."""
    keys = [setting.key for setting in orders.settings()]
    asked = resolve({"concept": "nudity", "model": "owner/name"}, [])
    values = as_shown(orders, orders.recipe(*before))
    assert orders._config("open", "nudity", "salun", "", tuple(values))[0] == asked
    assert orders._config("open", "nudity", "salun", "", tuple(values[:-1]))[0] != asked, "it matters that it is known"
    values[keys.index("train.steps")] = 7
    config, _, _ = orders._config("open", "nudity", "salun", "", tuple(values))
    assert config == asked.model_copy(update={"train": asked.train.model_copy(update={"steps": 7})})


def test_what_a_program_gives_counts_whatever_recipe_it_has_asked_for(orders: Orders) -> None:
    """Without a word of what the form was filled for, every value that is not the recipe's own is one that was given."""
    values = as_shown(orders, orders.recipe("emoji", "dog", "esd"))[:-1]
    values[[setting.key for setting in orders.settings("esd")].index("method.negative_guidance")] = 7.0
    assert orders._config("emoji", "dog", "esd", "", tuple(values))[0].method.negative_guidance == 7.0  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["{", "5", '["emoji", "dog"]', '["nothing", "dog", "salun"]', "[" * 5000, 7])
def test_what_the_form_was_filled_for_is_checked(text: Any, orders: Orders) -> None:
    values = as_shown(orders, orders.recipe("emoji", "dog", "salun"))
    with pytest.raises(ValueError, match=r"a JSON list|There is no model"):
        orders._config("emoji", "dog", "salun", "", (*values[:-1], text))


def test_another_model_changes_the_form_the_guidance_and_the_plan_of_before(
    orders: Orders, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = build(Actions(orders.catalog, studio, orders, Screen(), LIMITS))
    functions = list(page.fns.values())
    labels = {block._id: getattr(block, "label", None) or block.elem_id for block in page.blocks.values()}

    def written(label: str, event: str = "change") -> set[Any]:
        """What a change of the field, or another event of it, writes to."""
        fired = [f for f in functions if any(labels.get(target) == label and one == event for target, one in f.targets)]
        return {labels[block._id] for f in fired for block in f.outputs}

    assert {"Concept", "Saliency · density", "Train · steps", "plan"} <= written("Model to erase from")
    assert "Guidance" in written("Before: the base") and "Guidance" in written("Base")
    for field in ("Concept", "Method", "Other settings"):
        assert "plan" in written(field), field
    for field in (
        "Seed",
        "Train · steps",
        "Alpha",
        "Saliency · density",
    ):  # by hand: else the form follows
        assert "plan" in written(field, "input") and "plan" not in written(field), field
    assert "plan" in written("Saliency · density", "release"), "its button that puts it back"
    order = [
        {labels[block._id] for block in f.outputs} for f in functions if any(labels.get(t) == "Concept" for t, _ in f.targets)
    ]
    assert [k for k, names in enumerate(order) if "plan" in names] < [k for k, names in enumerate(order) if "Seed" in names]
    monkeypatch.setattr(studio, "load", lambda name: SimpleNamespace(family=SimpleNamespace(vocabulary=None)))
    assert Actions(orders.catalog, studio, orders, Screen(), LIMITS).guidance("open") == 7.5


# --- the order


def settings_of(orders: Orders, concept: str) -> list[Any]:
    values = orders.defaults(concept)
    return [values.get(setting.key) for setting in orders.settings()]


def test_a_folder_of_another_run_is_left_alone_and_a_free_one_named(
    orders: Orders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "config.yaml").write_text("concept: dog\nremoved: 7\n")  # of an older version
    monkeypatch.setattr("erase.dry_run.estimate", lambda *_: {"total_s": 1.0, "memory_gb": {"peak": 1.0}})
    monkeypatch.setattr(orders.jobs, "_work", lambda: None)
    asked = ("emoji", "dog", "salun", "")
    html = orders.plan(*asked, *settings_of(orders, "dog"))
    assert f"{tmp_path / 'dog-2'}</td>" in html and "holds another run" in html
    assert orders.erase(*asked, 0, *settings_of(orders, "dog")) == "1 · dog-2"
    assert "holds another run" not in orders.plan("emoji", "cat", "salun", "", *settings_of(orders, "cat"))


def test_a_disk_with_too_little_room_is_said_before_the_run(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    asked = ("emoji", "dog", "salun", "")
    for to, more in ((orders.plan, ()), (orders.erase, (0,))):
        with pytest.raises(gr.Error, match="GB free"):
            to(*asked, *more, *settings_of(orders, "dog"))
    assert not orders.jobs.all()


def test_only_what_changed_of_the_board_is_sent_again(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders.jobs, "_work", lambda: None)
    shown = ["status", "under way", "pictures", "over", "cancellable"]

    def sent(seen: list[Any], chosen: str | None = None) -> tuple[list[str], list[Any]]:
        found = orders.watch(seen, chosen)
        return [name for name, each in zip(shown, found[:-1], strict=True) if each != gr.skip()], found

    first = orders.jobs.order({}, "first", 0)
    first.state, first.stage, first.total = "running", "train", 9
    sent_now, found = sent([])
    assert sent_now == shown and found[4].value == first.id
    assert sent(found[-1], first.id)[0] == []
    first.seconds = 3.0
    assert sent(found[-1], first.id)[0] == [], "seconds alone are no change"
    first.progress = 1
    sent_now, found = sent(found[-1], first.id)
    assert sent_now == ["under way"]
    first.previews = [(0, ["a dog"], ["<figure>one</figure>"])]
    sent_now, found = sent(found[-1], first.id)
    assert sent_now == ["pictures"] and "<figure>" not in found[1].__str__()
    first.state = "done"
    sent_now, found = sent(found[-1], first.id)
    assert set(sent_now) == set(shown) and found[2] == "" and "<figure>one" in found[3] and found[1] == ""
    assert not any(char.isdigit() for char in found[0].replace(first.id, ""))


def test_the_run_to_cancel_stays_chosen_while_it_is_under_way(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders.jobs, "_work", lambda: None)
    first = orders.jobs.order({}, "first", 0)
    seen = orders.watch([], None)[-1]
    second = orders.jobs.order({}, "second", 0)
    *_, box, seen = orders.watch(seen, first.id)
    assert "value" not in box.constructor_args and [name for name, _ in box.choices] == [second.id, first.id]
    orders.jobs.cancel(first.id)
    *_, box, seen = orders.watch(seen, first.id)
    assert box.value is None, "a click meant for the first must not stop the second"
    third = orders.jobs.order({}, "third", 0)
    assert orders.watch(seen, None)[-2].value == third.id
