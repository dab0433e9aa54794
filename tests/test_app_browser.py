"""The page in a real browser: what a person sees and does, with the mouse, with the keyboard, on a phone."""

import base64
import functools
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("selenium")
from app_site import QUICK, finished_run, site
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.screenshots import browser, open_tab
from erase.app.jobs import Job
from erase.app.markup import shot
from erase.app.orders import Orders

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: apt-get install chromium chromium-driver"
    ),
]
PATIENCE_S = 120
DELAY_S = [0.0]  # before the form is told the recipe of what stands in it


def slow(answer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(answer)
    def later(*asked: Any) -> Any:
        time.sleep(DELAY_S[0])
        return answer(*asked)

    return later


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    runs = tmp_path_factory.mktemp("browser") / "runs"
    shutil.copytree(finished_run(), runs / "dog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(Orders, "recipe", slow(Orders.recipe))
        with site(runs, blur=["castle"]) as opened:
            yield opened


@pytest.fixture(scope="module")
def driver(page: tuple[str, Any]) -> Iterator[Any]:
    opened = browser(1280)
    opened.get(page[0])
    yield opened
    opened.quit()


def until(driver: Any, true: Callable[[], Any]) -> Any:
    return WebDriverWait(driver, PATIENCE_S, ignored_exceptions=(Exception,)).until(lambda _: true())


def one(driver: Any, selector: str) -> Any:
    return until(driver, lambda: driver.find_element(By.CSS_SELECTOR, selector))


def write(driver: Any, box: Any, text: str) -> None:
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text or Keys.DELETE)


def prompt(driver: Any) -> Any:
    boxes = driver.find_elements(By.CSS_SELECTOR, "textarea, input[data-testid=textbox]")
    return next(box for box in boxes if box.is_displayed() and box.get_attribute("maxlength") == "400")


def picture(element: Any) -> np.ndarray[Any, Any]:
    data = base64.b64decode(element.get_attribute("src").partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def sources(driver: Any) -> list[str]:
    return [img.get_attribute("src") for img in driver.find_elements(By.CSS_SELECTOR, "#pair img")]


def draw(driver: Any, text: str) -> None:
    """Draw a prompt that is not drawn yet, and wait until both of its pictures are finished (and say what is seen in them)."""
    write(driver, prompt(driver), text)
    time.sleep(0.3)
    old = sources(driver)
    driver.find_element(By.ID, "draw").click()
    until(driver, lambda: len(sources(driver)) == 2 and not set(sources(driver)) & set(old))
    until(driver, lambda: driver.find_element(By.ID, "pair").text.count("seen:") == 2)


def test_before_and_after_are_drawn_and_the_slider_moves_by_mouse_and_by_keyboard(driver: Any) -> None:
    open_tab(driver, "Compare")
    draw(driver, "a dog, 3d style")
    before, after = map(picture, until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#pair img")))
    assert before.shape == (48, 48, 3) and (before != after).any()
    until(driver, lambda: len(driver.find_elements(By.CSS_SELECTOR, "#slider img")) == 2)
    handle, second = one(driver, "#slider [data-testid=slider]"), driver.find_elements(By.CSS_SELECTOR, "#slider img")[1]
    time.sleep(0.5)
    assert "50%" in second.get_attribute("style")
    ActionChains(driver).click_and_hold(handle).move_by_offset(-100, 0).release().perform()
    until(driver, lambda: "50%" not in second.get_attribute("style"))
    moved = second.get_attribute("style")
    handle.send_keys(Keys.ARROW_RIGHT)
    until(driver, lambda: second.get_attribute("style") != moved)
    assert handle.get_attribute("role") == "slider"


def test_a_flagged_picture_is_blurred_until_somebody_asks_to_see_it(driver: Any) -> None:
    open_tab(driver, "Compare")
    draw(driver, "a castle, 3d style")
    button = one(driver, "#pair .shot .reveal")
    flagged = driver.find_element(By.CSS_SELECTOR, "#pair .shot.flagged .picture")
    assert "blur" in flagged.value_of_css_property("filter") and "it shows castle" in button.text
    reveal = one(driver, "#reveal")
    assert reveal.is_displayed()
    html = driver.find_element(By.ID, "pair").get_attribute("innerHTML")
    button.send_keys(Keys.ENTER)  # by keyboard
    until(driver, lambda: "blur" not in flagged.value_of_css_property("filter"))
    hidden = driver.find_elements(By.CSS_SELECTOR, "#slider img")[0].get_attribute("src")
    reveal.click()
    until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#slider img")[0].get_attribute("src") != hidden)
    until(driver, lambda: not driver.find_elements(By.ID, "reveal") or not driver.find_element(By.ID, "reveal").is_displayed())
    again = "const pair = document.querySelector('#pair'); pair.innerHTML = arguments[0];"
    again += "return pair.querySelectorAll('.flagged').length"
    assert driver.execute_script(again, html) == 1
    until(driver, lambda: not driver.find_elements(By.CSS_SELECTOR, "#pair .flagged"))  # it was asked to be shown


def dialled(driver: Any) -> tuple[Any, Any]:
    base, now = driver.find_elements(By.CSS_SELECTOR, "#dialled img")
    return picture(base), picture(now)


def same(driver: Any) -> bool:
    """Whether the dialled picture is the base's, pixel for pixel."""
    base, now = dialled(driver)
    return bool((base == now).all())


def test_the_dial_goes_to_0_and_back_and_undo_puts_the_base_back(driver: Any) -> None:
    open_tab(driver, "Dial")
    write(driver, prompt(driver), "a dog, 3d style")
    driver.find_element(By.ID, "draw-dial").click()
    until(driver, lambda: not same(driver))
    erased = dialled(driver)[1]
    slider = one(driver, "#strength-0 input[type=range]")
    slider.send_keys(Keys.HOME)
    until(driver, lambda: same(driver))
    for _ in range(20):
        slider.send_keys(Keys.ARROW_RIGHT)  # 20 x 0.05
    until(driver, lambda: bool((dialled(driver)[1] == erased).all()))
    assert "dog at 1" in driver.find_element(By.ID, "dialled").text
    driver.find_element(By.ID, "undo").click()
    until(driver, lambda: same(driver))
    assert one(driver, "#strength-0 input[type=number]").get_attribute("value") == "0"


def choose(driver: Any, concept: str) -> None:
    box = one(driver, "#concept input")
    write(driver, box, concept)
    box.send_keys(Keys.TAB)
    time.sleep(1.0)
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)  # the next field unfolds when it is reached


def other(driver: Any, *more: str) -> None:
    if not driver.find_elements(By.CSS_SELECTOR, "#other textarea"):  # what is folded away is not in the page yet
        next(b for b in driver.find_elements(By.CSS_SELECTOR, "button") if b.text.strip().startswith("Recipe")).click()
    box = one(driver, "#other textarea")
    until(driver, box.is_displayed)
    write(driver, box, "\n".join([*QUICK, *more]))


def card_of(driver: Any, number: int) -> Any:
    cards = driver.find_elements(By.CSS_SELECTOR, "#board .job, #over .job")
    return next(card for card in cards if card.text.startswith(f"{number} "))


def state_of(driver: Any, number: int) -> str:
    return str(card_of(driver, number).text)


def test_an_erase_is_planned_watched_to_its_end_and_another_is_cancelled(driver: Any, page: tuple[str, Any]) -> None:
    open_tab(driver, "Erase")
    other(driver, "train.steps=6")
    write(driver, one(driver, "#concept input"), "cat")
    driver.find_element(By.ID, "plan-button").click()  # at once: the form has not followed yet
    until(driver, lambda: "cat (object)" in driver.find_element(By.ID, "plan").text)
    assert "Takes about" in driver.find_element(By.ID, "plan").text and not page[1].orders.jobs.all()
    driver.find_element(By.CSS_SELECTOR, "#other textarea").send_keys("\nseed=1")
    until(driver, lambda: driver.find_element(By.ID, "plan").text.startswith("The plan:"))
    other(driver, "train.steps=6")
    driver.find_element(By.ID, "erase-button").click()
    until(driver, lambda: "1 · cat" in driver.find_element(By.ID, "board").text)
    choose(driver, "church")
    driver.find_element(By.ID, "erase-button").click()
    until(driver, lambda: "waits" in state_of(driver, 2))
    assert one(driver, "#alive input").get_attribute("value").startswith("1 "), "the first is still under way, and stays chosen"
    write(driver, one(driver, "#alive input"), "2 · church")
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    one(driver, "#cancel-button").click()
    until(driver, lambda: "cancelled" in state_of(driver, 2))
    assert driver.find_element(By.ID, "status").get_attribute("aria-live") == "polite"
    assert not driver.find_elements(By.CSS_SELECTOR, "#board [aria-live], #previews [aria-live], #over [aria-live]")
    until(driver, lambda: "done" in state_of(driver, 1))
    card = card_of(driver, 1)
    assert card.find_elements(By.CSS_SELECTOR, "svg.chart polyline") and card.find_elements(By.CSS_SELECTOR, ".preview img")
    assert [job.state for job in page[1].orders.jobs.all()] == ["cancelled", "done"]


def test_a_plan_asked_for_before_the_form_has_followed_is_of_the_new_method_and_stays(
    driver: Any, page: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ESD's rate on the embedded model is 1e-3, and the form still holds SalUn's 3e-4 when the button is pressed."""
    driver.get(page[0])
    open_tab(driver, "Erase")
    monkeypatch.setattr(sys.modules[__name__], "DELAY_S", [3.0])
    write(driver, one(driver, "#method input"), "esd")
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    driver.find_element(By.ID, "plan-button").click()
    plan = driver.find_element(By.ID, "plan")
    until(driver, lambda: "dog (object)" in plan.text)
    assert "train.learning_rate: 0.001" in plan.get_attribute("textContent")
    shown = plan.text
    time.sleep(4.0)
    assert one(driver, "#plan").text == shown, "the form has followed meanwhile, and the plan is still right"
    driver.get(page[0])


def test_explore_shows_the_gallery_and_hands_out_the_patch(driver: Any, page: tuple[str, Any]) -> None:
    open_tab(driver, "Explore")
    write(driver, one(driver, "#run input"), "dog")
    driver.find_element(By.CSS_SELECTOR, "#run input").send_keys(Keys.ENTER)
    driver.find_element(By.ID, "look").click()
    until(driver, lambda: len(driver.find_elements(By.CSS_SELECTOR, "#gallery .row")) == 25)
    assert "95 % Wilson" in driver.find_element(By.ID, "measures").text
    driver.find_element(By.ID, "get-file").click()
    link = until(driver, lambda: driver.find_element(By.CSS_SELECTOR, "#file a[download]"))
    assert link.get_attribute("download") == "dog.patch.safetensors"


@pytest.mark.parametrize(
    ("tab", "text", "button", "said"),
    [
        ("Compare", "", "draw", "prompt is empty"),
        ("Erase", "unicorn", "plan-button", "does not know"),
        ("Erase", "<img src=x onerror=alert(1)>", "erase-button", "does not know"),
    ],
)
def test_a_wrong_input_is_a_sentence_in_the_page(driver: Any, tab: str, text: str, button: str, said: str) -> None:
    driver.refresh()
    open_tab(driver, tab)
    if tab == "Compare":
        write(driver, until(driver, lambda: prompt(driver)), text)
        time.sleep(0.3)
    else:
        choose(driver, text)
    driver.find_element(By.ID, button).click()
    toast = until(driver, lambda: next(t for t in driver.find_elements(By.CSS_SELECTOR, ".toast-body") if said in t.text))
    assert "Traceback" not in toast.text and not driver.find_elements(By.CSS_SELECTOR, "img[src=x]")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_at_390_pixels_nothing_leaves_the_page_and_the_keyboard_reaches_the_button(page: tuple[str, Any], theme: str) -> None:
    narrow = browser(390)
    pictures = [shot(np.zeros((48, 48, 3), np.uint8), "a dog")] * 4
    job = Job("9 · wide", Path("wide"), {}, 0, state="done", previews=[(1000, ["a dog"] * 4, pictures)])
    page[1].orders.jobs._all.append(job)
    try:
        narrow.get(f"{page[0]}?__theme={theme}")
        for tab in ("Dial", "Erase", "Explore", "Compare"):
            open_tab(narrow, tab)
            if tab == "Erase":
                until(narrow, lambda: len(narrow.find_elements(By.CSS_SELECTOR, "#over .preview img")) >= 4)
            assert narrow.execute_script("return document.documentElement.scrollWidth") <= 390, tab
        seen = set()
        for _ in range(40):
            narrow.switch_to.active_element.send_keys(Keys.TAB)
            seen.add(narrow.switch_to.active_element.get_attribute("id"))
        assert "draw" in seen
        text, ground = narrow.execute_script(COLOURS)
        assert contrast(text, ground) >= 7
    finally:
        page[1].orders.jobs._all.remove(job)
        narrow.quit()


# of the title and of the nearest thing behind it that has one
COLOURS = """
const title = document.querySelector("#title h1");
let behind = title;
while (behind && /, 0\\)$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
return [getComputedStyle(title).color, behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)"];
"""


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_speaks_to_nobody_else_and_logs_no_error(driver: Any, page: tuple[str, Any]) -> None:
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert any(url.startswith(page[0]) for url in urls)
    assert not [url for url in urls if not url.startswith((page[0], "data:", "blob:"))]
    assert not [
        entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in entry["message"]
    ]


def test_the_committed_screenshots_show_every_tab() -> None:
    folder = Path(__file__).parent.parent / "docs" / "app"
    for tab in ("compare", "dial", "erase", "explore"):
        for width in (1280, 390):
            for theme in ("light", "dark"):
                path = folder / f"{tab}-{width}-{theme}.webp"
                assert path.stat().st_size < 250_000
                assert Image.open(path).width == width
