"""The board of erase runs: what waits, how far the running one is, its loss, its pictures; those that are over.

It has four parts, each of which is sent again only when something in it changed.
"""

from html import escape
from typing import Any

from erase.app.explore import loss_chart
from erase.app.jobs import OVER, STAGES, Job
from erase.app.markup import note, seconds

STATES = {
    "queued": "waits",
    "running": "runs",
    "stopping": "is being stopped",
    "done": "done",
    "cancelled": "cancelled; ordered again, it goes on where it was",
    "failed": "failed",
}
STAGE_NAMES = {
    "generate": "pictures",
    "saliency": "saliency",
    "train": "forgetting",
    "export": "writing",
    "evaluate": "before and after",
    "report": "report",
}


def status(jobs: list[Job]) -> str:
    """How the runs stand, in one line without figures: it is read aloud whenever it changes."""
    ended = max((job for job in jobs if job.state in OVER), key=lambda job: job.began + job.seconds, default=None)
    said = [f"{ended.id}: {ended.state}."] if ended else []
    said += [f"{job.id}: {STAGE_NAMES.get(job.stage, 'begins')}." for job in jobs if job.state == "running"]
    said += [f"{job.id}: {STATES[job.state]}." for job in jobs if job.state in ("stopping", "queued")]
    return note(" ".join(said), "quiet") if said else ""


def under_way(jobs: list[Job]) -> str:
    """The runs that wait or run, the latest first, without their pictures: they change every second."""
    if not jobs:
        return note("No runs yet. The first takes a few minutes on two cores.", "quiet")
    return "".join(_card(job, _facts(job)) for job in jobs if job.state not in OVER)


def pictures(jobs: list[Job]) -> str:
    """The preview pictures of the runs under way."""
    return "".join(_previews(job) for job in jobs if job.state not in OVER and job.previews)


def over(jobs: list[Job]) -> str:
    """The runs that ended, the latest first, with their pictures."""
    return "".join(_card(job, _facts(job) + (_previews(job) if job.previews else "")) for job in jobs if job.state in OVER)


PARTS = (status, under_way, pictures, over)


def marks(jobs: list[Job]) -> list[Any]:
    """What each of the parts shows, in short: where that is as before, so is the part. Seconds alone change none."""
    alive = [job for job in jobs if job.state not in OVER]
    return [
        status(jobs),
        [not jobs, *((job.id, job.state, job.stage, job.progress, len(job.notes)) for job in alive)],
        [(job.id, [step for step, *_ in job.previews]) for job in alive],
        [(job.id, job.state) for job in jobs if job.state in OVER],
    ]


def _card(job: Job, inner: str) -> str:
    took = f" · {seconds(job.seconds)}" if job.seconds else ""
    head = f"<h4>{escape(job.id)} <span class='state {job.state}'>{STATES[job.state]}</span><small>{took}</small></h4>"
    return f'<section class="job {job.state}">{head}{inner}</section>'


def _facts(job: Job) -> str:
    parts = [note(job.sentence, "bad")] if job.state == "failed" else []
    if job.state in ("running", "stopping", "done"):
        parts.append(_stages(job))
    parts += [note(text, "quiet") for text in job.notes]
    if job.losses and max(map(len, job.losses.values())) > 1:
        parts.append(loss_chart(job.losses))
    return "".join(parts)


def _stages(job: Job) -> str:
    cells = []
    for name in STAGES:
        share = 1.0 if name in job.finished_stages else 0.0
        if name == job.stage and job.state != "done":
            share = job.progress / max(1, job.total)
        now = ' class="now"' if name == job.stage and job.state != "done" else ""
        count = f" {job.progress} of {job.total}" if now else ""
        bar = f'<progress value="{share:.3f}" max="1" aria-label="{STAGE_NAMES[name]}"></progress>'
        cells.append(f"<li{now}>{bar}<span>{STAGE_NAMES[name]}{count}</span></li>")
    return f'<ol class="stages">{"".join(cells)}</ol>'


def _previews(job: Job) -> str:
    rows = []
    for step, _, pictures in job.previews:
        rows.append(f'<div class="preview"><span>step {step}</span>{"".join(pictures)}</div>')
    prompts = job.previews[0][1]
    legend = " · ".join(escape(prompt) for prompt in prompts)
    return f'<div class="previews">{"".join(rows)}<p class="note quiet">{legend}</p></div>'
