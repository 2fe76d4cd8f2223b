"""Makes trained-looking LoRA adapters with peft, in each file format, and what they compute.

    adapters.py OUT_DIR '{"model": DIR, "unet": {"r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_v"]}}'

model          a folder in the diffusers layout
unet, text_encoder, text_encoder_2   LoraConfig's fields (use_rslora, use_dora, rank_pattern, alpha_pattern, bias, modules_to_save, …; target_modules a
               list, a regular expression or "all-linear"); a part left out gets no adapter
seed           of the adapter's weights and of the inputs, 0
formats        any of "peft", "peft-transformers4", "diffusers", "diffusers-old", "kohya"; by default ["peft"]
outputs        whether to compute outputs.safetensors and merged.safetensors, true

Writes under OUT_DIR:
  peft/{unet,text_encoder}/   as PEFT saves them; peft-transformers4/: the text encoder's keys with `text_model.`
  diffusers/pytorch_lora_weights.safetensors       PEFT's keys and the configuration as metadata
  diffusers-old/pytorch_lora_weights.safetensors   `lora.down` and `lora.up`, the scale multiplied into `up`
  kohya/lora.safetensors      `lora_unet_…`, `lora_te_…` (of SDXL `lora_te1_…` and `lora_te2_…`, and the UNet's in the original names) with `.alpha` (diffusers 0.42 reads such a text encoder
                              only if some `out_proj` is among its targets)
  report.json                 {part: {trainable: the line that PEFT prints, targets: module names, scaling: {module: number}}}
  outputs.safetensors         unet.latents, unet.timesteps, unet.context, text_encoder.input_ids: the inputs; for each part
                              PART.base, PART.adapter, PART.merged: without it, with it, with it folded into the weights
  merged.safetensors          PART.KEY: each weight that merge_and_unload changed
"""

import contextlib
import io
import json
import math
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from single_file import unet_key

PREFIX = "base_model.model."


def load(model, part):
    if part == "unet":
        return UNet2DConditionModel.from_pretrained(model, subfolder=part, torch_dtype=torch.float32).eval()
    text_class = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    return text_class.from_pretrained(model, subfolder=part, dtype=torch.float32).eval()


def inputs(part, network, generator):
    if part != "unet":
        return {"input_ids": torch.randint(0, 49406, (2, 77), generator=generator)}
    size = 2 ** len(network.config.block_out_channels)
    given = {
        "latents": torch.randn(2, 4, size, 2 * size, generator=generator),
        "timesteps": torch.tensor([17, 801]),
        "context": torch.randn(2, 77, network.config.cross_attention_dim, generator=generator),
    }
    if network.config.addition_embed_type == "text_time":
        width = network.config.projection_class_embeddings_input_dim - 6 * network.config.addition_time_embed_dim
        given |= {"pooled": torch.randn(2, width, generator=generator), "time_ids": torch.tensor([[1024.0, 768, 0, 33, 512, 512], [64, 64, 0, 0, 64, 64]])}
    return given


def compute(network, given):
    given = dict(given)
    more = {"added_cond_kwargs": {"text_embeds": given.pop("pooled"), "time_ids": given.pop("time_ids")}} if "pooled" in given else {}
    with torch.no_grad():
        return network(*given.values(), **more)[0].contiguous()


def train(model, generator):
    """Gives the adapter the weights of a trained one: B is not zero, a change is about a third of its weight."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if ".lora_A." in name:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            elif ".lora_B." in name and name.endswith(".weight"):
                layer = layers[name.split(".lora_B.")[0]]
                parameter.copy_(noise * 0.3 / (math.sqrt(layer.r["default"]) * layer.scaling["default"]))
            elif ".lora_magnitude_vector." in name:
                parameter.mul_(1 + 0.1 * noise)
            else:
                parameter.add_(0.1 * noise)


def path_of(key):
    """(module's path, what of it) of a PEFT key."""
    module, _, rest = key.removeprefix(PREFIX).rpartition(".lora_")
    return module, "lora_" + rest


def write_peft(folder, part, model):
    model.save_pretrained(folder / "peft" / part)


def write_peft_transformers4(folder, part, model):
    target = folder / "peft-transformers4" / part
    model.save_pretrained(target)
    if part == "text_encoder":
        weights = load_file(target / "adapter_model.safetensors")
        renamed = {key.replace(PREFIX, PREFIX + "text_model.", 1): tensor for key, tensor in weights.items()}
        save_file(renamed, target / "adapter_model.safetensors", metadata={"format": "pt"})


def in_pipeline(part, module):
    below = "" if part == "unet" or module.startswith("text_model.") else "text_model."
    return f"{part}.{below}{module}"


def write_diffusers(folder, models):
    layers, metadata = {}, {}
    for part, model in models.items():
        below = "text_model." if part == "text_encoder" else ""  # CLIPTextModelWithProjection has kept it
        layers[f"{part}_lora_layers"] = {below + key.removeprefix(PREFIX): tensor for key, tensor in get_peft_model_state_dict(model).items()}
        config = model.peft_config["default"].to_dict()
        metadata[f"{part}_lora_adapter_metadata"] = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    pipeline_class = StableDiffusionXLPipeline if "text_encoder_2" in models else StableDiffusionPipeline
    pipeline_class.save_lora_weights(folder / "diffusers", **layers, **metadata)


def scalings(model):
    return {name.removeprefix(PREFIX): layer.scaling["default"] for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def write_diffusers_old(folder, models):
    weights = {}
    for part, model in models.items():
        word = "lora" if part == "unet" else "lora_linear_layer"
        for key, tensor in get_peft_model_state_dict(model).items():
            module, which = path_of(key)
            down = which == "lora_A.weight"
            weights[f"{in_pipeline(part, module)}.{word}.{'down' if down else 'up'}.weight"] = tensor if down else tensor * scalings(model)[module]
    (folder / "diffusers-old").mkdir(parents=True)
    save_file(weights, folder / "diffusers-old" / "pytorch_lora_weights.safetensors")


def write_kohya(folder, models):
    weights, xl = {}, "text_encoder_2" in models
    starts = {"unet": "lora_unet", "text_encoder": "lora_te1" if xl else "lora_te", "text_encoder_2": "lora_te2"}
    for part, model in models.items():
        for key, tensor in get_peft_model_state_dict(model).items():
            module, which = path_of(key)
            path = in_pipeline(part, module).removeprefix(f"{part}.")
            if xl and part == "unet":
                path = unet_key(f"{path}.weight", 2, True).removesuffix(".weight")
            name = f"{starts[part]}_{path}".replace(".", "_")
            weights[f"{name}.{'lora_down' if which == 'lora_A.weight' else 'lora_up'}.weight"] = tensor
            if which == "lora_A.weight":
                weights[f"{name}.alpha"] = torch.tensor(float(scalings(model)[module] * tensor.shape[0]))
    (folder / "kohya").mkdir(parents=True)
    save_file(weights, folder / "kohya" / "lora.safetensors", metadata={"ss_network_module": "networks.lora"})


def report(model):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        model.print_trainable_parameters()
    return {"trainable": printed.getvalue().strip(), "targets": model.base_model.targeted_module_names, "scaling": scalings(model)}


def main(out, model, unet=None, text_encoder=None, text_encoder_2=None, seed=0, formats=("peft",), outputs=True):
    out, source = Path(out), model
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    models, reports, computed, merged, before = {}, {}, {}, {}, {}
    for part, config in {"unet": unet, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}.items():
        if config is None:
            continue
        torch.manual_seed(seed)
        network = load(source, part)
        given = inputs(part, network, generator)
        if outputs:
            before[part] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            computed |= {f"{part}.{name}": tensor for name, tensor in given.items()} | {f"{part}.base": compute(network, given)}
        models[part] = get_peft_model(network, LoraConfig(**config)).eval()
        train(models[part], generator)
        reports[part] = report(models[part])
        if outputs:
            computed[f"{part}.adapter"] = compute(models[part], given)

    for part, wrapped in models.items():
        if "peft" in formats:
            write_peft(out, part, wrapped)
        if "peft-transformers4" in formats:
            write_peft_transformers4(out, part, wrapped)
    for name, write in {"diffusers": write_diffusers, "diffusers-old": write_diffusers_old, "kohya": write_kohya}.items():
        if name in formats:
            write(out, models)
    (out / "report.json").write_text(json.dumps(reports, indent=1))
    if not outputs:
        return

    for part, wrapped in models.items():
        given = {name.removeprefix(f"{part}."): tensor for name, tensor in computed.items() if name.startswith(f"{part}.")}
        given = {name: given[name] for name in given if name not in ("base", "adapter")}
        network = wrapped.merge_and_unload()
        computed[f"{part}.merged"] = compute(network, given)
        for name, tensor in network.state_dict().items():
            if not torch.equal(tensor, before[part][name]):
                merged[f"{part}.{name}"] = tensor.contiguous()
    save_file(computed, out / "outputs.safetensors")
    save_file(merged, out / "merged.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
