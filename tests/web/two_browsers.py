"""Two browsers at once: each sees what the other does, in the queue too. two_browsers.py URL PHOTOS"""

import sys
from pathlib import Path

from playwright.sync_api import expect

from browser import PATIENCE, Visit, browser, fill_option, open_tab, state, train

HIDE = """hidden => {
    Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
}"""


def main(url, photos):
    photos = sorted(Path(photos).glob("*.png"))
    with browser() as opened:
        one, other = (Visit(opened, url) for _ in range(2))
        train(one.page, photos, 4000, 2000, "long-run")
        expect(state(one.page)).to_have_text("running", timeout=PATIENCE)

        open_tab(other.page, "Watch")
        expect(other.page.get_by_role("heading", name="long-run")).to_be_visible()
        expect(other.page.locator(".chart-legend")).to_be_visible(timeout=PATIENCE)

        train(other.page, photos, 2, 2, "second")
        train(other.page, None, 2, 2, "third")
        queue = one.page.locator(".job-list").first.locator(".job-row")
        expect(queue).to_have_count(3)
        other.page.get_by_role("button", name="Move third up").click()
        expect(queue.nth(1)).to_contain_text("third")

        # A job that waits is changed, and another one dropped.
        one.page.get_by_role("link", name="second").click()
        one.page.get_by_role("button", name="Edit").click()
        fill_option(one.page, "max_train_steps", 3)
        expect(one.page.locator(".plan")).to_contain_text("3 steps")
        one.page.get_by_role("button", name="Save the changes").click()
        expect(one.page.get_by_role("heading", name="second")).to_be_visible()
        other.page.get_by_role("link", name="third").click()
        other.page.get_by_role("button", name="Drop").click()
        other.page.get_by_role("dialog").get_by_role("button", name="Drop").click()
        expect(queue).to_have_count(2)

        # What one stops, the other sees, and the next has its turn.
        other.page.get_by_role("link", name="long-run").click()
        other.page.get_by_role("button", name="Stop").click()
        other.page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        expect(one.page.get_by_role("heading", name="second")).to_be_visible()
        expect(state(one.page)).to_have_text("finished", timeout=PATIENCE)
        expect(one.page.locator(".chart-legend")).to_contain_text("Step 3")

        # A tab that is hidden holds no stream, and has missed nothing when it is shown again.
        one.page.evaluate(HIDE, True)
        train(other.page, None, 2, 2, "unseen")
        expect(state(other.page)).to_have_text("finished", timeout=PATIENCE)
        assert one.page.get_by_role("link", name="unseen").count() == 0
        with one.page.expect_request("**/api/events?after=*"):
            one.page.evaluate(HIDE, False)
        expect(one.page.get_by_role("link", name="unseen")).to_be_visible()
        one.close()
        other.close()


main(*sys.argv[1:])
