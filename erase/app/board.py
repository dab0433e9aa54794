"""The board of erase runs: what waits, how far the running one is, its loss, its pictures."""

from html import escape

from erase.app.explore import loss_chart
from erase.app.jobs import STAGES, Job
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


def board(jobs: list[Job]) -> str:
    """All runs, the latest first."""
    if not jobs:
        return note("No runs yet. The first takes a few minutes on two cores.", "quiet")
    return f'<div class="board" aria-live="polite">{"".join(_card(job) for job in jobs)}</div>'


def _card(job: Job) -> str:
    took = f" · {seconds(job.seconds)}" if job.seconds else ""
    head = f"<h4>{escape(job.id)} <span class='state {job.state}'>{STATES[job.state]}</span><small>{took}</small></h4>"
    parts = [head]
    if job.state == "failed":
        parts.append(note(job.sentence, "bad"))
    if job.state in ("running", "stopping", "done"):
        parts.append(_stages(job))
    parts += [note(text, "quiet") for text in job.notes]
    if job.losses and max(map(len, job.losses.values())) > 1:
        parts.append(loss_chart(job.losses))
    if job.previews:
        parts.append(_previews(job))
    return f'<section class="job {job.state}">{"".join(parts)}</section>'


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
