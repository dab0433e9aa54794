"""The Erase tab's buttons and endpoints: the form, the plan, and the queue of runs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from erase.app import board, form
from erase.app.catalog import Catalog
from erase.app.guard import Limits, sentences, whole
from erase.app.jobs import OVER, Jobs
from erase.app.markup import more, note, seconds, table
from erase.app.studio import Studio


def wrong(text: str) -> Exception:
    """A sentence on the page; the text is HTML and escaped."""
    return gr.Error(text, title="This does not work", duration=15, print_exception=False)


@dataclass
class Orders:
    """What the Erase tab does."""

    catalog: Catalog
    studio: Studio
    jobs: Jobs
    limits: Limits
    load: dict[str, Any]
    """The options of loading that were given at start."""

    def recipe(self, model: str, concept: str, method: str) -> list[Any]:
        """The recipe's value for every field of the form, then what it is the recipe of (see `filled_for`)."""
        from erase.config import at

        with sentences(wrong):
            try:
                _, values = form.recipe_for(concept, self.catalog.model(model), self.load, method)
            except ValueError:  # half a concept in the box: the plan will say so
                return [gr.skip()] * (len(self.settings()) + 1)
            found = [at(values, setting.key) for setting in self.settings(method)]
            fields = [gr.skip() if value is None else form.shown(value) for value in found]
            return [*fields, json.dumps([model, concept, method])]

    def filled_for(self) -> str:
        """What the form is filled for at first, as JSON: model, concept and method.

        It goes with every order, beside the values: they may be those of what stood in the boxes a moment ago.
        """
        model = next(iter(self.catalog.models))
        concept = self.concepts(model)[1]
        return json.dumps([model, concept, self.defaults(concept)["method.name"]])

    def _filled(self, text: str) -> dict[str, Any] | None:
        """Every value of the recipe that the form was filled with; None where that is not said."""
        if not text:
            return None
        try:
            model, concept, method = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError("What the form was filled for is a JSON list: model, concept, method.") from error
        return form.recipe_for(concept, self.catalog.model(model), self.load, method)[1]

    def defaults(self, concept: str) -> dict[str, Any]:
        """The recipe's value of each setting that the recipe's own method has."""
        from erase.config import at
        from erase.recipes import resolve

        first = next(iter(self.catalog.models))
        values = resolve(form.given_for(concept, self.catalog.model(first), self.load), []).model_dump(mode="json")
        settings = [*form.main_settings(), *form.method_settings()[values["method"]["name"]]]
        return {"method.name": values["method"]["name"], **{s.key: at(values, s.key) for s in settings}}

    def settings(self, method: str | None = None) -> list[form.Setting]:
        """Every field of the form in its order; with a method, the fields of others stand there with no key."""
        groups = form.method_settings()
        own = [s if method in (None, name) else replace(s, key="") for name, group in groups.items() for s in group]
        return [*form.main_settings(), *own]

    def _config(self, model: str, concept: str, method: str, other: str, values: tuple[Any, ...]) -> tuple[Any, Path, str]:
        """(the run's config, its folder, why it is not the command line's), the config as the command line makes it.

        The values are the form's in its order, and behind them what it was filled for, or nothing.
        So is the folder, unless that is somebody else's: then the free one beside it that --force-new-run would take.
        """
        from erase.folder import free_folder
        from erase.recipes import default_out, resolve

        num = len(self.settings())
        if len(values) not in (num, num + 1):
            raise ValueError(f"{len(values)} settings are given; the form has {num}.")
        filled = self._filled(values[num]) if len(values) > num else None
        named = {s.key: value for s, value in zip(self.settings(method), values[:num], strict=True) if s.key}
        given = form.changed(concept, self.catalog.model(model), self.load, method, named, self.limits, filled)
        lines = form.assignments(other, self.limits)
        config = resolve(given, lines)
        form.check(config, self.limits)
        usual = self.jobs.folder / default_out(given, lines, None, config).name
        out = free_folder(usual, config)
        why = "" if out == usual else f"{usual} holds another run, or something else: this one goes to {out}."
        return config, out, why

    def plan(self, model: str, concept: str, method: str, other: str, *values: Any) -> str:
        """The run before it begins: every prompt, what the concept becomes, time and memory; nothing is done."""
        with sentences(wrong):
            from erase.dry_run import report
            from erase.plan import plan
            from erase.telling import becomes, in_words

            config, out, why = self._config(model, concept, method, other, values)
            with self.studio.base(model) as family:
                planned = plan(config, family)
                cost = report(planned, family, out)["estimate"]
            others = becomes(config, planned.anchors)
            forget = sorted({prompt.text for prompt in planned.data.forget})
            retain = sorted({prompt.text for prompt in planned.data.retain})
            rows = [
                ["Concept", f"{planned.concept.name} ({planned.concept.kind})"],
                ["Becomes", ", ".join(others[:8]) + (" …" if len(others) > 8 else "") or in_words(config, others)],
                ["Protected beside it", ", ".join(planned.neighbours[:8]) or "-"],
                ["Takes about", seconds(cost["total_s"]) + " at this machine's present speed"],
                ["Memory at its largest", f"{cost['memory_gb']['peak']:.1f} GB"],
                ["Folder", str(out)],
            ]
            prompts = more(f"{len(forget)} prompts to forget", _list(forget)) + more(f"{len(retain)} to keep", _list(retain))
            stages = table(["stage", "seconds"], [[k.removesuffix("_s"), v] for k, v in cost.items() if k.endswith("_s")])
            settings = "\n".join(f"{key}: {value}" for key, value in _flat(config.model_dump(mode="json")))
            notes = (note(why) if why else "") + "".join(note(text, "quiet") for text in planned.notes)
            details = prompts + more("Seconds by stage", stages) + more("Every setting", f"<pre>{escape(settings)}</pre>")
            return f'<div class="plan">{table(["", ""], rows)}{notes}{details}</div>'

    def erase(self, model: str, concept: str, method: str, other: str, preview_every: float, *values: Any) -> str:
        """Queue the run; its name for /progress and /cancel."""
        with sentences(wrong):
            from erase.files import require_space
            from erase.plan import plan
            from erase.space import bytes_missing

            every = whole(preview_every, "“Preview pictures every N steps”", 0, self.limits.train_steps)
            config, out, _ = self._config(model, concept, method, other, values)
            with self.studio.base(model) as family:
                planned = plan(config, family)  # says at once what is wrong with it
                require_space(out, bytes_missing(planned, family, out))
            return self.jobs.order(config.model_dump(mode="json"), out.name, every).id

    def watch(self, seen: list[Any], chosen: str | None) -> list[Any]:
        """(each part of the board, the runs that can be cancelled, what was seen); nothing where nothing has changed."""
        jobs = self.jobs.all()
        alive = [job.id for job in jobs if job.state not in OVER]
        marks = [*board.marks(jobs), alive]
        same = [mark == before for mark, before in zip(marks, seen or [None] * len(marks), strict=True)]
        shown = [gr.skip() if kept else part(jobs) for part, kept in zip(board.PARTS, same[:-1], strict=True)]
        return [*shown, gr.skip() if same[-1] else _cancellable(alive, chosen), marks]

    def progress(self, job: str) -> dict[str, Any]:
        """How a run stands, as JSON."""
        with sentences(wrong):
            found = next((each for each in self.jobs.all() if each.id == job), None)
            if found is None:
                raise ValueError(f"There is no run “{str(job)[:80]}” on the board.")
            return {
                "state": found.state,
                "stage": found.stage,
                "progress": found.progress,
                "total": found.total,
                "seconds": round(found.seconds, 1),
                "steps": len(found.losses.get("loss", next(iter(found.losses.values()), []))),
                "previews": [step for step, *_ in found.previews],
                "sentence": found.sentence,
                "run": found.out.name,
            }

    def cancel(self, job: str) -> str:
        """Stop a run that waits or runs; ordered again with the same settings it goes on where it was."""
        with sentences(wrong):
            return note(f"{self.jobs.cancel(job).id} is being stopped; start it again to resume.")

    def concepts(self, model: str) -> tuple[list[str], str]:
        """(concepts to choose from: what the embedded model knows, or those with a recipe of their own; the first choice)."""
        from erase.recipes import config_folder
        from pipelines.load import EMOJI_VOCABULARY, made_from_emoji

        if made_from_emoji(self.catalog.model(model)):
            return [*EMOJI_VOCABULARY.objects, *EMOJI_VOCABULARY.styles], "dog"
        shared = ("any-concept", "recipe-object", "recipe-style")
        own = sorted(path.stem.replace("-", " ") for path in config_folder().glob("*.yaml") if path.stem not in shared)
        return own, "church"

    def choices(self, model: str, concept: str) -> Any:
        """The concepts of a model that was chosen; the one in the box stays where the model can be asked for it."""
        from erase.recipes import resolve

        with sentences(wrong):
            known, first = self.concepts(model)
            try:
                resolve(form.given_for(concept, self.catalog.model(model), self.load), [])
            except ValueError:
                concept = first
            return gr.Dropdown(choices=known, value=concept)


def _cancellable(alive: list[str], chosen: str | None) -> Any:
    """The list of runs under way; the chosen one stays, and in place of one that ended none is chosen, lest it be cancelled."""
    if chosen in alive:
        return gr.Dropdown(choices=alive)
    return gr.Dropdown(choices=alive, value=alive[0] if alive and not chosen else None)


def _list(texts: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
