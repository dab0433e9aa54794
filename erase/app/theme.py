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
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
    )


def css() -> str:
    """The page's own style sheet."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


# A blurred picture is shown on request; one listener, for pictures come and go.
HEAD = """<script>
document.addEventListener("click", (event) => {
  const button = event.target.closest && event.target.closest(".reveal");
  if (!button) return;
  const figure = button.closest(".shot");
  figure.classList.remove("flagged");
  button.remove();
});
</script>"""
