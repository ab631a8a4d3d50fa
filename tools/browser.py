"""Headless Chromium for the tests of the page, and for the README's pictures. Installs nothing."""

import json
import os
import shutil
from contextlib import contextmanager
from functools import cache
from importlib import resources

DESKTOP = (1280, 900)
PHONE = (390, 844)


@cache
def missing_browser():
    """Why there is no browser here, or None."""
    for names, package in ((BROWSERS, "chromium"), (("chromedriver",), "chromium-driver")):
        if not any(shutil.which(name) for name in names):
            return f"no {' or '.join(names)} on PATH: install Debian's {package}, or Chrome with its chromedriver"
    return None


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium(size=DESKTOP, *, dark=False):
    """A driver of a browser window whose page is `size` pixels large."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(path for name in BROWSERS if (path := shutil.which(name)))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # A driver by path: selenium then neither searches for one nor downloads one.
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"), env=os.environ | QUIET))
    try:
        resize(driver, size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def resize(driver, size):
    """Have a page of `size` pixels; a narrow one is a phone's."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


QUIET = {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}


def requested_addresses(driver):
    """Every address that the page asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def console_errors(driver):
    """What the page wrote to the console as a warning or an error."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def open_page(driver, path):
    """Load a file and wait until its charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(path.resolve().as_uri())
    ready = """return document.readyState === 'complete' && performance.getEntriesByName('charts').length > 0
      && waiting.length === 0"""
    WebDriverWait(driver, 30).until(lambda d: d.execute_script(ready))


def accessibility_faults(driver):
    """What axe finds wrong on the page: rule, place and words of each."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    driver.execute_script("if (!window.axe) { " + axe + "\nwindow.axe = axe; }")
    result = driver.execute_async_script("axe.run().then(arguments[0])")
    assert len(result["passes"]) > 10
    return [(v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"]) for v in result["violations"]]
