"""visitors.py URL PHOTOS: two clients of a public server see nothing of each other."""
import sys
from pathlib import Path

from gradio_client import handle_file

from common import OPTIONS, connect, refusal

url, photos = sys.argv[1:]
anna, berta = connect(url), connect(url)
given = [handle_file(str(Path(photos) / "1.png"))]
run, state, files, _ = anna.predict(files=given, instance_prompt="a photo of sks bird", steps=2, options=OPTIONS, api_name="/train")
assert state["state"] == "finished" and Path(files[0]).stat().st_size > 1000, state
assert [state["run"] for state in anna.predict(api_name="/runs")] == [run]
assert berta.predict(api_name="/runs") == []
assert "no such job" in refusal(lambda: berta.predict(run, api_name="/follow"))
assert "no such job" in refusal(lambda: berta.predict(run, api_name="/stop"))
assert "adapter" in refusal(lambda: berta.predict("a bird", adapter=run, api_name="/generate"))
assert "max_train_steps" in refusal(lambda: anna.predict(files=given, instance_prompt="p", steps=50, api_name="/train"))
