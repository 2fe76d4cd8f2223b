"""Compiles lorabooth's CUDA kernels as it does itself, by NVRTC, which needs no device.

    nvrtc.py OUT '{"library": "libnvrtc.so.13", "sources": "src/libtorch"}'

OUT   JSON: for each file with kernels its log, empty where they could be compiled
"""

import ctypes
import json
import re
import sys
from pathlib import Path

OPTIONS = [b"--gpu-architecture=compute_75", b"--std=c++17"]


def compiled(library, source):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"lorabooth.cu", 0, None, None) == 0
    failed = library.nvrtcCompileProgram(program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    return log.value.decode() if failed else ""


def main(out, library, sources):
    # Its other half, which it looks for by name.
    for part in Path(library).parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(part), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(library)
    texts = {path.name: re.findall(r'R"\((.*?)\)"', path.read_text(), re.DOTALL) for path in Path(sources).glob("*.cpp")}
    prelude = texts.pop("cuda_kernels.cpp")[0]
    # A table that its source begins with comes from a macro.
    code = re.search(r"#define NF4_CODE (.*?[^\\])\n", (Path(sources) / "nf4.cpp").read_text(), re.DOTALL)[1].replace("\\\n", "")
    prelude += f"__device__ const float kCode[16] = {{{code}}};\n"
    Path(out).write_text(json.dumps({name: compiled(library, prelude + found[0]) for name, found in texts.items() if found}))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
