#!/usr/bin/env bash
# Which libtorch this machine's graphics card takes: prints "cpu" or "cuda", or says what else is needed and fails.
# The driver is asked through nvidia-smi, which it brings along, on WSL2 too.
# CUDA 13, which the wheel on PyPI is built with, needs driver 580 (CUDA Toolkit release notes) and compute capability 7.5; PyTorch's
# build for CUDA 12.6 takes 5.0 to 9.0 (PyTorch RELEASE.md, release 2.11) and driver 525 (CUDA minor version compatibility).
set -euo pipefail
least_driver=580 least_capability=75
older_driver=525 older_least=50 older_most=90
version=${1:?usage: setup/cuda.sh TORCH_VERSION}

smi=$(PATH="$PATH:/usr/lib/wsl/lib" command -v nvidia-smi || true)
if [ -z "$smi" ]; then
  # A container may have the driver without its tools: then nobody can be asked.
  for sign in /proc/driver/nvidia/version /dev/nvidiactl; do [ -e "$sign" ] && { echo cuda; exit 0; }; done
  echo cpu
  exit 0
fi
# A driver without a card, or tools without a driver: nothing that could compute.
cards=$("$smi" --query-gpu=driver_version,compute_cap,name --format=csv,noheader 2>/dev/null | grep -E '^[0-9]' || true)
[ -n "$cards" ] || { echo cpu; exit 0; }

choices() {
  cat >&2 <<TEXT
$1
$2
  to train on the CPU instead:        LORABOOTH_CUDA=0 make build
  to have the default build anyway:   LORABOOTH_CUDA=1 make build
TEXT
  exit 1
}
older_build="  the build for CUDA 12.6, from PyTorch's own index (3 GB):
    python3 -m pip install --target .torch-cu126 torch==$version --index-url https://download.pytorch.org/whl/cu126
    LIBTORCH=\$PWD/.torch-cu126/torch make build"

good= older= newer= names= left_out=
while IFS=, read -r driver_version capability name; do
  name=${name# } capability=${capability//[. ]/} driver=${driver_version%%.*}
  names+="${names:+, }$name"
  # A driver that is too old for the question knows no card that needs a newer one.
  [[ "$capability" =~ ^[0-9]+$ ]] || capability=$older_most
  if [ "$capability" -ge "$least_capability" ]; then good=1; else left_out+="${left_out:+, }$name"; fi
  if [ "$capability" -ge "$older_least" ] && [ "$capability" -le "$older_most" ]; then older=1; fi
  if [ "$capability" -gt "$older_most" ]; then newer=1; fi
done <<< "$cards"

if [ -n "$good" ] && [ "$driver" -ge "$least_driver" ]; then
  [ -z "$left_out" ] || echo "$left_out: below compute capability 7.5, the least that CUDA 13 has; not used" >&2
  echo cuda
  exit 0
fi
if [ -n "$good" ]; then
  update="  update the driver to $least_driver or newer, then run this again"
  why="The driver of this machine ($driver; $names) is too old for CUDA 13, which needs $least_driver."
  if [ "$driver" -lt "$older_driver" ] || { [ -n "$newer" ] && [ -z "$older" ]; }; then choices "$why" "$update"; fi
  choices "$why" "$update, or take
$older_build"
fi
why="$names: below compute capability 7.5, the least that CUDA 13 has."
if [ -z "$older" ]; then
  echo "$why PyTorch 2.11 has no build for it; the CPU is used" >&2
  echo cpu
  exit 0
fi
why="$why PyTorch's build for CUDA 12.6 has it"
if [ "$driver" -lt "$older_driver" ]; then
  choices "$why, with driver $older_driver or newer; this is $driver." "  update the driver; then take
$older_build"
fi
choices "$why:" "$older_build"
