"""A weight in bitsandbytes' NF4 on the CPU.

    nf4_weight.py OUT.safetensors '{"shape": [48, 40], "dtype": "bfloat16", "double": true}'

weight                          what goes in, in that dtype
packed, absmax                  bitsandbytes' codes and scales
nested_absmax, map, offset      of scales that are quantised: their own scales, what their codes stand for, and what is added
dense                           the weight that the codes stand for, in that dtype
"""

import json
import sys

import torch
from bitsandbytes import functional as F
from safetensors.torch import save_file


def main(out, shape, dtype, double):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
    weight[0] = 0
    weight = weight.to(getattr(torch, dtype))
    packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    tensors = dict(weight=weight, packed=packed, absmax=state.absmax, dense=F.dequantize_4bit(packed, state))
    if double:
        tensors |= dict(nested_absmax=state.state2.absmax, map=state.state2.code, offset=state.offset.reshape(1))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
