"""Language models' tokenizers in every layout, with transformers' ids and texts; tables as Python's csv and json read them; batches
as transformers' collators make them.

usage: language_data.py OUT
OUT/<name>/ or OUT/<name>.gguf: tokenizers; OUT/texts.json: the texts; OUT/tokenized.json: {name: what transformers says}
OUT/table.csv, .tsv, .jsonl: tables; OUT/tables.json: their rows
OUT/batches.json: ids, masks and labels of batches over OUT/quotes.jsonl
"""

import csv
import json
import pathlib
import random
import sys

import gguf
import torch
from odd_texts import odd_texts
from tokenizers import (
    AddedToken, ByteLevelBPETokenizer, BertWordPieceTokenizer, SentencePieceUnigramTokenizer, Tokenizer, decoders, models,
    pre_tokenizers, processors, trainers,
)
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithPadding, PreTrainedTokenizerFast

CUT = 12
OPT = {"errors": "replace", "unk_token": "</s>", "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "add_prefix_space": False,
       "add_bos_token": True, "special_tokens_map_file": None, "tokenizer_class": "GPT2Tokenizer"}


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def folder(out, name, save, model_type, tokenizer_config=None, **config):
    path = out / name
    path.mkdir()
    save(path)
    write_json(path / "config.json", {"model_type": model_type, **config})
    write_json(path / "tokenizer_config.json", tokenizer_config or {})
    return AutoTokenizer.from_pretrained(path)


def byte_level(samples, special):
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(samples, vocab_size=900, special_tokens=special, show_progress=False)
    return tokenizer


def word_piece(samples, lowercase):
    tokenizer = BertWordPieceTokenizer(lowercase=lowercase)
    tokenizer.train_from_iterator(samples, vocab_size=900, show_progress=False)
    return tokenizer


def t5_like(samples):
    tokenizer = SentencePieceUnigramTokenizer()
    # A piece of the same text would stand beside a special token.
    samples = [text for text in samples if "</s>" not in text and "<unk>" not in text]
    tokenizer.train_from_iterator(samples, vocab_size=700, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
                                  show_progress=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken("<extra_id_0>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   padding_side="left", clean_up_tokenization_spaces=True)


def folders(out, samples):
    roberta = byte_level(samples, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).save_model
    found = {
        "gpt2": folder(out, "gpt2", lambda path: byte_level(samples, ["<|endoftext|>"]).save_model(str(path)), "gpt2",
                       {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}),
        "gpt2_spaced": folder(out, "gpt2_spaced", lambda path: byte_level(samples, ["<|endoftext|>"]).save_model(str(path)), "gpt2",
                              {"add_prefix_space": True, "add_eos_token": True}),
        "opt": folder(out, "opt", lambda path: roberta(str(path)), "opt", OPT),
        "roberta": folder(out, "roberta", lambda path: roberta(str(path)), "roberta"),
        "bert": folder(out, "bert", lambda path: word_piece(samples, True).save_model(str(path)), "bert"),
        "bert_cased": folder(out, "bert_cased", lambda path: word_piece(samples, False).save_model(str(path)), "bert",
                             {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}),
        "t5": folder(out, "t5", t5_like(samples).save_pretrained, "t5", decoder_start_token_id=0),
    }
    # The class of the file is not one that transformers has for T5.
    t5_like(samples).save_pretrained(out / "t5")
    found["t5"] = PreTrainedTokenizerFast.from_pretrained(out / "t5")
    for name in ["gpt2", "opt", "roberta", "bert", "bert_cased"]:
        found[name].save_pretrained(out / f"{name}_saved")
        found[f"{name}_saved"] = AutoTokenizer.from_pretrained(out / f"{name}_saved")
    # As sentence-transformers' models come: with a length that every text is cut and filled up to.
    limited = AutoTokenizer.from_pretrained(out / "bert_saved")
    limited.backend_tokenizer.enable_truncation(20)
    limited.backend_tokenizer.enable_padding(length=20)
    limited.backend_tokenizer.save(str(out / "bert_saved" / "tokenizer.json"))
    return found


def write_gguf(out, name, model, pre, tokens, types, merges=None, scores=None, ids=(), **flags):
    writer = gguf.GGUFWriter(out / f"{name}.gguf", "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for role, token_id in ids:
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", token_id)
    for flag, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{flag}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(out, gguf_file=f"{name}.gguf")


def gguf_files(out, samples):
    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    whole = json.loads(byte_level(samples, special).to_str())["model"]
    tokens = sorted(whole["vocab"], key=whole["vocab"].get)
    merges = [" ".join(merge) for merge in whole["merges"]]
    control = [3 if token in special else 1 for token in tokens]
    ids, found = [("bos", 1), ("eos", 2), ("unknown", 0)], {}
    for name, pre, flags in [("gguf_gpt2", "gpt-2", {}), ("gguf_smollm", "smollm", {"add_bos_token": False, "add_space_prefix": False}),
                             ("gguf_llama3", "llama-bpe", {"add_bos_token": True}), ("gguf_qwen2", "qwen2", {"add_eos_token": True})]:
        # A token that a user of llama.cpp defined is found in texts as it is, and is not special.
        found[name] = write_gguf(out, name, "gpt2", pre, [*tokens, "<|tool|>"], [*control, 4], merges=merges, ids=ids, **flags)
    # transformers cuts SmolLM's words as GPT-2's; its own tokenizer.json has this.
    found["gguf_smollm"].backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    # A SentencePiece vocabulary: bytes, merged tokens by falling score, characters.
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.train_from_iterator(samples, trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False))
    merged = [token for token, _ in sorted(pieces.get_vocab().items(), key=lambda item: item[1]) if token not in special]
    merged.sort(key=len)
    merged = [token for token in merged if len(token) > 1] + [token for token in merged if len(token) == 1]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *merged]
    types = [2, 3, 3, 3, *[6] * 256, *[1] * len(merged)]
    scores = [*[0.0] * 260, *(-float(rank // 2) for rank in range(len(merged)))]
    found["gguf_spm"] = write_gguf(out, "gguf_spm", "llama", None, tokens, types, scores=scores, ids=ids)
    found["gguf_spm_bare"] = write_gguf(out, "gguf_spm_bare", "llama", None, tokens, types, scores=scores, ids=ids, add_bos_token=False,
                                        add_eos_token=True, add_space_prefix=False)
    # transformers takes no notice of `add_space_prefix`; LlamaTokenizer with add_prefix_space=False has this.
    bare = found["gguf_spm_bare"].backend_tokenizer
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    bare.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return found


def tokenized(tokenizer, samples):
    ids = [tokenizer(text)["input_ids"] for text in samples]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "ids": ids,
        "cut": [tokenizer(text, truncation=True, max_length=CUT)["input_ids"] for text in samples],
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in samples],
        "decoded": [tokenizer.decode(text, skip_special_tokens=True) for text in ids],
        "special": {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": pad, "unk": tokenizer.unk_token_id},
        "size": len(tokenizer),
        "pads_left": tokenizer.padding_side == "left",
    }


def tables(out):
    draw = random.Random(0)
    pieces = ["a", "b c", ",", "\t", '"', '""', "\n", "\r\n", "é", "犬", "🐶", "'", " ", "", ";", "1.5", "x" * 50]
    names = ["Tweet text", 'na"me', "label"]
    rows = [{name: "".join(draw.choices(pieces, k=draw.randint(0, 6))) for name in names} for _ in range(200)]
    found = {"rows": rows}
    for name, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        with open(out / f"table.{name}", "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, names, dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)
        with open(out / f"table.{name}", newline="", encoding="utf-8-sig") as file:
            assert list(csv.DictReader(file, dialect=dialect)) == rows
        with open(out / f"table.{name}", "rb") as file:
            data = file.read()
        # As other programs write it.
        (out / f"unix.{name}").write_bytes(data[3:].replace(b'"\r\n', b'"\n'))
        with open(out / f"unix.{name}", newline="", encoding="utf-8") as file:
            found[f"unix.{name}"] = list(csv.DictReader(file, dialect=dialect))
    with open(out / "table.jsonl", "w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            row = {**row, "number": index * 0.5, "flag": index % 2 == 0, "nested": [1], "null": None}
            file.write(json.dumps(row, ensure_ascii=index % 2 == 0) + ("\n\n" if index % 7 == 0 else "\r\n"))
    write_json(out / "tables.json", found)


def batches(out, tokenizers, samples):
    """Four batches of an epoch for each task, with texts that are cut."""
    rows = [{"text": text, "label": random.Random(index).choice(["good", "bad", "so so"])} for index, text in enumerate(samples)
            if text.strip()][:23]
    with open(out / "quotes.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(7 + 2)).tolist()
    chunks, length, found = [order[at : at + 6] for at in range(0, len(order), 6)], 24, {"order": order}
    for name in ["gpt2", "opt", "t5"]:
        tokenizer = tokenizers[name]
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        prompts = [f"Tweet text : {row['text']} Label : " for row in rows]

        def ended(text):
            ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
            return (ids if ids[-1:] == [tokenizer.eos_token_id] and len(ids) > 1 else [*ids, tokenizer.eos_token_id])[:length]

        collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
        if name == "t5":
            labels = [tokenizer(row["label"])["input_ids"] for row in rows]
            features = [{"input_ids": tokenizer(text, truncation=True, max_length=length)["input_ids"], "labels": label}
                        for text, label in zip(prompts, labels)]
        else:
            features = [{"input_ids": ended(text), "labels": ended(text)} for text in prompts]
        found[name] = [{key: value.tolist() for key, value in collator([dict(features[place]) for place in chunk]).items()}
                       for chunk in chunks]
        if name != "t5":
            # PEFT's peft_prompt_tuning_clm.ipynb: what is to be written follows the prompt, and only it is learnt.
            joined = []
            for text, row in zip(prompts, rows):
                prompt = tokenizer(text, truncation=True, max_length=length)["input_ids"]
                label = tokenizer(row["label"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
                joined.append({"input_ids": (prompt + label)[:length], "labels": ([-100] * len(prompt) + label)[:length]})
            joined = [feature for feature in joined if set(feature["labels"]) != {-100}]
            found[f"{name}_answers"] = {"examples": len(joined), "batch": {
                key: value.tolist() for key, value in collator([dict(feature) for feature in joined[:5]]).items()}}
    classes, tokenizer = ["bad", "good", "so so"], tokenizers["bert"]
    features = [{**tokenizer(row["text"], truncation=True, max_length=length), "labels": classes.index(row["label"])} for row in rows]
    found["bert"] = [{key: value.tolist() for key, value in DataCollatorWithPadding(tokenizer)([features[place] for place in chunk]).items()}
                     for chunk in chunks]
    write_json(out / "batches.json", found)


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    samples = odd_texts("<s>", "</s>", 400) + ["<|endoftext|> a", "[MASK] b [SEP]", "a <mask> b", "x <|tool|> y", "<extra_id_0> c", "it ' s , no n't ."]
    trained_on = [text for text in samples if len(text) < 200] * 3
    tokenizers = {**folders(out, trained_on), **gguf_files(out, trained_on)}
    write_json(out / "texts.json", samples)
    write_json(out / "tokenized.json", {name: tokenized(tokenizer, samples) for name, tokenizer in tokenizers.items()})
    tables(out)
    batches(out, tokenizers, samples)


main(pathlib.Path(sys.argv[1]))
