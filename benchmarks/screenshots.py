"""Pictures of every tab of a running app, wide and narrow, light and dark: `python -m benchmarks.screenshots URL`."""

import argparse
import io
import shutil
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE_S = 300
TABS = ("Compare", "Dial", "Erase", "Explore")


def browser(width: int, height: int = 900) -> WebDriver:
    """Headless Chromium that speaks to nobody but the page."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return driver


def open_tab(driver: WebDriver, name: str) -> None:
    """Go to a tab, wherever a narrow page hides it, as soon as the page is laid out."""

    def clicked(_: WebDriver) -> bool:
        tabs = [tab for tab in driver.find_elements(By.CSS_SELECTOR, "button[role=tab]") if tab.text.strip() == name]
        if not tabs:
            driver.find_element(By.CSS_SELECTOR, ".overflow-menu > button").click()
            tabs = [e for e in driver.find_elements(By.CSS_SELECTOR, ".overflow-dropdown button") if e.text.strip() == name]
        tabs[0].click()
        return True

    ignored = (WebDriverException, IndexError)
    WebDriverWait(driver, PATIENCE_S, 0.05, ignored).until(clicked)


def fill(driver: WebDriver, name: str) -> None:
    """Do what makes the tab worth looking at."""
    button, result = {
        "Compare": ("draw", "#told .note"),
        "Dial": ("draw-dial", "#told-dial .note"),
        "Erase": ("plan-button", "#plan .plan"),
        "Explore": ("look", "#gallery .row"),
    }[name]
    driver.find_element(By.ID, button).click()
    WebDriverWait(driver, PATIENCE_S).until(lambda d: d.find_elements(By.CSS_SELECTOR, result))
    time.sleep(1.0)  # until what came is laid out


def take(driver: WebDriver, path: Path) -> None:
    """The whole page as a WebP below 250 kB."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    width = driver.execute_script("return window.innerWidth")
    metrics = {"width": width, "height": min(height, 2600), "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    for quality in (86, 75, 60, 45):
        image.save(path, "WEBP", quality=quality, method=6)
        if path.stat().st_size < 250_000:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--out", type=Path, default=Path("docs/app"))
    parser.add_argument("--tabs", default=",".join(TABS))
    parser.add_argument("--widths", default="1280,390")
    parser.add_argument("--themes", default="light,dark")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for width in map(int, arguments.widths.split(",")):
        for theme in arguments.themes.split(","):
            for name in arguments.tabs.split(","):
                driver = browser(width)
                try:
                    driver.get(f"{arguments.url}/?__theme={theme}")
                    open_tab(driver, name)
                    fill(driver, name)
                    path = arguments.out / f"{name.lower()}-{width}-{theme}.webp"
                    take(driver, path)
                    print(path, path.stat().st_size)
                finally:
                    driver.quit()


if __name__ == "__main__":
    main()
