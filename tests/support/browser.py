"""Label Studio's web page in headless Chromium, seen through its DOM."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.label_studio import LabelStudio
from tests.support.processes import wait_until

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

# The size of the page in a screenshot.
WIDTH_PX, HEIGHT_PX = 1280, 720

FLAGS = (
    "--headless",
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # no requests to other machines
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# The text that HyperText offsets count in, found by the browser's own HTML parser.
TEXT_OF_HTML = """
    const body = new DOMParser().parseFromString(arguments[0], 'text/html').body;
    for (const removed of body.querySelectorAll('script, iframe')) removed.remove();
    const walker = document.createTreeWalker(body, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
    let text = '';
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        if (node.nodeType === Node.TEXT_NODE) text += node.data;
        else if (node.nodeName === 'BR') text += '\\n';
    }
    return text;
"""

# HyperText is drawn in an iframe of the same origin. A region that crosses tags has several spans of one class.
# While the page loads, elements are in the DOM that are not visible yet.
DRAWN_SPANS = """
    const visible = element => element.getClientRects().length > 0;
    const frames = [...document.querySelectorAll('iframe')].filter(visible);
    const pages = [document, ...frames.map(frame => frame.contentDocument).filter(Boolean)];
    return pages.flatMap(page => [...page.querySelectorAll('.htx-highlight')]).filter(visible).map(span => ({
        region: [...span.classList].find(name => name.startsWith('htx-highlight-')),
        text: span.textContent,
        color: getComputedStyle(span).backgroundColor,
    }));
"""

# Where a word is drawn, in the window's pixels. HyperText lies in a frame; Paragraphs have no element of their own, but
# their words stand nowhere else in the editor.
MIDDLE_OF_WORD = """
    const word = arguments[0];
    const frame = [...document.querySelectorAll('iframe')].find(frame => frame.getClientRects().length > 0);
    const page = frame?.contentDocument ?? document;
    const drawn = frame ? page.body : document.querySelector('.lsf-htx-richtext, .lsf-editor');
    const origin = frame?.getBoundingClientRect() ?? {x: 0, y: 0};
    const walker = page.createTreeWalker(drawn, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const start = node.data.indexOf(word);
        if (start >= 0) {
            const range = page.createRange();
            range.setStart(node, start);
            range.setEnd(node, start + word.length);
            const box = range.getBoundingClientRect();
            return [Math.round(origin.x + box.x + box.width / 2), Math.round(origin.y + box.y + box.height / 2)];
        }
    }
"""

# How many regions the editor itself holds for the annotation that is open; null while it loads.
NUM_REGIONS = """
    const annotation = window.Htx?.annotationStore?.selected;
    return window.Htx?.task?.id === arguments[0] && annotation ? annotation.regions.length : null;
"""


@dataclass(frozen=True, slots=True)
class Highlight:
    """A stretch of the page that is marked as an entity."""

    text: str  # without line breaks: the page draws them as it likes
    rgb: tuple[int, int, int]  # the background colour of its label


def missing() -> str | None:
    """Which program must be installed to start a browser; None if all are there."""
    if not any(map(shutil.which, CHROMIUM_NAMES)):
        return f"none of {', '.join(CHROMIUM_NAMES)} is on the PATH"
    return None if shutil.which("chromedriver") else "chromedriver is not on the PATH"


class Browser:
    """Headless Chromium with a profile of its own."""

    def __init__(self, profile: Path, log: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = Service(executable_path=shutil.which("chromedriver"), log_output=str(log))
        self.driver = webdriver.Chrome(options=options, service=service)
        # the window is not the page: headless Chromium keeps room for a toolbar
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTH_PX, "height": HEIGHT_PX, "deviceScaleFactor": 1, "mobile": False},
        )

    def close(self) -> None:
        """End the browser."""
        self.driver.quit()

    def log_in(self, label_studio: LabelStudio) -> None:
        """Log in through Label Studio's login page."""
        self.driver.get(f"{label_studio.url}/user/login/")
        self.driver.find_element(By.NAME, "email").send_keys(label_studio.account.email)
        self.driver.find_element(By.NAME, "password").send_keys(label_studio.account.password)
        self.driver.find_element(By.CSS_SELECTOR, "form button[type=submit]").click()
        wait_until("the login", lambda: "/user/login" not in self.driver.current_url, timeout_s=30)

    def run(self, script: str, *arguments: Any) -> Any:
        """The result of a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def find_all(self, css: str) -> list[WebElement]:
        """All elements that match a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text_of_html(self, html: str) -> str:
        """The text that the offsets of HyperText regions count in."""
        return str(self.run(TEXT_OF_HTML, html))

    def utf16_slice(self, text: str, utf16_start: int, utf16_end: int) -> str:
        """JavaScript strings are UTF-16, as the offsets of Paragraphs regions are."""
        return str(self.run("return arguments[0].slice(arguments[1], arguments[2])", text, utf16_start, utf16_end))


class Editor:
    """The labelling editor with one task open."""

    def __init__(self, browser: Browser, label_studio: LabelStudio, project: int, task: int) -> None:
        self.browser = browser
        self._task = task
        browser.driver.get(f"{label_studio.url}/projects/{project}/data?task={task}")
        wait_until(f"the editor of task {task}", lambda: self.num_regions() is not None, timeout_s=60)

    def num_regions(self) -> int | None:
        """How many regions the editor holds; None while it loads."""
        num_regions: int | None = self.browser.run(NUM_REGIONS, self._task)
        return num_regions

    def drawn(self) -> list[Highlight]:
        """The stretches that are marked on the page now, in page order."""
        spans = self.browser.run(DRAWN_SPANS)
        # a Paragraphs region lies in one phrase and has no class of its own: each span is a region
        keys = [span["region"] if re.search(r"\d", span["region"]) else str(i) for i, span in enumerate(spans)]
        return [
            _highlight([span for _, span in group])
            for _, group in groupby(zip(keys, spans, strict=True), key=lambda pair: pair[0])
        ]

    def wait_for_highlights(self, num_regions: int, timeout_s: float = 30) -> list[Highlight]:
        """The marked stretches, as soon as the editor holds and draws `num_regions` of them."""
        wait_until(
            f"{num_regions} regions in the editor of task {self._task}",
            lambda: self.num_regions() == len(self.drawn()) == num_regions,
            timeout_s,
        )
        return self.drawn()

    def screenshot(self, path: Path) -> None:
        """Save a picture of the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        assert self.browser.driver.save_screenshot(str(path))

    def turn_on_auto_annotation(self) -> None:
        """Click the switch "Auto-Annotation"."""
        # the input itself has no size: a person clicks the switch that is drawn around it
        self._click("label:has([data-testid=bottombar-auto-annotation-toggle])")
        wait_until("auto-annotation", lambda: self.browser.run("return window.Htx.autoAnnotation"), timeout_s=10)

    def choose_label(self, label: str) -> None:
        """Select the label that the next region gets."""
        self._click(".lsf-label__text", label)
        wait_until(f"the label {label}", lambda: self.browser.find_all(".lsf-label_selected"), timeout_s=10)

    def submit(self) -> None:
        """Click "Submit"."""
        self._click("button", "Submit")

    def _click(self, css: str, text: str | None = None) -> None:
        """Click the only element with that selector and text, as soon as it can be clicked."""

        def clicked() -> bool:
            try:
                matching = [found for found in self.browser.find_all(css) if text is None or found.text == text]
                if len(matching) == 1:
                    matching[0].click()
                return len(matching) == 1
            except (StaleElementReferenceException, ElementNotInteractableException):  # still being drawn
                return False

        wait_until(f"{css} {text or ''} to click", clicked, timeout_s=30)

    def double_click_word(self, word: str) -> None:
        """Selects the word's first occurrence in the text, as an annotator does."""
        x, y = self.browser.run(MIDDLE_OF_WORD, word)
        actions = ActionBuilder(self.browser.driver)
        actions.pointer_action.move_to_location(x, y).double_click()  # type: ignore[no-untyped-call]
        actions.perform()


def _highlight(spans: Sequence[dict[str, str]]) -> Highlight:
    red, green, blue = map(int, re.findall(r"\d+", spans[0]["color"])[:3])
    text = "".join(span["text"] for span in spans)
    return Highlight(text=without_line_breaks(text), rgb=(red, green, blue))


def without_line_breaks(text: str) -> str:
    """The text on one line."""
    return re.sub(r"[\r\n]", "", text)
