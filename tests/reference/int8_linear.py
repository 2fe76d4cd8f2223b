"""A linear layer in bitsandbytes' LLM.int8() on the CPU.

    int8_linear.py OUT.safetensors '{"rows": 20, "inputs": 64, "outputs": 48, "outliers": [5, 17], "threshold": 6.0}'

outliers  columns of the input that are 20 times larger

weight, xs, bias      what goes in (float32 values that float16 holds)
codes, largest        bitsandbytes' int8 codes and the largest absolute value of each row
ys                    what Linear8bitLt makes of xs
exact                 float64: xs by the weight that the codes stand for, plus bias
"""

import json
import sys

import bitsandbytes as bnb
import torch
from bitsandbytes import functional as F
from safetensors.torch import save_file


def main(out, rows, inputs, outputs, outliers, threshold):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).half().float()
    weight, bias, xs = draw(outputs, inputs), draw(outputs), draw(rows, inputs)
    xs[:, outliers] *= 20
    codes, largest, _ = F.int8_vectorwise_quant(weight.half())
    layer = bnb.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=threshold)
    layer.weight = bnb.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    layer.bias = torch.nn.Parameter(bias.half())
    with torch.no_grad():
        ys = layer.to("cpu")(xs.half()).float()
    dense = codes.double() * (largest.double() / 127).unsqueeze(1)
    exact = xs.double() @ dense.T + bias.double()
    tensors = dict(weight=weight, xs=xs, bias=bias, codes=codes.cpu(), largest=largest.float().cpu(), ys=ys, exact=exact)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
