"""The JSON API of a server, for what a script needs before or beside the page."""

import json
import time
import urllib.error
import urllib.request

SMALL = {
    "model": "demo", "instance_prompt": "a photo of sks bird", "train_batch_size": 1, "lora_r": 2, "mixed_precision": "no",
    "validation_prompt": "", "seed": 3,
}


def ask(url, path, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def download(url, path, file):
    with urllib.request.urlopen(url + path) as answer:
        file.write_bytes(answer.read())
    return file


def wait_for(url, job, is_it, most=240):
    end = time.time() + most
    while time.time() < end:
        found = ask(url, f"api/jobs/{job}")
        if is_it(found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {found}")


def over(url, job):
    return wait_for(url, job, lambda job: job["ended"] and job["state"] not in ("running", "stopping", "queued", "paused"))


def begun(url, steps, **more):
    """A training of the photos inside the binary, by its id."""
    penguin = ask(url, "api/sets", {"example": "penguin"})["id"]
    options = {**SMALL, "max_train_steps": steps, **more}
    return ask(url, "api/jobs", {"kind": "train_dreambooth", "name": "bird", "set": penguin, "options": options})["id"]


def trained(url, steps, **more):
    job = begun(url, steps, **more)
    assert over(url, job)["state"] == "finished"
    return job
