"""Two visitors of a public server: each sees only what is their own. two_visitors.py URL PHOTOS"""

import sys
from pathlib import Path

from playwright.sync_api import expect

from browser import PATIENCE, Visit, browser, open_tab, state, train


def main(url, photos):
    photos = sorted(Path(photos).glob("*.png"))
    with browser() as opened:
        one, other = (Visit(opened, url) for _ in range(2))
        for visit in (one, other):
            expect(visit.page.get_by_role("complementary")).to_contain_text("Limits:")
        train(one.page, photos, 4, 2, "mine")
        address = one.page.url
        train(other.page, photos, 4, 2, "theirs")
        expect(state(other.page)).to_have_text("finished", timeout=PATIENCE)
        expect(state(one.page)).to_have_text("finished", timeout=PATIENCE)
        expect(other.page.locator(".job-row")).to_have_count(1)
        expect(other.page.locator(".job-row")).to_contain_text("theirs")

        # A link to what is another's leads nowhere, nor does its picture.
        picture = one.page.locator(".gallery img").first.get_attribute("src")
        other.page.goto(address)
        other.page.reload()
        expect(other.page.get_by_text("There is no such job")).to_be_visible()
        assert other.context.request.get(url.rstrip("/") + picture).status == 404
        assert one.context.request.get(url.rstrip("/") + picture).status == 200

        one.page.get_by_role("button", name="Delete my things").click()
        one.page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
        expect(one.page.get_by_label("Notices").get_by_text("All that was yours is deleted.")).to_be_visible()
        open_tab(one.page, "Library")
        expect(one.page.get_by_text("No adapter yet.")).to_be_visible()
        open_tab(other.page, "Library")
        expect(other.page.get_by_role("article", name="theirs")).to_be_visible()
        one.close()
        other.close()


main(*sys.argv[1:])
