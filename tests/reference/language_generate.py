"""What transformers' `generate` writes for prompts, with the likeliest token each time (1 beam) or by beam search.

    language_generate.py OUT '{"job": DIR, "class": "LlamaForCausalLM", "prompts": [...], "beams": [1, 3], "max_new_tokens": 20}'

job      of language_job.py
draws    instead of beams: what `generate` draws with, such as {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "seed": 1}
OUT      {"1": [TEXT, ...], "3": [...]}: the new text of each prompt; of draws a list of such lists
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def main(out, job, prompts, max_new_tokens, beams=(), draws=(), **options):
    folder = Path(job) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = getattr(transformers, options["class"]).from_pretrained(folder, dtype=torch.float32).eval()
    is_encoder_decoder = network.config.is_encoder_decoder

    def written(prompt, seed=None, **how):
        ids = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([ids if is_encoder_decoder else ids[:-1]])   # without the end token, which is nothing to go on with
        if seed is not None:
            torch.manual_seed(seed)
        made = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=seed is not None, **how
        )[0]
        return tokenizer.decode(made[1:] if is_encoder_decoder else made[ids.shape[1]:], skip_special_tokens=True)

    texts = {str(count): [written(prompt, num_beams=count) for prompt in prompts] for count in beams}
    if draws:
        # None at all where 0 is given, be it transformers' default or not.
        texts = [[written(prompt, **{"top_k": 0} | how) for prompt in prompts] for how in draws]
    Path(out).write_text(json.dumps(texts))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
