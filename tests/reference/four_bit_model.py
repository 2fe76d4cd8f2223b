"""A language model whose weights bitsandbytes has quantised, as transformers saves it: the model of a job, beside its records.

    four_bit_model.py OUT '{"job": DIR, "class": "LlamaForCausalLM", "double": true, "quant_type": "nf4", "dtype": "float32"}'

job      of language_job.py
storage  the dtype of the tensors that hold the codes ("uint8")
OUT      model and records as those of language_job.py
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers


def main(out, job, double, quant_type="nf4", dtype="float32", storage="uint8", **options):
    out, job = Path(out), Path(job)
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=getattr(torch, dtype), bnb_4bit_quant_storage=getattr(torch, storage))
    kind = getattr(transformers, options["class"])
    network = kind.from_pretrained(job / "model", dtype=getattr(torch, dtype), quantization_config=how, device_map="cpu")
    network.save_pretrained(out / "model")
    transformers.AutoTokenizer.from_pretrained(job / "model").save_pretrained(out / "model")
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(job / name, out / name)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
