#!/usr/bin/env bash
# Puts libtorch 2.11 at .libtorch/torch, from the PyPI wheel torch==2.11.0.
# With an NVIDIA card that can use them: torch with its CUDA libraries (4.7 GB). Without a card: only what a CPU needs (0.5 GB).
# LORABOOTH_CUDA=1 or 0 decides it instead. A libtorch named by LIBTORCH is taken as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
version=2.11.0

version_of() { sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$1/version.py" 2>/dev/null || cut -d+ -f1 "$1/build-version" 2>/dev/null; }

if [ -n "${LIBTORCH:-}" ]; then
  found=$(version_of "$LIBTORCH" || true)
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || { echo "LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu.so; unset it or point it at libtorch $version" >&2; exit 1; }
  case "$found" in 2.11.*|"") ;; *) echo "LIBTORCH=$LIBTORCH is version $found; this project needs $version. Unset LIBTORCH to have it fetched" >&2; exit 1 ;; esac
  echo "libtorch ${found:-of unknown version} from LIBTORCH"
  exit 0
fi

cuda=${LORABOOTH_CUDA:-}
if [ -z "$cuda" ]; then
  card=$(setup/cuda.sh $version)
  cuda=$([ "$card" = cuda ] && echo 1 || echo 0)
fi
here=.libtorch
if [ "$(version_of $here/torch || true)" = "$version" ] && [ "$(cat $here/kind 2>/dev/null)" = "$cuda" ]; then exit 0; fi
python3 -m pip --version >/dev/null 2>&1 || { echo "python3 with pip is needed once, to fetch libtorch; or set LIBTORCH to a libtorch $version you have" >&2; exit 1; }

new=.libtorch.new
rm -rf $new; mkdir $new
echo "fetching libtorch $version ($( [ "$cuda" = 1 ] && echo 'with CUDA, 4.7 GB' || echo 'for the CPU, 0.5 GB' ))"
if [ "$cuda" = 1 ]; then
  python3 -m pip install -q --no-compile --target $new "torch==$version"
else
  python3 -m pip install -q --no-compile --no-deps --target $new "torch==$version" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*'
  lib=$new/torch/lib
  # libtorch.so itself asks for libtorch_cuda; an empty one in its place lets the CPU part stand alone.
  rm -f $lib/libtorch.so $lib/libtorch_cuda*.so $lib/libc10_cuda.so $lib/libtorch_nvshmem.so $lib/libtorch_python.so $lib/libcaffe2_nvrtc.so
  echo | cc -shared -x c - -o $lib/libtorch.so
  find $new/nvidia -name '*.a' -delete
  # The licences of what is kept go along when it is packed.
  find $new -mindepth 1 -maxdepth 1 ! -name torch ! -name nvidia ! -name 'torch-*.dist-info' ! -name 'nvidia_*.dist-info' -exec rm -rf {} +
fi
echo "$cuda" > $new/kind
rm -rf $here; mv $new $here
