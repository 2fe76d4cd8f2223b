"""What several processes train together: their draws and batches replayed in one process, or accelerate's two processes.

    data_parallel.py OUT_DIR '{"ranks": 2, "dreambooth": {...}}'              in one process: Options of dreambooth_loop.py
    torchrun --nproc-per-node 2 data_parallel.py OUT_DIR OPTIONS              with accelerate, the same
    torchrun ... data_parallel.py OUT_DIR '{"language": {...}}'               options of language_loop.py: job, class, task, adapter, ...

Rank k's micro-step s draws from the generator seeded with `seed + s + 1_000_003 * k`; batches are dealt by accelerate. Writes
OUT_DIR/losses.json, {"losses": [...], "grad_norms": [...]}, means over the ranks, and the adapter as peft saves it: OUT_DIR/unet,
OUT_DIR/text_encoder and SDXL's OUT_DIR/text_encoder_2, or OUT_DIR/adapter.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader

import dreambooth_loop
import language_loop

STRIDE = 1_000_003


def dealt(trainer, options, rank, ranks):
    """(is the epoch's last, places) of one rank, without end."""
    places, epoch = max(len(folder) for folder in trainer.folders), 0
    while True:
        order = torch.randperm(places, generator=torch.Generator().manual_seed(options.seed + epoch)).tolist()
        whole = [order[i:i + options.train_batch_size] for i in range(0, places, options.train_batch_size)]
        sampler = torch.utils.data.BatchSampler(order, options.train_batch_size, drop_last=False)
        own = list(BatchSamplerShard(sampler, ranks, rank)) if ranks > 1 else whole
        for i, part in enumerate(own):
            yield i + 1 == len(own), part
        epoch += 1


def replayed(out, options, ranks):
    """All ranks in one process: gradients add up, divided by their number."""
    options = dreambooth_loop.Options(**options)
    trainer = dreambooth_loop.Trainer(options)
    streams = [dealt(trainer, options, rank, ranks) for rank in range(ranks)]
    losses, norms, number, micro_losses, micro_steps = [], [], 0, [], 0
    while len(losses) < options.max_train_steps:
        for rank, stream in enumerate(streams):
            last, places = next(stream)
            micro_losses.append(trainer.micro_step(number + STRIDE * rank, places)["loss"])
        number, micro_steps = number + 1, micro_steps + 1
        if not last and micro_steps < options.gradient_accumulation_steps:
            continue
        for parameter in trainer.parameters:
            if parameter.grad is not None:  # SDXL does not use the last layer of its first text encoder
                parameter.grad.div_(ranks)
        norms.append(trainer.optimizer_step()["grad_norm"])
        losses.append(sum(micro_losses) / len(micro_losses))
        micro_losses, micro_steps = [], 0
    save(out, trainer.unet, trainer.encoders, losses, norms)


def accelerated(out, options):
    """This process of accelerate's, which averages gradients through DistributedDataParallel."""
    accelerator = Accelerator(cpu=True)
    options = dreambooth_loop.Options(**options)
    trainer = dreambooth_loop.Trainer(options)
    unet, text_encoder = trainer.unet, trainer.encoders["text_encoder"]
    trainer.unet, trainer.encoders["text_encoder"], trainer.optimizer = accelerator.prepare(unet, text_encoder, trainer.optimizer)
    stream = dealt(trainer, options, accelerator.process_index, accelerator.num_processes)
    losses, norms = [], []
    for number in range(options.max_train_steps):
        loss = trainer.micro_step(number + STRIDE * accelerator.process_index, next(stream)[1])["loss"]
        norms.append(trainer.optimizer_step()["grad_norm"])
        losses.append(accelerator.gather(torch.tensor([loss])).mean().item())
    if accelerator.is_main_process:
        save(out, unet, {"text_encoder": text_encoder}, losses, norms)
    leave(accelerator)


def leave(accelerator):
    """Ends this process once all ranks are here: one that frees its DistributedDataParallel when another is gone waits for minutes."""
    accelerator.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)


def save(out, unet, text_encoders, losses, norms):
    for part, network in {"unet": unet, **text_encoders}.items():
        network.save_pretrained(out / part)
    (out / "losses.json").write_text(json.dumps({"losses": losses, "grad_norms": norms}))


def accelerated_language(out, job, task, steps, learning_rate, batch, adapter, label, **options):
    accelerator, job = Accelerator(cpu=True), Path(job)
    train = language_loop.rows(job / "train.jsonl")
    classes = sorted({row["label"] for row in train if "label" in row})
    tokenizer = language_loop.transformers.AutoTokenizer.from_pretrained(job / "model")
    labels = {"num_labels": len(classes)} if task == "seq-cls" else {}
    base = getattr(language_loop.transformers, options["class"]).from_pretrained(job / "model", dtype=torch.float32, **labels)
    peft_model = language_loop.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    params = [param for param in peft_model.parameters() if param.requires_grad]
    collate = lambda records: language_loop.batch_of(tokenizer, records, task, label, classes)
    network, optimizer, batches = accelerator.prepare(
        peft_model, torch.optim.AdamW(params, lr=learning_rate, weight_decay=1e-2), DataLoader(train, batch_size=batch, collate_fn=collate))
    network.train()
    losses, norms = [], []
    while len(losses) < steps:
        for inputs in batches:
            loss = network(**inputs).loss
            accelerator.backward(loss)
            norms.append(float(accelerator.clip_grad_norm_(params, 1.0)))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(accelerator.gather(loss.detach().reshape(1)).mean().item())
            if len(losses) == steps:
                break
    if accelerator.is_main_process:
        peft_model.save_pretrained(out / "adapter")
        (out / "losses.json").write_text(json.dumps({"losses": losses, "grad_norms": norms}))
    leave(accelerator)


def main(out, ranks=1, dreambooth=None, language=None):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if language:
        accelerated_language(out, **language)
    elif "RANK" in os.environ:
        accelerated(out, dreambooth)
    else:
        replayed(out, dreambooth, ranks)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
