"""An adapter is pushed from the page's form, while a training runs. push.py URL HUB TOKEN"""

import re
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import server
from browser import PATIENCE, Visit, browser, open_tab


def main(url, hub, token):
    server.trained(url, 1)
    long = server.begun(url, 100_000)
    with browser() as opened:
        found = []
        for scheme in ("light", "dark"):
            visit = Visit(opened, url, color_scheme=scheme, bypass_csp=True)
            page = visit.page
            open_tab(page, "Library")
            page.get_by_role("article").get_by_role("button", name="Upload to the hub").last.click()
            dialog = page.get_by_role("dialog")
            expect(dialog).to_be_visible()
            found += [f"{scheme}: {fault['id']}: {fault['nodes'][0]['target']}" for fault in Axe().run(page).response["violations"]]
            if scheme == "light":
                visit.close()
        assert not found, found

        # What is wrong with a token is said where it stands, and the right one is given in its place.
        dialog.get_by_label("Token").fill("hf_wrong")
        dialog.get_by_label("Repository").fill("me/my bird")
        dialog.get_by_role("button", name="Upload", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text("me/my bird")
        dialog.get_by_label("Repository").fill("bird")
        dialog.get_by_role("button", name="Upload", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text("does not take this token", timeout=PATIENCE)
        expect(dialog.get_by_label("Repository")).to_have_value("bird")
        dialog.get_by_label("Token").fill(token)
        dialog.get_by_label("Licence").select_option("mit")
        dialog.get_by_role("button", name="Upload", exact=True).click()
        expect(dialog).to_have_count(0, timeout=PATIENCE)
        expect(page.get_by_role("link", name=f"{hub}/me/bird")).to_be_visible()
        expect(page.locator("article .job-head .state")).to_have_text("finished")
        # The one that failed has no token any more with which it could go on.
        page.locator(".job-row", has=page.locator(".state.failed")).get_by_role("link").click()
        expect(page.locator("article .job-head .state")).to_have_text("failed")
        expect(page.get_by_role("article").get_by_role("button", name="Resume")).to_have_count(0)
        expect(page.get_by_role("article").get_by_role("button", name=re.compile("Delete"))).to_be_visible()
        visit.close()
    assert server.ask(url, f"api/jobs/{long}")["state"] == "running"
    server.ask(url, f"api/jobs/{long}/stop", {})


main(*sys.argv[1:])
