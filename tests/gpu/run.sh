#!/usr/bin/env bash
# Every check that needs a GPU, in a few minutes: CUDA gives the CPU's numbers; peak memory of Stable Diffusion 1.5 shapes under caps
# of 4 and 11 GB, and in 8 and 4 bits, Stable Diffusion XL's too; the launch's two language models, in 8 bits and with their weights in host
# memory; speed beside PEFT's loop on the same card; the plan beside the peak; ranks that exchange gradients through NCCL. The language
# models take 14 GB of disk.
#   PYTHON      with torch 2.11, diffusers, transformers, peft and open_clip_torch (python3)
#   LORABOOTH   the binary (target/release/lorabooth); it may have been built elsewhere and stripped
#   OUT         where report.md and report.json go (a temporary folder)
#   PARTS       of them: "numbers ranks pictures bits texts"
#   DEVICE, VARIANT, RESOLUTION, STEPS   cuda, sd15, 512, 20; `DEVICE=cpu VARIANT=tiny4 RESOLUTION=128 STEPS=3` tries the script itself
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-python3} LORABOOTH=${LORABOOTH:-target/release/lorabooth}
export PARTS=${PARTS:-numbers ranks pictures bits texts}
export OUT=${OUT:-$(mktemp -d)} DEVICE=${DEVICE:-cuda} VARIANT=${VARIANT:-sd15} RESOLUTION=${RESOLUTION:-512} STEPS=${STEPS:-20}
# A binary that was built on another machine takes the libtorch of this Python's torch.
LD_LIBRARY_PATH="$("$PYTHON" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LD_LIBRARY_PATH HF_HUB_OFFLINE=1
"$LORABOOTH" doctor
exec "$PYTHON" tests/gpu/measure.py
