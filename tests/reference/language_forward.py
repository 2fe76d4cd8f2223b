"""Writes what a language model computes, inputs beside outputs, as one safetensors file.

    language_forward.py OUT.safetensors '{"model": DIR, "class": "GPT2LMHeadModel"}'

model   a folder that transformers saved; class: the transformers class that reads it
length  of the texts, 11
dtype   that all is computed in, "float32"; outputs are written as float32

A case is a batch of 3 texts: "plain" without a mask, "right" and "left" padded to the longest.
CASE.input_ids, CASE.attention_mask [3, t] int64    CASE.position_ids: of "left", counted from each text's first token
decoder: CASE.logits [3, t, v]   "left" with positions of the tokens: placed.logits
         from embeddings in place of ids: embedded.embeddings [3, t, w], embedded.logits
encoder-decoder: CASE.decoder_input_ids [3, u]  CASE.encoded [3, t, d]  CASE.logits [3, u, v]
classifier: CASE.token_type_ids [3, t] where there are types  CASE.logits [3, labels]
"""

import json
import sys

import torch
import transformers
from safetensors.torch import save_file

LENGTHS = {"plain": None, "right": [0, 4, 9], "left": [0, 4, 9]}


def texts(config, length, generator):
    """Token ids, none of which stands for padding."""
    ids = torch.randint(3, config.vocab_size, (3, length), generator=generator)
    return torch.where(ids == config.pad_token_id, 3, ids) if config.pad_token_id is not None else ids


def padded(case, ids, pad_token_id):
    """The ids with some of them at one side taken by padding, and the mask of the others."""
    mask = torch.ones_like(ids)
    for row, count in enumerate(LENGTHS[case] or []):
        count = min(count, ids.shape[1] - 2)
        if case == "right":
            mask[row, ids.shape[1] - count :] = 0
        else:
            mask[row, :count] = 0
    return torch.where(mask == 1, ids, pad_token_id or 0), mask


def decoder(model, length, generator):
    out = {}
    for case in LENGTHS:
        ids, mask = padded(case, texts(model.config, length, generator), model.config.pad_token_id)
        given = {} if case == "plain" else {"attention_mask": mask}
        out |= {f"{case}.input_ids": ids, f"{case}.attention_mask": mask, f"{case}.logits": model(ids, use_cache=False, **given).logits}
        if case == "left" and model.config.model_type != "bloom":
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            placed = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            out |= {"left.position_ids": positions, "placed.logits": placed}
    embeddings = model.get_input_embeddings()(out["left.input_ids"]) + 0.1
    embedded = model(inputs_embeds=embeddings, attention_mask=out["left.attention_mask"], use_cache=False).logits
    return out | {"embedded.embeddings": embeddings, "embedded.logits": embedded}


def encoder_decoder(model, length, generator):
    out = {}
    for case in LENGTHS:
        ids, mask = padded(case, texts(model.config, length, generator), model.config.pad_token_id)
        start = torch.full((3, 1), model.config.decoder_start_token_id or 0)
        written = torch.cat([start, texts(model.config, length - 4, generator)], 1)
        encoded = model.get_encoder()(ids, attention_mask=mask).last_hidden_state
        logits = model(ids, attention_mask=mask, decoder_input_ids=written, use_cache=False).logits
        out |= {f"{case}.input_ids": ids, f"{case}.attention_mask": mask, f"{case}.decoder_input_ids": written}
        out |= {f"{case}.encoded": encoded, f"{case}.logits": logits}
    return out


def classifier(model, length, generator):
    out = {}
    for case in LENGTHS:
        ids, mask = padded(case, texts(model.config, length, generator), model.config.pad_token_id)
        count = getattr(model.config, "type_vocab_size", None)
        types = {"token_type_ids": torch.randint(0, count, ids.shape, generator=generator)} if count else {}
        logits = model(ids, attention_mask=mask, **types).logits
        out |= {f"{case}.input_ids": ids, f"{case}.attention_mask": mask, f"{case}.logits": logits}
        out |= {f"{case}.{name}": tensor for name, tensor in types.items()}
    untyped = model(out["right.input_ids"], attention_mask=out["right.attention_mask"]).logits
    return out | {"untyped.logits": untyped}


def kind_of(model):
    if model.config.is_encoder_decoder:
        return encoder_decoder
    return classifier if "SequenceClassification" in type(model).__name__ else decoder


def main(out, model, length=11, dtype="float32", **options):
    network = getattr(transformers, options["class"]).from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        results = kind_of(network)(network, length, torch.Generator().manual_seed(0))
    written = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in results.items()}
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
