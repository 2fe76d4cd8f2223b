"""Shapes of the models that tests are made with: Stable Diffusion's own, and small ones that keep its structure.

`tiny`    two levels (VAE scale factor 2), SD 1 style
`tiny4`   four levels (VAE scale factor 8), SD 1 style
`tiny-v`  four levels, SD 2 style: linear projections, heads per block, gelu, v-prediction, padding with "!"
`medium`  Stable Diffusion 1 at half its width, with a quarter of its weights
`sd15`    Stable Diffusion 1.4 and 1.5
`sd21`    Stable Diffusion 2.1
`tiny-xl`    three levels (VAE scale factor 8), SDXL style: two text encoders, deeper transformers, whole texts and sizes beside the
             timestep; heads, groups and sinusoids are as wide as the published model's, which a single file does not tell
`tiny-xl-v`  the same with v-prediction and zero terminal SNR
`sdxl`    Stable Diffusion XL 1.0
"""

VARIANTS = ("tiny", "tiny4", "tiny-v", "medium", "sd15", "sd21", "tiny-xl", "tiny-xl-v", "sdxl")


def is_xl(variant):
    return variant in ("tiny-xl", "tiny-xl-v", "sdxl")


def is_v2(variant):
    return variant in ("tiny-v", "sd21")


def unet(variant):
    if is_xl(variant):
        return xl_unet(tiny=variant != "sdxl")
    levels = 2 if variant == "tiny" else 4
    shared = dict(
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )
    return {
        "tiny": dict(sample_size=32, block_out_channels=(32, 64), attention_head_dim=4, cross_attention_dim=32, norm_num_groups=8),
        "tiny4": dict(sample_size=8, block_out_channels=(32, 64, 64, 96), attention_head_dim=4, cross_attention_dim=32, norm_num_groups=16),
        "tiny-v": dict(sample_size=8, block_out_channels=(32, 64, 64, 64), attention_head_dim=[2, 4, 8, 8], cross_attention_dim=48, norm_num_groups=32, use_linear_projection=True),
        "medium": dict(sample_size=32, block_out_channels=(160, 320, 640, 640), cross_attention_dim=768),
        "sd15": dict(sample_size=64, cross_attention_dim=768),
        "sd21": dict(sample_size=96, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True, upcast_attention=True),
    }[variant] | shared


def xl_unet(tiny):
    shared = dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
    )
    if tiny:
        own = dict(sample_size=16, block_out_channels=(64, 128, 128), attention_head_dim=[1, 2, 2], cross_attention_dim=192, transformer_layers_per_block=[1, 2, 3])
        return shared | own | dict(projection_class_embeddings_input_dim=128 + 6 * 256)
    own = dict(sample_size=128, block_out_channels=(320, 640, 1280), attention_head_dim=[5, 10, 20], cross_attention_dim=2048, transformer_layers_per_block=[1, 2, 10])
    return shared | own | dict(projection_class_embeddings_input_dim=1280 + 6 * 256)


def vae(variant):
    if is_xl(variant):
        return vae("sd15" if variant == "sdxl" else "tiny-v") | dict(sample_size=1024 if variant == "sdxl" else 128, scaling_factor=0.13025, force_upcast=True)
    channels = {"tiny": (32, 64), "tiny4": (32, 32, 64, 64), "tiny-v": (32, 32, 64, 64), "medium": (64, 128, 256, 256)}.get(variant, (128, 256, 512, 512))
    return dict(
        sample_size={"medium": 256, "sd15": 512, "sd21": 768}.get(variant, 64),
        block_out_channels=channels,
        layers_per_block=1 if variant.startswith("tiny") else 2,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        norm_num_groups={"tiny": 8, "tiny4": 16}.get(variant, 32),
        latent_channels=4,
    )


def text_encoder(variant):
    return {
        "tiny": dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, projection_dim=32),
        "tiny4": dict(hidden_size=32, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2, projection_dim=32),
        "tiny-v": dict(hidden_size=48, intermediate_size=96, num_attention_heads=3, num_hidden_layers=3, projection_dim=32),
        "medium": dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=3, projection_dim=768),
        "sd15": dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768),
        "sd21": dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23, projection_dim=512),
        "tiny-xl": dict(hidden_size=64, intermediate_size=96, num_attention_heads=1, num_hidden_layers=3, projection_dim=64),
        "sdxl": dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768),
    }[variant.removesuffix("-v") if is_xl(variant) else variant] | dict(
        vocab_size=49408,
        max_position_embeddings=77,
        hidden_act="gelu" if is_v2(variant) else "quick_gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def text_encoder_2(variant):
    """Of SDXL alone."""
    sizes = dict(hidden_size=128, intermediate_size=160, num_attention_heads=2, num_hidden_layers=3, projection_dim=128)
    if variant == "sdxl":
        sizes = dict(hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32, projection_dim=1280)
    return text_encoder(variant) | sizes | dict(hidden_act="gelu")


# What the repositories on the hub hold in scheduler_config.json, `skip_prk_steps` of a DDIM scheduler included.
SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
    clip_sample=False,
)


def scheduler(variant):
    if is_xl(variant):
        own = dict(_class_name="EulerDiscreteScheduler", prediction_type="epsilon", timestep_spacing="leading", interpolation_type="linear", use_karras_sigmas=False)
        zero_snr = dict(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
        return SCHEDULER | own | (zero_snr if variant == "tiny-xl-v" else {})
    if is_v2(variant):
        return SCHEDULER | dict(_class_name="DDIMScheduler", prediction_type="v_prediction")
    return SCHEDULER | dict(_class_name="PNDMScheduler")
