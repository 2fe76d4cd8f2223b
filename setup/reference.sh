#!/usr/bin/env bash
# Puts the Python libraries that tests and benchmarks compare with in a venv outside the tree: setup/reference.sh VENV/bin/python
# A venv that is there is brought up to these versions in place, never wiped: another checkout's tests may be running in it.
set -euo pipefail
python=${1:?usage: setup/reference.sh VENV/bin/python}
venv=$(dirname "$(dirname "$python")")
packages=(torch==2.11.0 torchvision==0.26.0 'peft==0.21.*' 'diffusers==0.42.*' 'transformers==5.23.*' accelerate pillow safetensors numpy
  scipy 'tensorboard>=2.20' 'bitsandbytes>=0.50' 'gguf==0.19.*'   # diffusers' LMS needs scipy; bitsandbytes: 8-bit weights and optimizers; gguf: llama.cpp's weight files
  'openmpi==5.*'   # an mpirun
  'playwright==1.65.*' 'axe-playwright-python==0.1.*' 'gradio_client==2.7.*' 'jsonschema==4.*')   # the page in a browser, a client of the server, what the server answers
alone=('open-clip-torch==3.3.*')   # only its BPE vocabulary is used, not what it depends on
wanted="${packages[*]} ${alone[*]}"
stamp=$venv/lorabooth-reference

up_to_date() { [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; }
fail() { echo "$1" >&2; exit 1; }

up_to_date && exit 0
[[ "$python" == */bin/python* ]] || fail "$python is not a venv's bin/python"
mkdir -p "$venv"
if command -v flock >/dev/null; then
  exec 9>"$venv/lorabooth-reference.lock"
  flock 9
  up_to_date && exit 0
fi

if [ ! -x "$python" ]; then
  command -v python3 >/dev/null || fail "python3 is needed for the tests that compare with the Python libraries; install it (Debian: apt install python3-venv)"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "python3 is older than 3.10, which the Python libraries need"
  python3 -c 'import venv, ensurepip' 2>/dev/null || fail "python3 lacks venv or pip; install them (Debian: apt install python3-venv)"
  python3 -m venv "$venv"
fi
"$python" -m pip --version >/dev/null 2>&1 || fail "$venv has no pip; delete that folder and run this again"
echo "installing the Python reference libraries in $venv (torch with its CUDA libraries: 5 GB, once)"
pip=("$python" -m pip install -q --disable-pip-version-check --no-warn-script-location)
"${pip[@]}" "${packages[@]}" || fail "pip could not install the reference libraries (above: why)"
"${pip[@]}" --no-deps "${alone[@]}" || fail "pip could not install the CLIP vocabulary (above: why)"
echo "$wanted" > "$stamp"
