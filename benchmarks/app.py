"""How quickly the page answers, on the embedded model, and how quickly a patch goes onto the weights.

    python -m benchmarks.app [--quick]

A page is started on a run made here with few steps (how well it forgets does not matter for the time). `interactive_s`: from
the loaded model to a page in headless Chromium whose button can be pressed. `before_after_s`: both pictures of a prompt not
drawn before, 20 steps each, asked through the API. `dial_s`: from a strength not set before to its picture. Medians of five.
Patches of density 0.1 at random places are put onto the emoji UNet and, in a process of its own, onto a UNet of SD 1.4's full
size with random weights, as `benchmarks.files` does. The last line is one JSON object with the figures, the bars and `ok`.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.files import DENSITY, SD_1_4, apply_times, random_patch, random_unet
from benchmarks.full_size import arguments, in_a_process, report
from benchmarks.screenshots import browser, open_tab
from erase.app.command import open_page, prepare
from erase.quiet import Silent

BARS = {"interactive_s": 3.0, "before_after_s": 3.0, "dial_s": 2.0, "emoji_apply_s": 0.05, "sd14_apply_s": 1.5}
FEW = ["data.num_forget=8", "data.num_retain=8", "data.num_anchor=2", "data.num_inference_steps=2", "train.steps=4"]
FEW += ["saliency.rounds=1", "saliency.density=0.1", "evaluation.num_forget=4", "evaluation.num_inference_steps=1"]


def make_run(out: Path, concept: str, settings: list[str]) -> None:
    """A finished run, by the functions that the command line calls."""
    from erase.plan import plan
    from erase.recipes import resolve
    from erase.run import execute
    from pipelines.load import load, model_hash

    config = resolve({"concept": concept}, settings)
    family = load(config.model, config.load)
    execute(plan(config, family), family, out, Silent(), model_hash(config.model))


def median(work: Callable[[int], object], times: int = 5) -> float:
    """Median wall-clock seconds of calls that are each given their number."""
    taken = []
    for k in range(times):
        began = time.perf_counter()
        work(k)
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken), 3)


def page_times(runs: Path) -> dict[str, float]:
    """Seconds to a page that can be used, to both pictures, and to a dialled one."""
    from gradio_client import Client
    from selenium.webdriver.common.by import By

    actions = prepare([], runs, [], True, {})
    driver = browser(1280)  # the time that a browser needs to start is not the page's
    began = time.perf_counter()
    page, address, _ = open_page(actions)
    try:
        driver.get(address)
        open_tab(driver, "Compare")
        driver.find_element(By.ID, "draw").is_enabled()
        interactive = time.perf_counter() - began
        driver.quit()
        client = Client(address, verbose=False)

        def compare(k: int) -> None:
            client.predict("emoji", "emoji", ["dog"], "a dog, neon style", 100 + k, 20, 3, 0, api_name="/compare")

        def dial(k: int) -> None:
            strengths = (0.3 + 0.1 * k, 0, 0, 0)
            client.predict("emoji", ["dog"], "a dog, neon style", 100, 20, 3, *strengths, api_name="/dial")

        compare(99)
        return {
            "interactive_s": round(interactive, 3),
            "before_after_s": median(compare),
            "dial_s": median(dial),
            "page_threads": torch.get_num_threads(),
        }
    finally:
        page.close()
        actions.orders.jobs.close()
        actions.files.close()


def part(quick: bool) -> dict[str, Any]:
    """Times of a patch on a UNet of SD 1.4's size, or with --quick of a tenth of its width."""
    generator = torch.Generator().manual_seed(0)
    unet = random_unet(SD_1_4 | ({"block_out_channels": (32, 64, 128, 128)} if quick else {}), generator)
    unet.to(memory_format=torch.channels_last)  # as the page holds it
    patch, _ = random_patch(unet, DENSITY, generator)
    times = apply_times(unet, patch, "sd14_{}")
    return {**times, "sd14_num_weights": sum(p.numel() for p in unet.parameters())}


def main() -> None:
    asked = arguments(__doc__)
    if asked.part:
        print(json.dumps(part(asked.part["quick"])))
        return
    from erase.quiet import quiet_libraries
    from pipelines.load import load

    quiet_libraries()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "dog", "dog", FEW)
        figures: dict[str, Any] = page_times(Path(folder))
    emoji = load("emoji").denoiser
    figures |= apply_times(emoji, random_patch(emoji, DENSITY, torch.Generator().manual_seed(0))[0], "emoji_{}")
    del emoji
    figures |= in_a_process("benchmarks.app", quick=asked.quick)
    figures["load_average_before"] = round(load_average, 2)
    report("app", figures, BARS, {}, asked.quick)


if __name__ == "__main__":
    main()
