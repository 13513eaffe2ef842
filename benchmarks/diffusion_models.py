"""The architectures of Stable Diffusion 1.5 and SDXL-Turbo at their public sizes, random weights.

Their configs are written out here, as the models' pages publish them, so nothing is downloaded.
Speed and memory do not depend on what the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CLIP_VOCABULARY, _CLIP_LENGTH = 49408, 77
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _text_encoder(width: int, layers: int, heads: int, activation: str) -> dict[str, Any]:
    return {
        "vocab_size": _CLIP_VOCABULARY,
        "max_position_embeddings": _CLIP_LENGTH,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "hidden_act": activation,
    }


@dataclass(frozen=True)
class Architecture:
    """A text-to-image model: the configs of its parts, and how it is used.

    Attributes:
        name: as it is called in tables.
        unet, vae: arguments of diffusers' UNet2DConditionModel and AutoencoderKL.
        text_encoders: arguments of transformers' CLIPTextConfig, one for each. Of two, the second
            one's projection and the picture's size are further inputs of the UNet, as in SDXL.
        scheduler: class name in diffusers, and its arguments.
        steps, guidance, size: the published defaults; guidance 0: the UNet sees each image once.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]
    scheduler: tuple[str, Mapping[str, Any]]
    steps: int
    guidance: float
    size: int = 512


SD15 = Architecture(
    "SD 1.5",
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    vae=_VAE,
    text_encoders=(_text_encoder(768, 12, 12, "quick_gelu"),),
    scheduler=("PNDMScheduler", {**_NOISE, "skip_prk_steps": True, "steps_offset": 1}),
    steps=50,
    guidance=7.5,
)
SDXL_TURBO = Architecture(
    "SDXL-Turbo",
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae=_VAE,
    text_encoders=(
        _text_encoder(768, 12, 12, "quick_gelu"),
        _text_encoder(1280, 32, 20, "gelu"),
    ),
    scheduler=("EulerAncestralDiscreteScheduler", {**_NOISE, "timestep_spacing": "trailing"}),
    steps=1,
    guidance=0.0,
)
ARCHITECTURES = {"sd15": SD15, "sdxl-turbo": SDXL_TURBO}


class TextToImage:
    """Draws pictures of random texts: what a pipeline of diffusers computes, in the same order.

    The safety checker is not part of it, nor are files.

    Args:
        architecture: what is built, with random weights.
        device, dtype: of all parts.
        channels_last: memory format of the UNet and the decoder.
        compiled: the UNet is compiled; the first picture then takes minutes.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        *,
        channels_last: bool = True,
        compiled: bool = False,
    ) -> None:
        self.architecture = architecture
        self.device, self.dtype = device, dtype
        with _made_there(device, dtype):
            self.unet, self.vae, self.text_encoders = build_parts(architecture)
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        if compiled:
            self.unet.compile()

    @torch.no_grad()
    def draw(self, batch: int, steps: int) -> np.ndarray:
        """(batch, size, size, 3) uint8 on the CPU; of what random weights make of noise."""
        import diffusers

        name, options = self.architecture.scheduler
        scheduler = getattr(diffusers, name)(**options)
        scheduler.set_timesteps(steps, device=self.device)
        guided = self.architecture.guidance > 0
        states, extra = self._encode(2 * batch if guided else batch)
        side = self.architecture.size // 2 ** (len(self.architecture.vae["block_out_channels"]) - 1)
        channels = self.architecture.unet["in_channels"]
        latents = torch.randn(
            (batch, channels, side, side), device=self.device, dtype=self.dtype
        ) * float(scheduler.init_noise_sigma)
        for timestep in scheduler.timesteps:
            both = torch.cat([latents, latents]) if guided else latents
            both = scheduler.scale_model_input(both, timestep)
            noise = self.unet(both, timestep, states, added_cond_kwargs=extra).sample
            if guided:
                without, with_text = noise.chunk(2)
                noise = without + self.architecture.guidance * (with_text - without)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        decoded = self.vae.decode(latents.to(self.dtype) / self.vae.config.scaling_factor).sample
        pixels = (decoded.float().nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round()
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _encode(self, rows: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        """(rows, tokens, width) states of random texts, and what SDXL's UNet sees besides."""
        vocabulary = self.architecture.text_encoders[0]["vocab_size"]
        length = self.architecture.text_encoders[0]["max_position_embeddings"]
        tokens = torch.randint(vocabulary, (rows, length), device=self.device)
        if len(self.text_encoders) == 1:
            return self.text_encoders[0](tokens).last_hidden_state, None
        outputs = [encoder(tokens, output_hidden_states=True) for encoder in self.text_encoders]
        size = self.architecture.size
        sizes = [size, size, 0, 0, size, size]  # original size, crop, target size
        extra = {
            "text_embeds": outputs[1].text_embeds,
            "time_ids": torch.tensor([sizes] * rows, device=self.device, dtype=self.dtype),
        }
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), extra


def build_parts(architecture: Architecture) -> tuple[nn.Module, nn.Module, list[nn.Module]]:
    """UNet, autoencoder and text encoders, on torch's default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    classes = (CLIPTextModel, CLIPTextModelWithProjection)
    encoders = [
        cls(CLIPTextConfig(**config)).eval()
        for cls, config in zip(classes, architecture.text_encoders, strict=False)
    ]
    unet = UNet2DConditionModel(**architecture.unet)
    return unet.eval(), AutoencoderKL(**architecture.vae).eval(), encoders


@contextmanager
def _made_there(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules are made on the device, in the data type: SDXL in single precision takes 14 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
