"""A real browser before the page of a server that runs: what the scripts of this folder share."""

import contextlib
import re
import shutil
from urllib.parse import urlsplit

from playwright.sync_api import expect, sync_playwright

# A training step on two busy cores takes up to a second, and a model is read before the first.
PATIENCE = 240_000
expect.set_options(timeout=15_000)


def _executable():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise SystemExit("no Chromium was found; `make browser` installs it")


@contextlib.contextmanager
def browser(*flags):
    with sync_playwright() as playwright:
        # Root, as in a container, needs --no-sandbox.
        opened = playwright.chromium.launch(executable_path=_executable(), args=["--no-sandbox", *flags])
        yield opened
        opened.close()


class Visit:
    """A page, and what went wrong on it: uncaught errors, refusals of the security policy, requests to other hosts."""

    def __init__(self, opened, url, **context):
        self.host = urlsplit(url).netloc
        self.url = url
        self.context = opened.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.context.set_default_timeout(15_000)
        self.faults = []
        self.page = self.new_page()

    def new_page(self):
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("console", lambda message: message.type == "error" and self._said(message.text))
        page.on("request", lambda request: self._asked(request.url))
        page.goto(self.url)
        return page

    def _said(self, text):
        # What the server refuses is shown on the page; the browser logs it too.
        if "the server responded with a status of 4" not in text:
            self.faults.append(f"console: {text}")

    def _asked(self, url):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.netloc != self.host:
            self.faults.append(f"asked another host: {url}")

    def close(self):
        self.context.close()
        assert not self.faults, self.faults


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=name != "Watch").click()
    expect(page.get_by_role("tabpanel", name=name)).to_be_visible()


def open_accordion(page, title):
    summary = page.locator("summary", has_text=title).first
    if summary.locator("xpath=..").get_attribute("open") is None:
        summary.click()


def state(page):
    """The state of the job that Watch shows."""
    return page.locator("article .job-head .state")


def fill_option(page, name, value):
    page.locator(f"#option-{name}").fill(str(value))


def be_quick(page):
    """The settings that the demo model begins with, without what takes minutes."""
    expect(page.get_by_role("radio", name=re.compile("Demo model"))).to_be_checked()
    page.locator("#option-with_prior_preservation").uncheck()
    page.locator("#option-train_text_encoder").uncheck()
    fill_option(page, "num_validation_images", 1)


def train(page, photos, steps, every, name, prompt="a photo of sks bird"):
    """Fills the form for the demo model and starts; Watch shows the run then. Without `photos` those of before serve."""
    open_tab(page, "Train")
    be_quick(page)
    if photos:
        page.locator("input[type=file]").first.set_input_files(photos)
        expect(page.locator(".photo")).to_have_count(len(photos))
    fill_option(page, "instance_prompt", prompt)
    fill_option(page, "max_train_steps", steps)
    fill_option(page, "validation_steps", every)
    page.get_by_label("Name of the run").fill(name)
    expect(page.locator(".plan")).to_contain_text(f"{steps} steps")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
