"""drive.py URL PHOTOS: everything that gradio_client can ask of a server with a language model and without a password."""
import sys
from pathlib import Path

import httpx
from gradio_client import handle_file
from PIL import Image
from safetensors.torch import load_file

from common import OPTIONS, connect, first_run, refusal, state_of, wait_for

url, photos = sys.argv[1:]
photos = [handle_file(str(Path(photos) / f"{number}.png")) for number in (1, 2)]
client, other = connect(url), connect(url)
train = dict(files=photos, instance_prompt="a photo of sks bird", api_name="/train")

# List.
described = client.view_api(return_format="dict")["named_endpoints"]
assert list(described) == ["/train", "/follow", "/stop", "/runs", "/generate", "/complete"], described
assert client.predict(api_name="/runs") == []

# Upload and train with progress; the run's name comes first, the files last.
job = client.submit(steps=40, options=OPTIONS, **train)
seen = set()
def watch():
    for unit in job.status().progress_data or []:
        seen.add((unit.desc, unit.index, unit.length))
    return job.done()
wait_for(watch)
run, state, files, pictures = job.result()
assert job.outputs()[0][0] == run and job.outputs()[0][2] == [], job.outputs()[0]
assert state["state"] == "finished" and state["step"] == 40 and state["loss"] > 0, state
assert any(phase == "training" and total == 40 for phase, _, total in seen), seen
kohya, peft = map(Path, files)
assert kohya.suffix == ".safetensors" and any("lora_down" in name for name in load_file(kohya)), kohya
assert peft.suffix == ".zip" and peft.read_bytes()[:2] == b"PK", peft
assert [state["run"] for state in client.predict(api_name="/runs")] == [run]

# A run that is over is told of again.
again = other.predict(run, api_name="/follow")
assert again[0] == run and Path(again[2][0]).read_bytes() == kohya.read_bytes()

# Generate with it, and download.
drawn = client.submit("a photo of sks bird", adapter=run, strength=0.5, steps=3, seed=7, number=2, api_name="/generate")
gallery, state = drawn.result()
assert [picture["caption"] for picture in gallery] == ["seed 7", "seed 8"] and state["state"] == "finished", gallery
assert all(Image.open(picture["image"]).size == (64, 64) for picture in gallery)

# Who iterates sees each picture when it is drawn.
drawn = client.submit("a photo of sks bird", steps=2, seed=7, number=3, api_name="/generate")
counts = [len(gallery) for gallery, state in drawn]
assert counts == sorted(counts) and {1, 2, 3} <= set(counts), counts

# Cancelled in the middle, no more are drawn.
drawn = client.submit("a photo of sks bird", steps=5, number=100, api_name="/generate")
wait_for(lambda: any(gallery for gallery, _ in drawn.outputs()))
run = drawn.outputs()[-1][1]["run"]
drawn.cancel()
wait_for(lambda: state_of(client, run)["state"] == "stopped")

# A text.
text, state = client.predict("red house", max_new_tokens=5, api_name="/complete")
assert isinstance(text, str) and state["kind"] == "complete", (text, state)

# What is wrong is said in the server's own words.
assert "instance_prompt" in refusal(lambda: client.predict(files=photos, api_name="/train"))
assert "max_train_steps" in refusal(lambda: client.predict(steps=-3, options=OPTIONS, **train))
assert "no_such" in refusal(lambda: client.predict(options={"no_such": 1}, **train))
assert "nothing is fetched" in refusal(lambda: client.predict(files=[handle_file("http://example.invalid/a.png")], instance_prompt="p", api_name="/train"))
text_file = Path(kohya).with_name("notes.png")
text_file.write_text("no picture")
assert "notes.png is not an image" in refusal(lambda: client.predict(files=[handle_file(str(text_file))], instance_prompt="p", api_name="/train"))
assert "prompt" in refusal(lambda: client.predict(" ", api_name="/generate"))
assert "no such job" in refusal(lambda: client.predict("0123456789abcdef", api_name="/follow"))

# A run that somebody else started is followed; that this is cancelled, or a stream breaks, does not stop it.
long = other.submit(steps=100_000, options=OPTIONS, **train)
run = first_run(long)
following = client.submit(run, api_name="/follow")
wait_for(lambda: any((output[1]["step"] or 0) > 2 for output in following.outputs()))
following.cancel()
ask = {"data": [run], "fn_index": 1, "session_hash": "breaks"}
assert httpx.post(f"{url}/gradio_api/queue/join", json=ask).json()["event_id"]
with httpx.stream("GET", f"{url}/gradio_api/queue/data?session_hash=breaks") as stream:
    assert next(stream.iter_lines()).startswith("data: {")
steps = wait_for(lambda: state_of(client, run)["progress"]["done"])
wait_for(lambda: state_of(client, run)["progress"]["done"] > steps + 3)
assert state_of(client, run)["state"] == "running"

# Cancelling the training does; one that waits leaves the queue.
waiting = client.submit(steps=100_000, options=OPTIONS, **train)
behind = first_run(waiting)
assert state_of(client, behind)["state"] == "queued"
waiting.cancel()
wait_for(lambda: state_of(client, behind)["state"] == "stopped")
assert state_of(client, run)["state"] == "running"
long.cancel()
wait_for(lambda: state_of(client, run)["state"] == "stopped")

# /stop is heard by those who follow; what was trained so far comes along.
long = connect(url).submit(steps=100_000, options=OPTIONS, **train)
run = first_run(long)
following = other.submit(run, api_name="/follow")
wait_for(lambda: any((output[1]["step"] or 0) > 2 for output in following.outputs()))
assert client.predict(run, api_name="/stop")["state"] == "stopping"
_, state, files, _ = following.result(timeout=60)
assert state["state"] == "stopped" and files[0].endswith(".safetensors"), (state, files)
assert "does not run" in refusal(lambda: client.predict(run, api_name="/stop"))
