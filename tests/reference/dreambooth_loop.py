"""The training loop of PEFT's examples/lora_dreambooth/train_dreambooth.py, with every draw made as the project's are.

    dreambooth_loop.py OUT_DIR '{"model": DIR, "instance_data_dir": DIR, "instance_prompt": "a photo of sks dog"}'

Option names and defaults are fields of `Options` below; they mean what PEFT's script's flags mean. Micro-step s draws from
torch's generator seeded with `seed + s`: crops, the VAE posterior's noise, the noise, its offset, the timesteps, dropout.
As accelerate does it, an epoch's last micro-step ends an accumulation, however few micro-steps it has.

Writes OUT_DIR/unet/ and, where trained, OUT_DIR/text_encoder/ as PEFT saves them, and OUT_DIR/losses.json:
  steps          a list over optimizer steps of {loss, instance_loss, prior_loss, grad_norm, lr, epoch, micro_losses, timesteps}:
                 losses are means over the micro-steps, the norm is from before clipping, the rate the one that was used
  seconds        of each optimizer step; first_step_seconds: from the start of the process to the end of the first
  peak_rss_mib   of the process; peak_device_mib: what CUDA allocated; trainable_parameters
Timings count only in a process of its own. A resized photo is kept in memory, where PEFT's script reads it again each time.
"""

import contextlib
import json
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

if "torch" not in sys.modules:
    # In a process of its own, where timings count: peft imports bitsandbytes where it is installed, and starts slower.
    sys.modules["bitsandbytes"] = None

import psutil
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig, PeftModel, get_peft_model
from torchvision.transforms import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import photos


@dataclass
class Options:
    model: str
    instance_data_dir: str
    instance_prompt: str
    class_data_dir: str = None
    class_prompt: str = None
    with_prior_preservation: bool = False
    prior_loss_weight: float = 1.0
    resolution: int = 64  # 128 or more for a VAE of scale factor 8: on one latent in the middle, self-attention has no gradient
    center_crop: bool = False
    train_text_encoder: bool = False
    init_adapter: str = None  # a folder with unet/ and text_encoder/; otherwise fresh adapters of these shapes:
    lora: dict = field(default_factory=lambda: dict(r=8, lora_alpha=32, target_modules=["to_q", "to_v"]))
    lora_text_encoder: dict = field(default_factory=lambda: dict(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"]))  # of SDXL, both
    text_encoder_lr: float = None
    text_encoder_2_lr: float = None
    max_train_steps: int = 20
    train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    gradient_accumulation_average: str = "full"  # or "present": a short last group is divided by the micro-steps that it has
    gradient_checkpointing: bool = False
    cache: bool = False  # what is frozen runs once: the VAE on each photo, whose crop is fixed, and the text encoders on each prompt
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    snr_gamma: float = None  # as diffusers' train_dreambooth.py: instance images only
    noise_offset: float = 0.0
    shuffle: bool = True
    seed: int = 0
    device: str = "cpu"
    mixed_precision: str = "no"  # no, bf16, fp16: autocast over float32 weights, as accelerate does it


class Photos:
    """One folder's photos with their prompt, sorted by name."""

    def __init__(self, folder, prompt, tokenizers, options):
        self.paths = sorted(path for path in Path(folder).iterdir() if path.suffix != ".txt")
        self.prompt, self.tokenizers, self.options, self.resized = prompt, tokenizers, options, {}

    def __len__(self):
        return len(self.paths)

    def pixels(self, place):
        path, resolution = self.paths[place % len(self.paths)], self.options.resolution
        if path not in self.resized:
            self.resized[path] = photos.resized(path, resolution)
        photo = self.resized[path]
        width, height = photo.size
        if self.options.center_crop:
            top, left = round((height - resolution) / 2.0), round((width - resolution) / 2.0)
        elif width == height:
            top = left = 0
        else:  # RandomCrop of torchvision: top, then left, from torch's own generator
            top, left = (int(torch.randint(0, side - resolution + 1, (1,))) for side in (height, width))
        width, height = photos.open_photo(path).size
        self.time_ids = [height, width, top, left, resolution, resolution]
        return photos.as_tensor(functional.crop(photo, top, left, resolution, resolution))

    def input_ids(self, place):
        caption = self.paths[place % len(self.paths)].with_suffix(".txt")
        prompt = caption.read_text().strip() if caption.exists() else self.prompt
        options = dict(padding="max_length", truncation=True, return_tensors="pt")
        return torch.cat([tokenizer(prompt, max_length=tokenizer.model_max_length, **options).input_ids for tokenizer in self.tokenizers])


def batches(folders, options):
    """(epoch, its last batch?, places in the epoch) without end, as a shuffling DataLoader gives them."""
    places, epoch = max(len(folder) for folder in folders), 0
    while True:
        order = torch.randperm(places, generator=torch.Generator().manual_seed(options.seed + epoch)) if options.shuffle else torch.arange(places)
        parts = order.split(options.train_batch_size)
        for i, part in enumerate(parts):
            yield epoch, i + 1 == len(parts), part.tolist()
        epoch += 1


def with_adapter(model, part, config, options):
    if options.init_adapter:
        return PeftModel.from_pretrained(model, Path(options.init_adapter) / part, is_trainable=True)
    return get_peft_model(model, LoraConfig(**config))


def losses(prediction, target, timesteps, scheduler, options):
    """(loss, instance loss, prior loss) of a batch whose second half, with prior preservation, is class images."""
    prior = torch.zeros((), device=prediction.device)
    if options.with_prior_preservation:
        prediction, prior_prediction = prediction.chunk(2)
        target, prior_target = target.chunk(2)
        timesteps = timesteps.chunk(2)[0]
        prior = F.mse_loss(prior_prediction.float(), prior_target.float())
    instance = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    if options.snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        weight = snr.clamp(max=options.snr_gamma) / snr
        instance = instance * (weight + 1 if scheduler.config.prediction_type == "v_prediction" else weight)
    instance = instance.mean()
    return instance + options.prior_loss_weight * prior, instance, prior


class Trainer:
    def __init__(self, options):
        torch.manual_seed(options.seed)
        self.options, self.kept = options, {}
        weight_dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.mixed_precision]
        self.weight_dtype = weight_dtype
        self.scheduler = DDPMScheduler.from_pretrained(options.model, subfolder="scheduler")
        texts = {"text_encoder": CLIPTextModel}
        if (Path(options.model) / "text_encoder_2").exists():
            texts["text_encoder_2"] = CLIPTextModelWithProjection
        tokenizers = [CLIPTokenizer.from_pretrained(options.model, subfolder=part.replace("text_encoder", "tokenizer")) for part in texts]
        self.vae = AutoencoderKL.from_pretrained(options.model, subfolder="vae", torch_dtype=torch.float32).requires_grad_(False)
        encoders = {part: text_class.from_pretrained(options.model, subfolder=part, dtype=torch.float32) for part, text_class in texts.items()}
        unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet", torch_dtype=torch.float32)
        if options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.unet = with_adapter(unet, "unet", options.lora, options).to(options.device).train()
        self.vae.to(options.device, dtype=weight_dtype)
        if options.train_text_encoder:
            self.encoders = {part: with_adapter(model, part, options.lora_text_encoder, options).to(options.device).train() for part, model in encoders.items()}
        else:
            self.encoders = {part: model.requires_grad_(False).eval().to(options.device, dtype=weight_dtype) for part, model in encoders.items()}
        self.folders = [Photos(options.instance_data_dir, options.instance_prompt, tokenizers, options)]
        if options.with_prior_preservation:
            self.folders.append(Photos(options.class_data_dir, options.class_prompt, tokenizers, options))
        self.trained = [self.unet, *self.encoders.values()] if options.train_text_encoder else [self.unet]
        self.parameters = [p for model in self.trained for p in model.parameters() if p.requires_grad]
        groups = [dict(params=[p for p in model.parameters() if p.requires_grad]) for model in self.trained]
        last = options.learning_rate
        for group, rate in zip(groups[1:], (options.text_encoder_lr, options.text_encoder_2_lr)):
            last = group["lr"] = last if rate is None else rate
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            weight_decay=options.adam_weight_decay,
            eps=options.adam_epsilon,
        )
        self.lr_scheduler = get_scheduler(
            options.lr_scheduler,
            optimizer=self.optimizer,
            num_warmup_steps=options.lr_warmup_steps * options.gradient_accumulation_steps,
            num_training_steps=options.max_train_steps * options.gradient_accumulation_steps,
            num_cycles=options.lr_num_cycles,
            power=options.lr_power,
        )
        self.scaler = torch.amp.GradScaler(options.device.split(":")[0], enabled=options.mixed_precision == "fp16")

    def autocast(self):
        if self.options.mixed_precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.options.device.split(":")[0], dtype=self.weight_dtype)

    def frozen(self, key, compute):
        """What does not train gives for `key`."""
        if key in self.kept:
            return self.kept[key]
        with torch.no_grad():
            result = compute()
        if self.options.cache:
            self.kept[key] = result
        return result

    def encode(self, pixels):
        posterior = self.vae.encode(pixels.to(self.options.device, dtype=self.weight_dtype)).latent_dist
        return posterior.mean, posterior.std

    def embed(self, input_ids):
        """The UNet's context, and the embedding of whole texts where there are two text encoders."""
        outputs = [encoder(input_ids[:, i], output_hidden_states=True) for i, encoder in enumerate(self.encoders.values())]
        if len(outputs) == 1:
            return outputs[0][0], None
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds

    def micro_step(self, number, places):
        options, device = self.options, self.options.device
        torch.manual_seed(options.seed + number)
        pixels, time_ids = [], []
        for folder in self.folders:
            for place in places:
                pixels.append(folder.pixels(place))
                time_ids.append(folder.time_ids)
        pixels, time_ids = torch.stack(pixels), torch.tensor(time_ids, dtype=torch.float32, device=device)
        input_ids = torch.stack([folder.input_ids(place) for folder in self.folders for place in places]).to(device)

        mean, std = self.frozen(("photos", *places), lambda: self.encode(pixels))
        shape = mean.shape
        latents = (mean + std * torch.randn(shape).to(mean)) * self.vae.config.scaling_factor
        noise = torch.randn(shape).to(latents)
        if options.noise_offset:
            noise = noise + options.noise_offset * torch.randn(shape[0], shape[1], 1, 1).to(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (shape[0],)).to(device)
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)

        with self.autocast():
            embed = lambda: self.embed(input_ids)
            context, pooled = embed() if options.train_text_encoder else self.frozen(tuple(input_ids.flatten().tolist()), embed)
            added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
            prediction = self.unet(noisy_latents, timesteps, context, added_cond_kwargs=added).sample
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        loss, instance_loss, prior_loss = losses(prediction, target, timesteps, self.scheduler, options)
        self.scaler.scale(loss / options.gradient_accumulation_steps).backward()
        return dict(loss=loss.item(), instance_loss=instance_loss.item(), prior_loss=prior_loss.item(), timesteps=timesteps.tolist())

    def optimizer_step(self):
        lr = self.lr_scheduler.get_last_lr()[0]
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        return dict(grad_norm=grad_norm.item(), lr=lr)


def main(out, **options):
    options = Options(**options)
    out = Path(out)
    trainer = Trainer(options)
    steps, seconds, micro_steps, first_step_seconds = [], [], [], None
    started = time.perf_counter()
    for number, (epoch, last, places) in enumerate(batches(trainer.folders, options)):
        if len(steps) == options.max_train_steps:
            break
        micro_steps.append(trainer.micro_step(number, places))
        if not last and len(micro_steps) < options.gradient_accumulation_steps:
            continue
        if options.gradient_accumulation_average == "present":
            for parameter in trainer.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(options.gradient_accumulation_steps / len(micro_steps))
        step = trainer.optimizer_step() | dict(epoch=epoch, micro_losses=[m["loss"] for m in micro_steps], timesteps=[m["timesteps"] for m in micro_steps])
        for name in ("loss", "instance_loss", "prior_loss"):
            step[name] = sum(m[name] for m in micro_steps) / len(micro_steps)
        steps.append(step)
        micro_steps = []
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        first_step_seconds = first_step_seconds or time.time() - psutil.Process().create_time()

    trainer.unet.save_pretrained(out / "unet")
    if options.train_text_encoder:
        for part, encoder in trainer.encoders.items():
            encoder.save_pretrained(out / part)
    report = dict(
        steps=steps,
        seconds=seconds,
        first_step_seconds=first_step_seconds,
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        peak_device_mib=torch.cuda.max_memory_allocated() / 2**20 if options.device.startswith("cuda") else None,
        trainable_parameters=sum(p.numel() for p in trainer.parameters),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "losses.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
