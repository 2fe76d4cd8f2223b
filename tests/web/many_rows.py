"""5,000 steps of loss and 500 pictures: the page stays smooth while more come. many_rows.py URL

The server's answers for one job are made up here; all others are its own.
"""

import json
import math
import sys

from playwright.sync_api import expect

from browser import Visit, browser

STEPS, PICTURES = 5000, 500
# A person takes what is slower for a hang.
MOST_MS = 400
PIXEL = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256"><rect width="256" height="256" fill="teal"/></svg>'
)


def metrics(step):
    loss = 0.1 + 0.3 * math.exp(-step / 900) + 0.05 * math.sin(step * 12.9898) ** 2
    return {"step": step, "loss": loss, "instance_loss": loss * 0.6, "prior_loss": loss * 0.4, "lr": 1e-4, "grad_norm": 0.5, "step_s": 0.4}


def image(index):
    url = f"/api/images/made-up-{index}"
    return {"id": str(index), "url": url, "thumbnail": f"{url}?thumbnail=1", "step": index * 10, "strength": None, "parameters": {"prompt": "a bird", "seed": 1}}


def main(url):
    job = {
        "id": "0123456789abcdef", "kind": "train_dreambooth", "name": "long", "state": "running", "position": None, "created": "2026-01-01T00:00:00Z",
        "started": "2026-01-01T00:00:00Z", "ended": None, "error": None, "field": None, "options": {}, "set": None, "memory_bytes": 10**9, "command": "",
        "progress": {"phase": "training", "done": STEPS, "total": 2 * STEPS, "unit": "steps", "seconds_left": 60, "rate": 3.0}, "actions": ["stop"],
        "results": {"adapter": None, "images": [image(index) for index in range(PICTURES)], "text": None}, "warnings": [], "log": ["line"] * 200, "facts": [],
    }
    coming = "".join(
        f"id: {10**9 + step}\ndata: {json.dumps({'kind': 'step', 'id': job['id'], 'metrics': metrics(STEPS + step)})}\n\n" for step in range(1, 501)
    )
    with browser() as opened:
        visit = Visit(opened, url)
        page = visit.page
        answer = lambda value: lambda route: route.fulfill(json=value)
        page.route("**/api/jobs?*", answer([job]))
        page.route(f"**/api/jobs/{job['id']}", answer(job))
        page.route(f"**/api/jobs/{job['id']}/metrics*", answer([metrics(step) for step in range(1, STEPS + 1)]))
        page.route("**/api/images/**", lambda route: route.fulfill(body=PIXEL, content_type="image/svg+xml"))
        page.route("**/api/events*", lambda route: route.fulfill(body=coming, content_type="text/event-stream"))
        page.add_init_script("window.tasks = []; new PerformanceObserver(list => window.tasks.push(...list.getEntries().map(task => task.duration))).observe({ type: 'longtask' });")
        page.goto(f"{url}#watch/{job['id']}")
        page.reload()
        expect(page.locator(".gallery .picture")).to_have_count(PICTURES)
        expect(page.locator(".chart-legend")).to_contain_text(f"Step {STEPS + 500}")
        expect(page.locator(".curve canvas")).to_be_visible()
        page.wait_for_timeout(500)
        page.evaluate("window.tasks.length = 0")
        for _ in range(10):
            page.mouse.wheel(0, 900)
            page.wait_for_timeout(50)
        page.locator("#smoothing").fill("0.5")
        page.wait_for_timeout(300)
        slow = [task for task in page.evaluate("window.tasks") if task > MOST_MS]
        assert not slow, slow
        # What is far from the window has not been fetched.
        loaded = page.locator(".gallery img").evaluate_all("images => images.filter(image => image.complete && image.naturalWidth > 0).length")
        assert loaded < PICTURES, loaded
        visit.context.close()


main(*sys.argv[1:])
