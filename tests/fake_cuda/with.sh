#!/usr/bin/env bash
# with.sh FOLDER COMMAND…: runs COMMAND, a program on libtorch, with the stand-in that build.sh put into FOLDER.
set -euo pipefail
folder=$(cd "${1:?usage: with.sh FOLDER COMMAND…}" && pwd); shift
export LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" LD_PRELOAD=libtorch_cuda.so
exec "$@"
