"""password.py URL PHOTOS: with a password, anna:secret."""
import sys
from pathlib import Path

from gradio_client import handle_file

from common import OPTIONS, connect, refusal

url, photos = sys.argv[1:]
assert "credentials" in refusal(lambda: connect(url)).lower() or "login" in refusal(lambda: connect(url)).lower()
assert "credentials" in refusal(lambda: connect(url, auth=("anna", "wrong"))).lower()
client = connect(url, auth=("anna", "secret"))
given = [handle_file(str(Path(photos) / "1.png"))]
run, state, files, _ = client.predict(files=given, instance_prompt="a photo of sks bird", steps=2, options=OPTIONS, api_name="/train")
assert state["state"] == "finished" and Path(files[0]).stat().st_size > 1000, state
assert client.predict(api_name="/runs")[0]["run"] == run
