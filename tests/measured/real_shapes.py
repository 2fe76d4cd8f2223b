"""A language model of a published model's shapes with random weights, with a tokenizer and records to train on.

    real_shapes.py OUT NAME '{"words": 64, "answer": 3, "records": 8}'

NAME    one of SHAPES
words   of each record's text; answer: words of its label; none: the text itself is what is learnt
OUT/model, OUT/train.jsonl

Tensors are written one after another into shards, so that one of them is in memory at a time. They are pieces of one pool of random
numbers, from different places in it: drawing seven billion numbers would take longer than training on them.
"""

import json
import random
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SHAPES = {
    "opt-6.7b": ("OPTForCausalLM", "float16", dict(
        hidden_size=4096, num_hidden_layers=32, ffn_dim=16384, num_attention_heads=32, vocab_size=50272, word_embed_proj_dim=4096,
        pad_token_id=1, bos_token_id=2, eos_token_id=2)),
    "t0-3b": ("T5ForConditionalGeneration", "bfloat16", dict(
        d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_decoder_layers=24, num_heads=32, vocab_size=32128,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)),
    "gpt2": ("GPT2LMHeadModel", "float32", dict()),
}
SHARD = 2 << 30
POOL = 1 << 24
WORDS = [f"word{i}" for i in range(1000)]


def tensors_of(model_class, config):
    """Name and shape of what a checkpoint of the class holds: weights that are tied stand in it once."""
    with torch.device("meta"):
        model = model_class(config)
    return [(name, list(tensor.shape)) for name, tensor in model.named_parameters()]


def shards_of(tensors, width):
    shards = [[]]
    for name, shape in tensors:
        size = torch.Size(shape).numel() * width
        if shards[-1] and sum(s for _, _, s in shards[-1]) + size > SHARD:
            shards.append([])
        shards[-1].append((name, shape, size))
    return shards


class Pool:
    """Normal numbers in a dtype, by deviation."""

    def __init__(self, kind):
        self.numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).to(kind)
        self.generator = random.Random(0)
        self.deviation, self.scaled = None, None

    def pieces(self, name, shape):
        """The numbers of a tensor in pieces: 1 for the scales of norms, else with a deviation that keeps activations of one size."""
        count = torch.Size(shape).numel()
        if len(shape) == 1:
            yield torch.full(shape, float(name.endswith("weight")), dtype=self.numbers.dtype)
            return
        deviation = 0.02 if any(word in name for word in ("emb", "wte", "wpe", "shared")) else shape[-1] ** -0.5 * 0.5
        if deviation != self.deviation:
            self.deviation, self.scaled = deviation, self.numbers * deviation
        while count:
            start = self.generator.randrange(POOL // 2)
            piece = self.scaled[start:start + min(count, POOL // 2)]
            count -= len(piece)
            yield piece


def write_shard(path, shard, dtype, pool):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, size in shard:
        header[name] = {"dtype": {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, _ in shard:
            for piece in pool.pieces(name, shape):
                file.write(piece.contiguous().view(torch.uint8).numpy().data)


def write_model(folder, name):
    class_name, dtype, arguments = SHAPES[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**arguments, architectures=[class_name], dtype=dtype)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    kind = getattr(torch, dtype)
    pool = Pool(kind)
    shards = shards_of(tensors_of(model_class, config), kind.itemsize)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards):
        write_shard(folder / file, shard, dtype, pool)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, shard in zip(files, shards) for name, _, _ in shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return config


def write_tokenizer(folder, config):
    """Words of a small vocabulary, the special tokens where the configuration has them."""
    pad = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    eos = config.eos_token_id
    special = {"<pad>": pad, "</s>": eos} if pad != eos else {"</s>": eos}
    free = (i for i in range(3, config.vocab_size) if i not in special.values())
    vocabulary = special | {word: i for word, i in zip(["<unk>", *WORDS], free)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", eos)])
    pad_token = "<pad>" if pad != eos else "</s>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad_token, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def main(out, name, words=64, answer=0, records=8):
    """Texts of `words` tokens, of which the last is the end."""
    out = Path(out)
    config = write_model(out / "model", name)
    write_tokenizer(out / "model", config)
    generator = random.Random(0)

    def text(count):
        return " ".join(generator.choices(WORDS, k=count - 1))

    with open(out / "train.jsonl", "w") as file:
        for _ in range(records):
            file.write(json.dumps({"text": text(words)} | ({"label": text(answer)} if answer else {})) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
