"""Puts peft's LoRA on a language model, trains nothing, and writes what it computes and what its gradients are.

    language_lora.py OUT '{"model": DIR, "class": "GPT2LMHeadModel", "lora": {"r": 3, "lora_alpha": 5}}'

lora      arguments of LoraConfig; without target_modules peft's defaults for the architecture. A and B are both drawn, and a
          bias that is trained is moved.
dropout   the probabilities of the configuration hold (model.train()); the generator is seeded with 7 just before the forward
side      where texts are padded, "right" or "left"
adapter   a folder with an adapter of ours instead, or "" for the model alone: only OUT/outputs.safetensors is written, with its logits

OUT/adapter                 as peft saves it
OUT/outputs.safetensors     input_ids, attention_mask, [decoder_input_ids], labels, logits, loss, and gradient.NAME of each trained tensor,
                            NAME as in the adapter's file without base_model.model.
OUT/summary.json            {"trainable": …, "all": …}
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from complaints import refused
from language_forward import kind_of, padded, texts
from language_forward import classifier, encoder_decoder


def batch_of(network, generator, side, length=9):
    """Inputs of a forward, padded on a side, and labels that leave padding out."""
    config = network.config
    ids, mask = padded(side, texts(config, length, generator), config.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if kind_of(network) is classifier:
        return inputs, torch.tensor([0, 1, 0])
    if kind_of(network) is encoder_decoder:
        labels = texts(config, length - 3, generator)
        start = torch.full((3, 1), config.decoder_start_token_id or 0)
        return inputs | {"decoder_input_ids": torch.cat([start, labels[:, :-1]], 1)}, labels
    return inputs, torch.where(mask == 1, ids, -100)


def loss_of(network, logits, labels):
    if kind_of(network) is not classifier and kind_of(network) is not encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1))


def name_in_file(name):
    name = name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", "")
    return name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def main(out, model, lora=None, dropout=False, side="right", adapter=None, **options):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    network = getattr(transformers, options["class"]).from_pretrained(model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(3)
    inputs, labels = batch_of(network, generator, side)
    if adapter is not None:
        with refused(), torch.no_grad():
            network = PeftModel.from_pretrained(network, adapter).eval() if adapter else network
            logits = network(**inputs).logits
        save_file(inputs | {"logits": logits.contiguous()}, out / "outputs.safetensors")
        return
    torch.manual_seed(0)
    peft_model = get_peft_model(network, LoraConfig(init_lora_weights=False, **lora))
    trained = {name: tensor for name, tensor in peft_model.named_parameters() if tensor.requires_grad}
    with torch.no_grad():
        for name, tensor in trained.items():
            if "lora_" not in name:
                tensor.add_(0.1)
    peft_model.save_pretrained(out / "adapter")
    peft_model.train(dropout)
    torch.manual_seed(7)
    logits = peft_model(**inputs).logits
    loss = loss_of(network, logits, labels)
    loss.backward()
    gradients = {f"gradient.{name_in_file(name)}": tensor.grad.contiguous() for name, tensor in trained.items()}
    results = inputs | {"labels": labels, "logits": logits.detach().contiguous(), "loss": loss.detach()} | gradients
    save_file(results, out / "outputs.safetensors")
    trainable, everything = peft_model.get_nb_trainable_parameters()
    (out / "summary.json").write_text(json.dumps({"trainable": trainable, "all": everything}))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
