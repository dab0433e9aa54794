"""The page: tabs and widgets, and which of them each action reads and writes."""

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from erase import __version__
from erase.app import form
from erase.app.actions import Actions

EMPTY = '<div class="empty">{}</div>'
NO_PLAN = EMPTY.format("The plan: every prompt, what the concept becomes, time and memory, before anything is done.")


def build(actions: Actions) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="erase", analytics_enabled=False, fill_width=False, delete_cache=(600, 3600)) as page:
        gr.HTML(f"<h1>erase</h1><p>See it, dial it, erase more. Version {__version__}.</p>", elem_id="title")
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                runs = [_compare(actions)]
            with gr.Tab("Dial", id="dial"):
                runs.append(_dial(actions))
            with gr.Tab("Erase", id="erase"):
                over = _erase(actions, page)
            with gr.Tab("Explore", id="explore"):
                runs.append(_explore(actions))
        known = gr.State([])

        def refresh(before: list[list[str]]) -> list[Any]:
            """The runs that are there now, where they changed; the first that comes is chosen."""
            found = [with_patch := actions.runs(), with_patch, actions.finished()]
            if found == before:
                return [gr.skip()] * (1 + len(runs))
            shown = [gr.Dropdown(choices=names) for names in found]
            for k, each in enumerate(runs):
                if not (before and before[k]):
                    first = found[k][:1] if each.multiselect else next(iter(found[k]), None)
                    shown[k] = gr.Dropdown(choices=found[k], value=first)
            return [found, *shown]

        for event in (page.load, over.change):
            event(refresh, known, [known, *runs], api_visibility="private", show_progress="hidden", queue=False)
        gr.api(actions.orders.progress, api_name="progress", concurrency_limit=None, queue=False)
    return page


def _model(actions: Actions, label: str) -> gr.Dropdown:
    models = list(actions.catalog.models)
    return gr.Dropdown(models, value=models[0], label=label, visible=len(models) > 1)


def _runs(actions: Actions, label: str, info: str) -> gr.Dropdown:
    names = actions.runs()
    return gr.Dropdown(
        names,
        value=names[:1],
        multiselect=True,
        max_choices=actions.limits.patches,
        allow_custom_value=True,  # runs come while the page is open; the names are checked when they are used
        label=label,
        info=info,
    )


def _what(actions: Actions) -> tuple[gr.Textbox, gr.Number, gr.Slider, gr.Slider]:
    """Prompt, seed, steps, guidance."""
    limits = actions.limits
    first = next(iter(actions.catalog.models))
    usual = actions.guidance(first)
    prompt = gr.Textbox(actions.examples(first)[0], label="Prompt", max_length=limits.prompt, lines=1, max_lines=3)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=110)
        steps = gr.Slider(1, limits.steps, value=20, step=1, label="Steps", min_width=150)
        guidance = gr.Slider(1, limits.guidance_scale, value=usual, step=0.5, label="Guidance", min_width=150)
    return prompt, seed, steps, guidance


def _examples(actions: Actions, prompt: gr.Textbox, guidance: gr.Slider, model: gr.Dropdown) -> None:
    """Prompts to start from; they and the guidance are those of the model that is chosen."""
    samples = [[text] for text in actions.examples(next(iter(actions.catalog.models)))]
    examples = gr.Dataset(components=[prompt], samples=samples, label="Examples", show_label=True)
    examples.click(lambda row: row[0], examples, prompt, api_visibility="private", queue=False)
    model.change(
        lambda name: (gr.Dataset(samples=[[text] for text in actions.examples(name)]), actions.guidance(name)),
        model,
        [examples, guidance],
        api_visibility="private",
        show_progress="hidden",
    )


def _compare(actions: Actions) -> gr.Dropdown:
    """The tab that draws before and after side by side; its list of runs."""
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            model = _model(actions, "Before: the base")
            after = _model(actions, "After: drawn by")
            runs = _runs(actions, "Erased", "One run, or several stacked; empty: nothing is erased.")
            prompt, seed, steps, guidance = _what(actions)
            _examples(actions, prompt, guidance, model)
            with gr.Accordion("Size, and a grid of seeds", open=False):
                size = gr.Number(
                    0, label="Size in pixels", info="0: the model's own.", precision=0, minimum=0, maximum=actions.limits.size
                )
                num = gr.Slider(
                    1, actions.limits.seeds, value=4, step=1, label="Seeds in the grid", info="Counted on from the seed."
                )
                grid = gr.Button("Draw the grid")
            draw = gr.Button("Draw before and after", variant="primary", elem_id="draw")
        with gr.Column(scale=6, min_width=300):
            slider = gr.ImageSlider(
                label="Before | after",
                format="png",
                type="numpy",
                elem_id="slider",
                interactive=False,
            )
            reveal = gr.Button("A detector flagged what is blurred here. Show it", visible=False, elem_id="reveal")
            pair = gr.HTML(EMPTY.format("Draw, and both pictures stand here: same prompt, same seed."), elem_id="pair")
            told = gr.HTML(elem_id="told")
            seeds = gr.HTML(elem_id="seeds")
    last = gr.State(None)
    asked = [model, after, runs, prompt, seed, steps, guidance, size]
    shown = [slider, pair, told, last, reveal]
    options: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 4, "show_progress": "minimal"}
    gr.on([draw.click, prompt.submit], actions.compare, asked, shown, api_name="compare", **options)
    grid.click(actions.seeds, [*asked, num], seeds, api_name="seeds", **options)
    reveal.click(actions.reveal, last, [slider, reveal], api_visibility="private", **options)
    return runs


def _dial(actions: Actions) -> gr.Dropdown:
    """The tab with a strength for each erasure; its list of runs."""
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            model = _model(actions, "Base")
            runs = _runs(actions, "Erasures on the base", "Stacked, with one dial each.")
            names = actions.runs()[:1]
            dials = [
                gr.Slider(
                    0,
                    1.5,
                    value=1.0,
                    step=0.05,
                    label=f"{names[0]}: strength" if k == 0 and names else "Strength",
                    info="0: the base, bit for bit. 1: erased. Beyond: further the same way.",
                    visible=k < len(names),
                    elem_id=f"strength-{k}",
                )
                for k in range(actions.limits.patches)
            ]
            undo = gr.Button("Undo: all to 0", elem_id="undo")
            prompt, seed, steps, guidance = _what(actions)
            _examples(actions, prompt, guidance, model)
            draw = gr.Button("Draw", variant="primary", elem_id="draw-dial")
        with gr.Column(scale=6, min_width=300):
            pair = gr.HTML(
                EMPTY.format("Move a dial: the weights change in place, and the picture with them."), elem_id="dialled"
            )
            told = gr.HTML(elem_id="told-dial")
    asked = [model, runs, prompt, seed, steps, guidance, *dials]
    options: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 4, "show_progress": "hidden"}
    runs.change(actions.dials, runs, dials, api_visibility="private", queue=False, show_progress="hidden")
    moved = [each.change for each in dials]
    gr.on(
        [draw.click, prompt.submit, *moved],
        actions.dial,
        asked,
        [pair, told],
        api_name="dial",
        trigger_mode="always_last",
        **options,
    )
    undo.click(actions.undo, None, dials, api_visibility="private", queue=False)
    return runs


def _widget(setting: form.Setting, value: Any = None) -> Any:
    """The widget of a setting, at the recipe's value or else at its default."""
    value = form.shown(setting.default if value is None else value)
    facts: dict[str, Any] = {"label": setting.label, "info": setting.info, "value": value}
    if setting.kind == "bool":
        return gr.Checkbox(**facts)
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), **facts)
    if setting.kind == "text":
        return gr.Textbox(max_length=400, **facts)
    if setting.key == "saliency.density":
        return gr.Slider(0.01, 1.0, step=0.01, **facts)
    return gr.Number(precision=0 if setting.kind == "int" else None, minimum=setting.low, maximum=setting.high, **facts)


@dataclass(frozen=True)
class _Order:
    """What says which run to start: the widgets, and the buttons that show its plan and start it."""

    asked: list[Any]
    """Model, concept and method."""
    settings: list[Any]
    """A widget for each setting of the form, in its order."""
    groups: list[gr.Group]
    """Each method's own settings; those of the chosen method are shown."""
    other: gr.Textbox
    every: gr.Number
    look: gr.Button
    start: gr.Button


def _erase(actions: Actions, page: gr.Blocks) -> gr.HTML:
    """The tab that shows a run's plan, starts it and watches it; the runs that are over, which changes when one ends."""
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            order = _order(actions)
        with gr.Column(scale=6, min_width=300):
            plan, board, alive, stop, stopped = _runs_under_way()
    ordered = gr.Textbox(visible=False)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    options: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 4}
    filled_for = gr.Textbox("", visible=False)  # in the page, so that it is of the very values that a click sends
    page.load(actions.orders.filled_for, None, filled_for, **quiet, api_visibility="private")
    planned, started = [*order.asked, order.other], [*order.asked, order.other, order.every]
    values = [*order.settings, filled_for]
    planning = order.look.click(actions.orders.plan, [*planned, *values], plan, api_name="plan", **options)
    order.start.click(actions.orders.erase, [*started, *values], ordered, api_name="erase", **options)
    stop.click(actions.orders.cancel, alive, stopped, api_name="cancel", **quiet)
    stale = [*(each.change for each in (*order.asked, order.other)), *_by_hand(order.settings)]
    gr.on(stale, None, None, plan, js=f"() => {json.dumps(NO_PLAN)}", cancels=[planning], api_visibility="private", **quiet)
    _follow(actions, order, filled_for)  # after it: listeners run in turn, and a plan asked for while this one waits must stay
    seen = gr.State([])
    watched = [*board, alive, seen]
    timer = gr.Timer(1.0)
    timer.tick(actions.orders.watch, [seen, alive], watched, api_visibility="private", concurrency_limit=None, **quiet)
    return board[-1]


def _by_hand(settings: list[Any]) -> list[Any]:
    """The events that say that somebody changed a setting, where `change` also says that the form did."""
    return [event for each in settings for event in (each.input, *([each.release] if isinstance(each, gr.Slider) else []))]


def _follow(actions: Actions, order: _Order, filled_for: gr.Textbox) -> None:
    """The form follows the model, the concept and the method: the choices, the recipe, the method's own settings."""
    private: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    model, concept, method = order.asked
    model.change(actions.orders.choices, [model, concept], concept, **private)
    changed = [each.change for each in order.asked]
    recipe = private | {"api_visibility": "public", "api_name": "recipe"}
    gr.on(changed, actions.orders.recipe, order.asked, [*order.settings, filled_for], **recipe)
    names = list(form.method_settings())
    method.change(lambda name: [gr.Group(visible=name == each) for each in names], method, order.groups, **private)


def _order(actions: Actions) -> _Order:
    """The widgets that say which run to start, at the first concept's recipe."""
    known, first = actions.orders.concepts(next(iter(actions.catalog.models)))
    methods, values = form.method_settings(), actions.orders.defaults(first)
    chosen = values["method.name"]
    model = _model(actions, "Model to erase from")
    info = "One of the list, or your own words; several with semicolons."
    concept = gr.Dropdown(known, value=first, allow_custom_value=True, label="Concept", info=info, elem_id="concept")
    method = gr.Dropdown(list(methods), value=chosen, label="Method", info="How the model is made to forget.", elem_id="method")
    main = form.main_settings()
    settings = [_widget(main[0], values[main[0].key])]
    with gr.Accordion("Recipe", open=False):
        with gr.Row():
            settings += [_widget(setting, values[setting.key]) for setting in main[1:]]
        info = "One KEY=VALUE a line, as the command line's --set takes them."
        other = gr.Textbox(label="Other settings", info=info, lines=2, placeholder="train.warmup_steps=5", elem_id="other")
    with gr.Accordion("Method's own settings", open=False):
        groups = []
        for name, own in methods.items():
            with gr.Group(visible=name == chosen) as group:
                settings += [_widget(setting, values.get(setting.key) if name == chosen else None) for setting in own]
            groups.append(group)
    info = "Drawn while it trains; 0: none."
    every = gr.Number(20, label="Preview pictures every N steps", info=info, precision=0, minimum=0)
    with gr.Row():
        look = gr.Button("Show the plan", elem_id="plan-button")
        start = gr.Button("Erase", variant="primary", elem_id="erase-button")
    return _Order([model, concept, method], settings, groups, other, every, look, start)


def _runs_under_way() -> tuple[gr.HTML, list[gr.HTML], gr.Dropdown, gr.Button, gr.HTML]:
    """Where a plan is shown, the parts of the board, the runs under way, the button that stops one, and what that did."""
    plan = gr.HTML(NO_PLAN, elem_id="plan")
    board = [gr.HTML(elem_id=name) for name in ("status", "board", "previews")]
    with gr.Row():
        alive = gr.Dropdown([], label="Runs under way", allow_custom_value=True, elem_id="alive", scale=3, min_width=220)
        stop = gr.Button("Cancel", elem_id="cancel-button", scale=1, min_width=110)
    stopped = gr.HTML()
    return plan, [*board, gr.HTML(elem_id="over")], alive, stop, stopped


def _explore(actions: Actions) -> gr.Dropdown:
    """The tab with a run's measures, charts, pictures and files; its list of runs."""
    names = actions.finished()
    with gr.Row():
        run = gr.Dropdown(
            names, value=names[0] if names else None, allow_custom_value=True, label="Run", elem_id="run", scale=4
        )
        look = gr.Button("Look", variant="primary", elem_id="look", scale=1, min_width=120)
    model = _model(actions, "Model")
    measures = gr.HTML(EMPTY.format("Choose a run: its measures, its charts, its pictures and its files."), elem_id="measures")
    charts = gr.HTML(elem_id="charts")
    gallery = gr.HTML(elem_id="gallery")
    with gr.Row(equal_height=True):
        kinds = ["patch", "report", "single file"]
        with gr.Column(scale=3, min_width=260):
            info = "The single file is for ComfyUI and A1111."
            what = gr.Radio(kinds, value="patch", label="File", info=info)
            fetch = gr.Button("Get the file", elem_id="get-file")
        file = gr.File(label="Download", interactive=False, elem_id="file", height=120, scale=4)
    figures = gr.JSON(visible=False)
    gr.on([look.click, run.input], actions.explore, [run, model], [gallery, measures, charts, figures], api_name="explore")
    fetch.click(actions.file, [run, what], file, api_name="file")
    return run
