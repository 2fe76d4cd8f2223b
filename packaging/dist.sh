#!/usr/bin/env bash
# Packs a built program: packaging/dist.sh PROGRAM OUT
# Writes to OUT a relocatable folder as .tar.zst, with libtorch for the CPU inside, and a Python wheel that runs on an installed
# PyTorch. LIBTORCH names the libtorch that the program was built with; LORABOOTH_TOOLS a venv outside the tree for the tools.
set -euo pipefail
program=$(realpath "${1:?usage: packaging/dist.sh PROGRAM OUT}")
mkdir -p "${2:?usage: packaging/dist.sh PROGRAM OUT}"
out=$(realpath "$2")
cd "$(dirname "$0")/.."
libtorch=$(realpath "${LIBTORCH:-.libtorch/torch}")
tools=${LORABOOTH_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/lorabooth/packaging}
level=${LORABOOTH_DIST_LEVEL:-9}   # of Zstandard
packages=('maturin>=1.9,<2' 'patchelf>=0.17' 'zstandard>=0.23')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=lorabooth-$version-linux-x86_64
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

fail() { echo "error: $1" >&2; exit 1; }

set_up_tools() {
  command -v strip >/dev/null && command -v objdump >/dev/null || fail "strip and objdump are needed; install binutils"
  mkdir -p "$tools"
  if command -v flock >/dev/null; then exec 9>"$tools/lock"; flock 9; fi
  if [ "$(cat "$tools/installed" 2>/dev/null)" != "${packages[*]}" ]; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || fail "python3 with venv and pip is needed; install them (Debian: apt install python3-venv)"
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install -q --disable-pip-version-check "${packages[@]}" || fail "pip could not install ${packages[*]} (above: why)"
    echo "${packages[*]}" > "$tools/installed"
  fi
  exec 9>&-
}

# The newest symbol version of a family (GLIBC, GLIBCXX, CXXABI) that files ask for.
newest() { objdump -T "${@:2}" | grep -oE "\<$1_[0-9.]+" | sed "s/$1_//" | sort -uV | tail -1; }
at_most() { [ "$(printf '%s\n' "$1" "$2" | sort -V | tail -1)" = "$2" ]; }

# The manylinux tag that holds for what the files ask for. A wheel of libtorch itself needs glibc 2.28.
platform_tag() {
  local glibc cxx abi
  glibc=$(newest GLIBC "$@") cxx=$(newest GLIBCXX "$@") abi=$(newest CXXABI "$@")
  at_most "$cxx" 3.4.24 && at_most "$abi" 1.3.11 ||
    fail "the program asks for GLIBCXX_$cxx and CXXABI_$abi, newer than manylinux_2_28 promises: add what it calls to packaging/libstdcxx_8.cpp"
  if at_most "$glibc" 2.28; then echo manylinux_2_28; return; fi
  echo "warning: the program asks for glibc $glibc, so the wheel is for manylinux_${glibc/./_}; packaging/glibc_2_28.c lacks: $(
    objdump -T "$@" | sed -n 's/.*(\(GLIBC_2\.[0-9]*\)) */\1 /p' | sort -uV | awk '{ split($1, v, "."); if (v[2] > 28) print $2 }' | tr '\n' ' ')" >&2
  echo "manylinux_${glibc/./_}"
}

# Licences of all that goes into a package, but for libtorch's.
write_licences() {
  mkdir -p "$work/licences"
  cp LICENSE-MIT LICENSE-APACHE "$work/licences"
  cp assets/model/LICENSE-fluent-emoji "$work/licences"
  python3 packaging/third_party.py Cargo.toml "$work/licences/THIRD-PARTY.txt"
}

# Licences of libtorch and of the libraries that come with it, from the wheels they were taken from.
write_libtorch_licences() {
  local to=$1
  copy_licence 'torch-*.dist-info/licenses/LICENSE' "$to/libtorch-LICENSE"
  copy_licence 'torch-*.dist-info/licenses/NOTICE' "$to/libtorch-NOTICE"
  copy_licence 'nvidia_cuda_runtime-*.dist-info/licenses/License.txt' "$to/nvidia-cuda-runtime-LICENSE"
  copy_licence 'nvidia_cuda_cupti-*.dist-info/licenses/License.txt' "$to/nvidia-cuda-cupti-LICENSE"
  cp packaging/licenses/mkl.txt "$to/mkl-LICENSE"
  cp packaging/licenses/libgomp.txt "$to/libgomp-LICENSE"
}
# Beside libtorch, or in the venv of the reference libraries, which has the same wheels.
copy_licence() {
  local reference=${LORABOOTH_PYTHON:-${XDG_CACHE_HOME:-$HOME/.cache}/lorabooth/venv/bin/python} site file
  for site in "$(dirname "$libtorch")" "${reference%/bin/*}"/lib/python3*/site-packages; do
    for file in "$site"/$1; do
      if [ -f "$file" ]; then cp "$file" "$2"; return; fi
    done
  done
  fail "no $1 beside $libtorch, and a package has to carry that licence; have libtorch fetched anew: rm -rf .libtorch && make setup"
}

make_tarball() {
  local folder=$work/$name
  mkdir -p "$folder/lib" "$folder/licences"
  strip -o "$folder/lorabooth" "$program"
  "$tools/bin/patchelf" --force-rpath --set-rpath '$ORIGIN/lib' "$folder/lorabooth"
  cp -L "$libtorch"/lib/{libtorch_cpu.so,libc10.so,libgomp.so.1} "$folder/lib"
  # PyPI's libtorch for the CPU asks for two libraries of CUDA, which need no driver.
  local needed
  needed=$(objdump -p "$folder/lib/libtorch_cpu.so" | sed -n 's/^ *NEEDED *\(libcu.*\)/\1/p')
  for library in $needed; do cp -L "$libtorch/../nvidia/cu13/lib/$library" "$folder/lib"; done
  cp "$work"/licences/* "$folder/licences"
  write_libtorch_licences "$folder/licences"
  cp docs/install.md "$folder/INSTALL.md"
  chmod -R u=rwX,go=rX "$folder"
  tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - "$name" |
    "$tools/bin/python" -c 'import sys, zstandard as z; z.ZstdCompressor(level=int(sys.argv[1]), threads=-1).copy_stream(sys.stdin.buffer, sys.stdout.buffer)' "$level" > "$work/$name.tar.zst"
  mv "$work/$name.tar.zst" "$out"
}

make_wheel() {
  local folder=$work/wheel tag installed
  cp -r packaging/wheel packaging/glibc_2_28.c "$work"
  cp "$work"/licences/* "$folder"
  installed=$folder/data/platlib/lorabooth/lorabooth-$version
  mkdir -p "$(dirname "$installed")"
  strip -o "$installed" "$program"
  "$tools/bin/patchelf" --remove-rpath "$installed"
  tag=$(platform_tag "$program")
  sed -i "s/^version = .*/version = \"$version\"/" "$folder/Cargo.toml" "$folder/pyproject.toml"
  (cd "$folder" && CARGO_TARGET_DIR=${LORABOOTH_LAUNCHER_TARGET:-$work/target} PATH="$tools/bin:$PATH" \
    "$tools/bin/maturin" build -q --release --auditwheel skip --compatibility "$tag" --out "$work/wheels")
  mv "$work"/wheels/*.whl "$out"
}

set_up_tools
write_licences
rm -f "$out"/lorabooth-*.tar.zst "$out"/lorabooth-*.whl "$out/SHA256SUMS"
make_tarball
make_wheel
cd "$out"
sha256sum lorabooth-* > SHA256SUMS
du -h --apparent-size lorabooth-*
