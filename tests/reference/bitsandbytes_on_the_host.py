"""Lets diffusers load weights in 4 bits where there is no GPU: it asks for one that bitsandbytes does not need."""

from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer


def allow():
    BnB4BitDiffusersQuantizer.validate_environment = lambda self, *args, **kwargs: None
    BnB4BitDiffusersQuantizer.update_device_map = lambda self, device_map: device_map or {"": "cpu"}


def exactly(network):
    """`network`, whose layers in 4 bits compute in float32: where a processor has units for bfloat16 they would use those."""
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return network
