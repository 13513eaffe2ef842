"""Tiny, randomly initialised models of diffusers and transformers, saved as real ones are.

They go through the same ``from_pretrained`` as a user's model. The tokenizers have a vocabulary of
letters, so that any text is tokenised.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

# Where the tests load them.
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.?-()'<>"
_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def clip_tokenizer(folder: Path):
    """CLIP's byte pair tokenizer with letters only."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


def _image_processor(side: int = 32):
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def _text_options(tokenizer) -> dict:
    return {
        **_SMALL,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 16,
    }


def _clip_config(tokenizer):
    from transformers import CLIPConfig

    vision = {**_SMALL, "image_size": 32, "patch_size": 16, "projection_dim": 16}
    return CLIPConfig(text_config=_text_options(tokenizer), vision_config=vision, projection_dim=16)


def save_stable_diffusion(folder: Path, *, safety_checker: bool = True) -> Path:
    """A Stable Diffusion 1.x pipeline that draws noise of 16 px and up in milliseconds."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = clip_tokenizer(folder / "words")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**_text_options(tokenizer))),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=StableDiffusionSafetyChecker(_clip_config(tokenizer))
        if safety_checker
        else None,
        feature_extractor=_image_processor(),
        requires_safety_checker=safety_checker,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP model and its processor."""
    from transformers import CLIPModel, CLIPProcessor

    tokenizer = clip_tokenizer(folder / "words")
    torch.manual_seed(1)
    CLIPModel(_clip_config(tokenizer)).save_pretrained(folder)
    CLIPProcessor(_image_processor(), tokenizer).save_pretrained(folder)
    return folder


def save_clipseg(folder: Path) -> Path:
    """A CLIPSeg model and its processor."""
    from transformers import (
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        ViTImageProcessor,
    )

    tokenizer = clip_tokenizer(folder / "words")
    torch.manual_seed(2)
    config = CLIPSegConfig(
        text_config=_text_options(tokenizer),
        vision_config={**_SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        conditional_layer=0,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    images = ViTImageProcessor(size={"height": 32, "width": 32})
    CLIPSegProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_sam(folder: Path) -> Path:
    """A SAM model and its processor; images are padded to 64 px."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(3)
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_dim": 32,
            "image_size": 64,
            "patch_size": 8,
            "output_channels": 16,
            "num_pos_feats": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    SamModel(config).save_pretrained(folder)
    images = SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    SamProcessor(images).save_pretrained(folder)
    return folder


def save_vision_language(folder: Path) -> Path:
    """A LLaVA model and its processor, with a chat template and a vocabulary of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "yes", "Yes", "no", "No", "bun", "boot"]
    words += ["is", "this", "one", "whole", "a", "and", "nothing", "else", "USER", "ASSISTANT", ":"]
    tokenizer = Tokenizer(
        models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    torch.manual_seed(4)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_SMALL, image_size=32, patch_size=16),
        text_config=LlamaConfig(
            **_SMALL, num_key_value_heads=2, vocab_size=len(words), pad_token_id=3
        ),
        image_token_index=words.index("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}USER : {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
    )
    LlavaProcessor(
        _image_processor(),
        fast,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return folder
