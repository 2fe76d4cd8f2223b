"""GGUF files of every encoding that is read, of every type of metadata, and of a LLaMA and a Qwen2; what gguf and transformers
read in them.

usage: gguf_files.py OUT
OUT/encodings.gguf, OUT/encodings.safetensors: the dequantised tensors (float32)
OUT/refused-IQ4_NL.gguf, …: a tensor in an encoding that is not read
OUT/metadata.gguf, OUT/metadata.json: {key: [type, value]}
OUT/<model>.gguf, OUT/<model>.safetensors, OUT/<model>.json: weights by transformers' keys, and the configuration
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Encoding
from gguf import GGUFValueType as Type
from gguf import quants
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

MADE = [Encoding.F32, Encoding.F16, Encoding.BF16, Encoding.Q4_0, Encoding.Q4_1, Encoding.Q5_0, Encoding.Q5_1, Encoding.Q8_0]
# gguf reads these and does not make them. The bytes at which their scales lie.
K_QUANTS = {Encoding.Q2_K: (80, 82), Encoding.Q3_K: (108,), Encoding.Q4_K: (0, 2), Encoding.Q5_K: (0, 2), Encoding.Q6_K: (208,)}
SCALES = {Encoding.Q4_0: (0,), Encoding.Q4_1: (0, 2), Encoding.Q5_0: (0,), Encoding.Q5_1: (0, 2), Encoding.Q8_0: (0,), **K_QUANTS}


def random_blocks(draw, encoding, shape):
    """Any bytes, but scales that are finite: quantisation reaches only some of them."""
    block, size = gguf.GGML_QUANT_SIZES[encoding]
    count = int(np.prod(shape)) // block
    blocks = draw.integers(0, 256, (count, size), dtype=np.uint8)
    if encoding in (Encoding.F32, Encoding.F16, Encoding.BF16):
        values = draw.standard_normal(shape).astype(np.float32) * 10.0 ** draw.integers(-6, 4, shape).astype(np.float32)
        return quants.quantize(values.astype(np.float32), encoding)
    for at in SCALES[encoding]:
        halves = draw.integers(0, 1 << 16, count).astype(np.uint16)
        halves = np.where((halves & 0x7C00) == 0x7C00, halves & 0x83FF, halves).astype("<u2")  # infinite: made subnormal
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(count, 2)
    return blocks.reshape(*shape[:-1], -1)


def add(writer, name, data, encoding):
    writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=encoding)


def dequantised(data, encoding):
    return torch.from_numpy(np.ascontiguousarray(quants.dequantize(data, encoding).astype(np.float32)))


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encodings(out):
    draw, expected = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(out / "encodings.gguf", "llama")
    for encoding in [*MADE, *K_QUANTS]:
        # The last is longer than what is decoded at once.
        times = 8 if encoding in K_QUANTS else 1
        for index, shape in enumerate([(64 * times,), (5, 96 * times), (2, 3, 4, 32 * times), (1300, 1024)]):
            name = f"{encoding.name}.{index}"
            data = random_blocks(draw, encoding, shape)
            add(writer, name, data, encoding)
            expected[name] = dequantised(data, encoding).reshape(shape)
        if encoding in K_QUANTS:
            continue
        values = draw.standard_normal((7, 64)).astype(np.float32)
        data = quants.quantize(values, encoding)
        add(writer, f"{encoding.name}.quantised", data, encoding)
        expected[f"{encoding.name}.quantised"] = dequantised(data, encoding).reshape(7, 64)
    write(writer)
    save_file(expected, out / "encodings.safetensors")
    for encoding in (Encoding.IQ4_NL, Encoding.IQ2_XXS, Encoding.TQ1_0):
        block, size = gguf.GGML_QUANT_SIZES[encoding]
        writer = gguf.GGUFWriter(out / f"refused-{encoding.name}.gguf", "llama")
        add(writer, "w", np.zeros((2, size), dtype=np.uint8), encoding)
        write(writer)


def metadata(out):
    values = {
        "u8": (Type.UINT8, 255), "i8": (Type.INT8, -128), "u16": (Type.UINT16, 65535), "i16": (Type.INT16, -32768),
        "u32": (Type.UINT32, 2**32 - 1), "i32": (Type.INT32, -(2**31)), "u64": (Type.UINT64, 2**64 - 1),
        "i64": (Type.INT64, -(2**63)), "f32": (Type.FLOAT32, float(np.float32(1e-5))), "f64": (Type.FLOAT64, 1e-300),
        "yes": (Type.BOOL, True), "no": (Type.BOOL, False), "text": (Type.STRING, "naïve 🐶\n\0"), "empty": (Type.STRING, ""),
        "ints": (Type.ARRAY, [1, -2, 3]), "floats": (Type.ARRAY, [0.5, -0.25]), "flags": (Type.ARRAY, [True, False]),
        "texts": (Type.ARRAY, ["a", "", "犬"]), "nested": (Type.ARRAY, [[1, 2], [3]]),
    }
    writer = gguf.GGUFWriter(out / "metadata.gguf", "test")
    for key, (kind, value) in values.items():
        writer.add_key_value(key, value, kind)
    writer.add_custom_alignment(64)
    writer.add_tensor("w", np.arange(12, dtype=np.float32).reshape(3, 4))
    write(writer)
    (out / "metadata.json").write_text(json.dumps({key: [kind.name, value] for key, (kind, value) in values.items()}))


def rotary_order(weight, heads):
    """As llama.cpp's converter reorders the rows of queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def pairs_order(weight, heads):
    """What undoes it."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).swapaxes(2, 1).reshape(weight.shape)


def language_model(out, name, model, encoding, permuted, rope_factors=None):
    """Norms and biases stay float32, as llama.cpp writes them."""
    config, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(out / f"{name}.gguf", arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    letters = [*map(chr, range(33, 33 + config.vocab_size - 4)), "!\""]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters])
    writer.add_token_types([3, 3, 3, *[1] * len(letters)])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if rope_factors is not None:
        add(writer, "rope_freqs.weight", rope_factors, Encoding.F32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if arch == "llama" else gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    expected = {}
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight, heads = weight.float().numpy(), 0
        if permuted and ".q_proj." in key:
            heads = config.num_attention_heads
        elif permuted and ".k_proj." in key:
            heads = config.num_key_value_heads
        stored = rotary_order(weight, heads) if heads else weight
        kind = encoding if weight.ndim > 1 else Encoding.F32
        data = quants.quantize(stored, kind)
        add(writer, names.get_name(key, try_suffixes=(".weight", ".bias")), data, kind)
        values = quants.dequantize(data, kind).astype(np.float32).reshape(weight.shape)
        expected[key] = torch.from_numpy(np.ascontiguousarray(pairs_order(values, heads) if heads else values))
        if kind == Encoding.F32:
            assert np.array_equal(expected[key].numpy(), weight), key
    write(writer)
    read = AutoModelForCausalLM.from_pretrained(out, gguf_file=f"{name}.gguf", dtype=torch.float32).state_dict()
    # It sets no `attention_bias` in the configuration, and so leaves out a LLaMA's biases.
    assert all(torch.equal(read[key], values) for key, values in expected.items() if key in read)
    assert arch != "llama" or all(key in read for key in expected if not key.endswith(".bias"))
    save_file(expected, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps({**config.to_dict(), "architectures": [type(model).__name__]}))


def language_models(out):
    torch.manual_seed(0)
    sizes = dict(vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=16384, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
    rope = {"rope_type": "default", "rope_theta": 50000.0}
    biased = dict(rope_parameters=rope, attention_bias=True, mlp_bias=True)
    llama = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False, **biased))
    for weight in llama.parameters():
        torch.nn.init.normal_(weight)
    for encoding in MADE:
        language_model(out, f"llama-{encoding.name}", llama, encoding, permuted=True)
    scaled = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}
    tied = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, rope_parameters=scaled))
    plain = 500000.0 ** -(torch.arange(0, 16, 2).double() / 16)
    factors = (plain / tied.model.rotary_emb.inv_freq.double()).float().numpy()
    language_model(out, "llama-3", tied, Encoding.Q8_0, permuted=True, rope_factors=factors)
    qwen2 = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True, rope_parameters=rope))
    for weight in qwen2.parameters():
        torch.nn.init.normal_(weight)
    language_model(out, "qwen2", qwen2, Encoding.Q4_0, permuted=False)


out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
encodings(out)
metadata(out)
language_models(out)
