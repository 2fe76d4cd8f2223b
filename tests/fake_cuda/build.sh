#!/usr/bin/env bash
# build.sh TORCH FOLDER: the stand-in in FOLDER, under the names of the libraries that it stands in for.
set -euo pipefail
torch=$(cd "${1:?usage: build.sh TORCH FOLDER}" && pwd); here=$(cd "$(dirname "$0")" && pwd); out=${2:?usage: build.sh TORCH FOLDER}
mkdir -p "$out"
"${CXX:-g++}" -std=c++17 -O1 -fPIC -shared -w -I "$torch/include" -I "$torch/include/torch/csrc/api/include" "$here/fake_cuda.cpp" \
  -o "$out/libtorch_cuda.so" -Wl,-soname,libtorch_cuda.so -L "$torch/lib" -Wl,-rpath,"$torch/lib" -ltorch_cpu -lc10 -ldl
ln -sf libtorch_cuda.so "$out/libcuda.so.1"
ln -sf libtorch_cuda.so "$out/libcaffe2_nvrtc.so"
ln -sf libtorch_cuda.so "$out/libnccl.so.2"
