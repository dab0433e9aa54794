"""`erase app`: the page on this machine."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from erase.cli_load import Device, Dtype

MOST_SESSIONS = 100
"""Whose state Gradio keeps, those used last: 0.4 MB for each page or request of a program."""

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN|MODEL]...", help="Runs and models to show. Default: the embedded model.")
]


def app(
    names: Names = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder where runs are found and new ones are written.")] = Path("runs"),
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; the default accepts connections from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port. Default: the first free one from 7860.")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Open a public link through Gradio's server.")] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open a browser when the page is ready.")] = False,
    blur: Annotated[
        list[str] | None, typer.Option("--blur", help="Blur pictures in which the embedded judge sees this; repeatable.")
    ] = None,
    no_blur: Annotated[bool, typer.Option("--no-blur", help="Blur nothing, whatever a detector says.")] = False,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Serve the before/after page: compare, apply at a strength, erase, explore."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the app needs Gradio, which is not installed: `pip install 'erase-concepts[app]'`.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    load = {key: value for key, value in {"dtype": dtype, "device": device}.items() if value}
    actions = prepare(names or [], runs, blur or [], not no_blur, load)
    try:
        page, address, link = open_page(actions, host, port, share=share, browser=browser)
        typer.echo(f"{address} (Ctrl-C stops it; unfinished runs keep their state)")
        if link:
            typer.echo(f"public link (anyone who has it can open the page): {link}")
        page.block_thread()
    finally:
        actions.orders.jobs.close()
        actions.files.close()


def open_page(
    actions: Any, host: str = "127.0.0.1", port: int | None = None, *, share: bool = False, browser: bool = False
) -> tuple[Any, str, str | None]:
    """(the page, its address, its public link or None), served by a thread of its own."""
    from starlette.middleware import Middleware

    from erase.app.gate import Gate
    from erase.app.page import build
    from erase.app.theme import HEAD, css, theme

    page = build(actions)
    page.queue(max_size=actions.limits.draws, api_open=False)
    _, address, link = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=1,  # bytes: nothing can be uploaded
        theme=theme(),
        css=css(),
        head=HEAD,
        app_kwargs={"middleware": [Middleware(Gate)]},
        state_session_capacity=MOST_SESSIONS,
    )
    page._queue.pending_messages_per_session.max_size = MOST_SESSIONS  # answers that nobody fetches
    return page, address, link


def prepare(names: list[str], runs: Path, blur: list[str], screen: bool, load: dict[str, Any]) -> Any:
    """The page's functions, with the first model loaded; raises ValueError for what cannot be opened."""
    from erase.app.actions import Actions
    from erase.app.catalog import catalog
    from erase.app.guard import Limits
    from erase.app.jobs import Jobs
    from erase.app.orders import Orders
    from erase.app.screen import Screen
    from erase.app.studio import Studio
    from erase.config import validate
    from erase.quiet import quiet_libraries

    quiet_libraries()
    found, limits = catalog(names, runs), Limits()
    if blur:
        from pipelines.load import EMOJI_VOCABULARY

        known = (*EMOJI_VOCABULARY.objects, *EMOJI_VOCABULARY.styles)
        if strange := [name for name in blur if name not in known]:
            raise ValueError(f"--blur {strange[0]!r} is unknown to the judge: give one of {', '.join(known)}.")
    config = validate({"concept": "any", "load": load}).load
    studio, screens = Studio(found, config), Screen(blur, screen)
    orders = Orders(found, studio, Jobs(runs, limits.runs, screens), limits, load)
    actions = Actions(found, studio, orders, screens, limits)
    studio.load(next(iter(found.models)))
    return actions
