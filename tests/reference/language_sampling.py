"""The probabilities that transformers draws the next token by.

    language_sampling.py OUT.safetensors '{"options": [{"temperature": 0.7, "top_k": 5, "top_p": 0.8}, ...], "vocabulary": 50}'

OUT  logits [n, v]: random ones, a row for each of the options; probabilities [n, v]: after what `generate` does to them with these
"""

import json
import sys

import torch
import transformers
from safetensors.torch import save_file


def main(out, options, vocabulary):
    config = transformers.GPT2Config(vocab_size=vocabulary, n_embd=4, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1)
    network = transformers.GPT2LMHeadModel(config)
    logits = 3 * torch.randn(len(options), vocabulary, generator=torch.Generator().manual_seed(0))
    rows = []
    for row, how in zip(logits, options):
        generation = transformers.GenerationConfig(do_sample=True, **{"top_k": 0} | how)
        processors = network._get_logits_processor(
            generation, input_ids_seq_length=1, encoder_input_ids=None, prefix_allowed_tokens_fn=None,
            logits_processor=transformers.LogitsProcessorList(),
        )
        rows.append(processors(torch.zeros(1, 1, dtype=torch.int64), row.unsqueeze(0)).softmax(-1)[0])
    save_file({"logits": logits, "probabilities": torch.stack(rows)}, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
