"""A server that is killed in the middle of a run, and started again. killed.py BINARY DATA"""

import json
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import expect

import server
from browser import PATIENCE, Visit, browser, open_tab, state

STEPS = 30


def started(binary, data, port=0):
    """A server and its address."""
    flags = ["--port", str(port), "--device", "cpu", "--threads", "1", "--json", "--data-dir", data]
    process = subprocess.Popen([binary, "serve", *flags], stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())["url"] + "/"


def main(binary, data):
    process, url = started(binary, data)
    try:
        options = {"checkpointing_steps": 10, "validation_prompt": "a photo of sks bird", "validation_steps": 10, "num_validation_images": 1}
        run = server.begun(url, STEPS, **options)
        with browser() as opened:
            visit = Visit(opened, url)
            page = visit.page
            open_tab(page, "Watch")
            expect(page.locator(".gallery")).to_contain_text("step 10", timeout=PATIENCE)
            server.wait_for(url, run, lambda job: (job["progress"] or {}).get("done", 0) > 12)
            process.kill()
            process.wait()
            expect(page.get_by_text("No connection to the server")).to_be_visible()
            # What the browser says of the lost connection is no fault of the page.
            visit.faults.clear()
            process, _ = started(binary, data, port=url.rstrip("/").rsplit(":", 1)[1])
            # Nobody reloads: the page finds its server again.
            expect(state(page)).to_have_text("interrupted", timeout=PATIENCE)
            visit.faults.clear()
            expect(page.get_by_text("No connection to the server")).to_have_count(0)
            page.get_by_role("button", name="Resume").click()
            expect(state(page)).to_have_text("finished", timeout=PATIENCE)
            expect(page.locator(".chart-legend")).to_contain_text(f"Step {STEPS}")
            expect(page.locator(".gallery .picture")).to_have_count(4)
            visit.close()
        whole = server.trained(url, STEPS, **options)
        weights = [Path(data) / "runs" / job / "unet/adapter_model.safetensors" for job in (run, whole)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), "other bits than those of a run that was never stopped"
    finally:
        process.kill()
        process.wait()


main(*sys.argv[1:])
