"""Trains peft's adapter on a language model as PEFT's examples do, and writes what `lorabooth train llm` is compared with.

    language_loop.py OUT '{"job": DIR, "class": ..., "task": "causal-lm", "adapter": DIR, "steps": 10, "learning_rate": 1e-3, "batch": 4}'

job      of language_job.py; its records are taken in their order, epoch after epoch
adapter  the adapter to start from
prompt   instead of one: the fields of a configuration of prompt learning, whose numbers are drawn
label    causal-lm: the label follows the text and is what is learnt; else the text itself is
device, dtype, gradient_checkpointing   cpu, float32, false
nf4      QLoRA: the base in NF4 with double quantisation, prepared by peft; without validation
beams    also the texts that `generate` writes with so many beams

OUT/losses.json  {"losses": [...], "validation_loss": ..., "answers": [...]}: answers are classes, or the text that greedy `generate` writes;
                 with beams {"beam_answers": [...]}; where the job has no validation.jsonl none of these.
                 seconds, first_step_seconds, peak_rss_mib and peak_device_mib as in dreambooth_loop.py
OUT/adapter      as peft saves it at the end
OUT/start        of a prompt: as peft saves it at the beginning, with its whole encoder beside it in prompt_encoder.safetensors
"""

import json
import resource
import sys
import time
from pathlib import Path

import psutil
import torch
import transformers
from peft import PeftModel, get_peft_config, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import save_file

NEW_TOKENS = 6


def rows(path):
    return [json.loads(line) for line in open(path)]


def filled(sequences, value):
    longest = max(map(len, sequences))
    return torch.tensor([sequence + [value] * (longest - len(sequence)) for sequence in sequences])


def prompt_of(tokenizer, row, task, label):
    ids = tokenizer(row["text"])["input_ids"]
    return ids[:-1] if task == "causal-lm" and label else ids   # the end token is the label's


def batch_of(tokenizer, records, task, label, classes):
    prompts = [prompt_of(tokenizer, row, task, label) for row in records]
    if task == "causal-lm":
        whole = [p + tokenizer(row["label"])["input_ids"] if label else p for p, row in zip(prompts, records)]
        labels = [[-100] * len(p) + w[len(p):] if label else w for p, w in zip(prompts, whole)]
        ids, labels = filled(whole, 0), filled(labels, -100)
    else:
        whole, ids = prompts, filled(prompts, 0)
        if task == "seq-cls":
            labels = torch.tensor([classes.index(row["label"]) for row in records])
        else:
            labels = filled([tokenizer(row["label"])["input_ids"] for row in records], -100)
    return {"input_ids": ids, "attention_mask": filled([[1] * len(w) for w in whole], 0), "labels": labels}


def with_prompt(base, fields, start):
    torch.manual_seed(0)
    network = get_peft_model(base, get_peft_config(fields))
    network.save_pretrained(start)
    encoder = network.prompt_encoder["default"].state_dict()
    if len(encoder) > 1:
        save_file({f"prompt_encoder.{name}": tensor for name, tensor in encoder.items()}, start / "prompt_encoder.safetensors")
    return network


def answer(network, tokenizer, row, task, label, classes, beams=1):
    ids = torch.tensor([prompt_of(tokenizer, row, task, label)])
    if task == "seq-cls":
        return classes[network(input_ids=ids).logits.argmax(-1).item()]
    made = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=beams)[0]
    return tokenizer.decode(made[1:] if task == "seq2seq-lm" else made[ids.shape[1]:], skip_special_tokens=True)


def main(out, job, task, steps, learning_rate, batch, adapter=None, prompt=None, label=False, beams=1, device="cpu", dtype="float32",
         gradient_checkpointing=False, nf4=False, **options):
    out, job = Path(out), Path(job)
    train = rows(job / "train.jsonl")
    classes = sorted({row["label"] for row in train if "label" in row})
    tokenizer = transformers.AutoTokenizer.from_pretrained(job / "model")
    labels = {"num_labels": len(classes)} if task == "seq-cls" else {}
    if nf4:
        labels["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype), llm_int8_skip_modules=["lm_head", "classifier", "score"])
    base = getattr(transformers, options["class"]).from_pretrained(job / "model", dtype=getattr(torch, dtype), **labels)
    if nf4:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=gradient_checkpointing)
    network = with_prompt(base, prompt, out / "start") if prompt else PeftModel.from_pretrained(base, adapter, is_trainable=True)
    network.train()
    if gradient_checkpointing:
        network.gradient_checkpointing_enable()
        network.enable_input_require_grads()
    params = [param for param in network.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=learning_rate, weight_decay=1e-2)
    losses, batches = [], [train[i:i + batch] for i in range(0, len(train), batch)]
    seconds, first_step_seconds = [], None
    for step in range(steps):
        started = time.perf_counter()
        inputs = batch_of(tokenizer, batches[step % len(batches)], task, label, classes)
        loss = network(**{name: tensor.to(device) for name, tensor in inputs.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
        first_step_seconds = first_step_seconds or time.time() - psutil.Process().create_time()
    network.save_pretrained(out / "adapter")
    result = {
        "losses": losses,
        "seconds": seconds,
        "first_step_seconds": first_step_seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_device_mib": torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None,
    }
    # bitsandbytes takes no layer of an odd size for evaluation on processors with units for bf16.
    if (job / "validation.jsonl").exists() and not nf4:
        result |= validated(network, tokenizer, rows(job / "validation.jsonl"), task, label, classes, beams)
    (out / "losses.json").write_text(json.dumps(result))


def validated(network, tokenizer, validation, task, label, classes, beams):
    network.eval()
    with torch.no_grad():
        loss = network(**batch_of(tokenizer, validation, task, label, classes)).loss.item()
        answered = validation if task != "causal-lm" or label else []
        answers = [answer(network, tokenizer, row, task, label, classes) for row in answered]
        beam_answers = [answer(network, tokenizer, row, task, label, classes, beams) for row in answered] if beams > 1 else []
    return {"validation_loss": loss, "answers": answers, "beam_answers": beam_answers}


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
