"""How the page looks: system fonts only, a quiet palette, one accent; nothing is fetched from anywhere."""

from pathlib import Path

import gradio as gr


def theme() -> gr.themes.Base:
    """Stone and teal on the system's own fonts."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"]
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        font=fonts,
        font_mono=mono,
        radius_size=gr.themes.sizes.radius_md,
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="1px",
        block_shadow="none",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_label_background_fill="white",
        block_label_background_fill_dark="*neutral_900",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_border_width="1px",
        color_accent="*primary_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
    )


def css() -> str:
    """The page's own style sheet."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


# A blurred picture is shown on request, and again where it comes once more; one listener, for pictures come and go. What is
# said of the runs is read aloud, and nothing else of the board. Gradio's image slider knows the mouse alone: the arrow keys
# drag its handle for whoever has none.
HEAD = """<script>
const asked = new Set();
const show = (figure) => {
  figure.classList.remove("flagged");
  figure.querySelector(".reveal").remove();
};
document.addEventListener("click", (event) => {
  const button = event.target.closest && event.target.closest(".reveal");
  if (!button) return;
  const figure = button.closest(".shot");
  asked.add(figure.querySelector("img").src);
  show(figure);
});
const HANDLE = "#slider [data-testid=slider]";
new MutationObserver(() => {
  for (const figure of asked.size ? document.querySelectorAll(".shot.flagged") : [])
    if (asked.has(figure.querySelector("img").src)) show(figure);
  const status = document.querySelector("#status");
  if (status) status.setAttribute("aria-live", "polite");
  const handle = document.querySelector(HANDLE);
  if (!handle || handle.tabIndex === 0) return;
  handle.tabIndex = 0;
  handle.setAttribute("role", "slider");
  handle.setAttribute("aria-label", "Before on the left, after on the right: arrow keys move the line");
  handle.setAttribute("aria-valuemin", "0");
  handle.setAttribute("aria-valuemax", "100");
  handle.setAttribute("aria-valuenow", "50");
}).observe(document, {childList: true, subtree: true});
document.addEventListener("keydown", (event) => {
  const handle = event.target.closest && event.target.closest(HANDLE);
  const width = handle && handle.parentElement.clientWidth;
  const by = width && {ArrowLeft: -width / 20, ArrowRight: width / 20, Home: -width, End: width}[event.key];
  if (!by) return;
  event.preventDefault();
  const box = handle.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
  const mouse = (type, to) => new MouseEvent(type, {bubbles: true, view: window, clientX: to, clientY: y});
  handle.dispatchEvent(mouse("mousedown", x));
  window.dispatchEvent(mouse("mousemove", x + by));
  window.dispatchEvent(mouse("mouseup", x + by));
  setTimeout(() => {
    const now = handle.getBoundingClientRect().x + box.width / 2 - handle.parentElement.getBoundingClientRect().x;
    handle.setAttribute("aria-valuenow", Math.round(100 * now / width));
  }, 50);
});
</script>"""
