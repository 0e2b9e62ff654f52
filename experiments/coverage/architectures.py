"""Architectures of timm and transformers with random weights, small enough for a laptop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A network to try.

    Args:
        name: Of the network in its library.
        library: "timm" or "transformers".
        family: What is special about it.
        build: Makes it, with random weights; the model takes the example inputs and returns one tensor.
        examples: Makes inputs of one inference.
    """

    name: str
    library: str
    family: str
    build: Callable[[], nn.Module]
    examples: Callable[[], tuple[Array, ...]]


class TensorOut(nn.Module):
    """A model of transformers that returns one tensor: the logits, else the last hidden state."""

    def __init__(self, body: nn.Module, argument: str) -> None:
        super().__init__()
        self.body = body
        self.argument = argument

    def forward(self, value: Tensor) -> Tensor:
        mask = {"attention_mask": torch.ones_like(value)} if self.argument == "input_ids" else {}
        result: tuple[Tensor, ...] = self.body(**{self.argument: value}, **mask, return_dict=False)
        return result[0]


# -- timm ------------------------------------------------------------------------------------------------------------

TIMM: Mapping[str, tuple[tuple[str, int], ...]] = {
    "residual": (("resnet18", 96), ("wide_resnet50_2", 64), ("res2net50_14w_8s", 64), ("dla34", 96)),
    "grouped": (("resnext50_32x4d", 64), ("regnetx_002", 96), ("regnety_002", 96), ("resnest14d", 64)),
    "squeeze-excite": (("seresnet50", 64), ("efficientnet_b0", 96), ("mobilenetv3_small_050", 96)),
    "dense concat": (("densenet121", 64), ("cspresnet50", 64), ("inception_v3", 128), ("hrnet_w18_small", 64)),
    "plain": (("vgg11_bn", 224), ("repvgg_a0", 96), ("darknet17", 64)),
    "depthwise": (
        ("mobilenetv2_050", 96),
        ("mnasnet_small", 96),
        ("tinynet_e", 96),
        ("lcnet_050", 96),
        ("ghostnet_050", 96),
        ("xception41", 96),
        ("convnext_atto", 96),
        ("convnextv2_atto", 96),
        ("convmixer_768_32", 64),
        ("fbnetc_100", 96),
        ("repvit_m0_9", 96),
    ),
    "transformer": (
        ("vit_tiny_patch16_224", 224),
        ("deit_tiny_distilled_patch16_224", 224),
        ("cait_xxs24_224", 224),
        ("beit_base_patch16_224", 224),
        ("xcit_nano_12_p16_224", 224),
        ("pit_ti_224", 224),
        ("visformer_tiny", 224),
        ("tnt_s_patch16_224", 224),
    ),
    "windowed": (
        ("swin_tiny_patch4_window7_224", 224),
        ("swinv2_cr_tiny_ns_224", 224),
        ("twins_svt_small", 224),
        ("maxvit_rmlp_pico_rw_256", 256),
    ),
    "hybrid": (
        ("mobilevit_xxs", 128),
        ("mobilevitv2_050", 128),
        ("levit_128s", 224),
        ("efficientformer_l1", 224),
        ("edgenext_xx_small", 128),
        ("coat_lite_tiny", 224),
        ("pvt_v2_b0", 224),
        ("fastvit_t8", 128),
        ("efficientvit_b0", 128),
        ("poolformer_s12", 128),
    ),
    "mixer": (("mixer_s32_224", 224), ("resmlp_12_224", 224), ("gmlp_ti16_224", 224)),
}
"""Family to names in timm with the side of the image."""


def _timm_model(name: str, side: int) -> nn.Module:
    import timm

    extra = {"img_size": side} if name.startswith("swin") else {}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=16, **extra)
    return model


def _image(side: int) -> tuple[Array, ...]:
    return (np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32),)


def _of_timm() -> list[Architecture]:
    return [
        Architecture(name, "timm", family, partial(_timm_model, name, side), partial(_image, side))
        for family, members in TIMM.items()
        for name, side in members
    ]


# -- transformers ----------------------------------------------------------------------------------------------------

TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 200,
    "max_position_embeddings": 64,
}
KEYS_SHARED = TEXT | {"num_key_value_heads": 2}
SEQ2SEQ = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 200,
}
IMAGE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 64,
    "patch_size": 16,
}
SPEECH = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}

TOKENS, PIXELS, SOUND = ("input_ids", (1, 24)), ("pixel_values", (1, 3, 64, 64)), ("input_values", (1, 4000))

TRANSFORMERS: tuple[tuple[str, str, Mapping[str, Any], tuple[str, Shape], str], ...] = (
    ("Bert", "ForSequenceClassification", TEXT, TOKENS, "encoder"),
    ("Roberta", "ForSequenceClassification", TEXT, TOKENS, "encoder"),
    ("Electra", "ForSequenceClassification", TEXT | {"embedding_size": 64}, TOKENS, "encoder"),
    ("Albert", "ForSequenceClassification", TEXT | {"embedding_size": 32}, TOKENS, "encoder"),
    (
        "DistilBert",
        "ForSequenceClassification",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 200},
        TOKENS,
        "encoder",
    ),
    ("DebertaV2", "ForSequenceClassification", TEXT | {"relative_attention": True}, TOKENS, "encoder"),
    ("MPNet", "ForSequenceClassification", TEXT, TOKENS, "encoder"),
    ("SqueezeBert", "ForSequenceClassification", TEXT | {"embedding_size": 64}, TOKENS, "encoder"),
    ("GPT2", "LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200}, TOKENS, "decoder"),
    ("GPTNeoX", "ForCausalLM", TEXT, TOKENS, "decoder"),
    ("OPT", "ForCausalLM", TEXT | {"ffn_dim": 128, "word_embed_proj_dim": 64}, TOKENS, "decoder"),
    ("Llama", "ForCausalLM", KEYS_SHARED, TOKENS, "decoder"),
    ("Mistral", "ForCausalLM", KEYS_SHARED, TOKENS, "decoder"),
    ("Qwen2", "ForCausalLM", KEYS_SHARED, TOKENS, "decoder"),
    ("Gemma", "ForCausalLM", KEYS_SHARED | {"head_dim": 16}, TOKENS, "decoder"),
    ("Phi", "ForCausalLM", TEXT, TOKENS, "decoder"),
    (
        "T5",
        "EncoderModel",
        {"d_model": 64, "d_kv": 16, "num_heads": 4, "num_layers": 2, "d_ff": 128, "vocab_size": 200},
        TOKENS,
        "encoder",
    ),
    ("Bart", "Model", SEQ2SEQ, TOKENS, "encoder-decoder"),
    ("ViT", "ForImageClassification", IMAGE, PIXELS, "encoder"),
    ("Dinov2", "ForImageClassification", IMAGE, PIXELS, "encoder"),
    (
        "Segformer",
        "ForImageClassification",
        {"hidden_sizes": (16, 32, 64, 64), "depths": (1, 1, 1, 1), "decoder_hidden_size": 32},
        PIXELS,
        "hybrid",
    ),
    ("ConvNext", "ForImageClassification", {"hidden_sizes": (16, 32, 48, 64), "depths": (1, 1, 2, 1)}, PIXELS, "conv"),
    ("ResNet", "ForImageClassification", {"hidden_sizes": (32, 64, 64, 128), "depths": (1, 1, 1, 1)}, PIXELS, "conv"),
    ("Wav2Vec2", "ForSequenceClassification", SPEECH, SOUND, "speech"),
    ("Hubert", "ForSequenceClassification", SPEECH, SOUND, "speech"),
    (
        "Whisper",
        "ForAudioClassification",
        SEQ2SEQ | {"max_source_positions": 50},
        ("input_features", (1, 80, 100)),
        "speech",
    ),
    (
        "AST",
        "ForAudioClassification",
        {key: value for key, value in IMAGE.items() if key != "image_size"} | {"max_length": 64, "num_mel_bins": 32},
        ("input_values", (1, 64, 32)),
        "speech",
    ),
)
"""Model type, head, configuration, the input's name and shape, family."""


def _transformer(kind: str, head: str, config: Mapping[str, Any]) -> nn.Module:
    import transformers

    configuration = getattr(transformers, f"{kind}Config")(**config, attn_implementation="eager")
    if "Decoder" in head or "LM" in head:
        configuration.use_cache = False
    configuration.pad_token_id = 0
    model: nn.Module = getattr(transformers, f"{kind}{head}")(configuration)
    return model


def _wrapped(kind: str, head: str, config: Mapping[str, Any], argument: str) -> nn.Module:
    return TensorOut(_transformer(kind, head, config), argument)


def _input(argument: str, shape: Shape) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    if argument == "input_ids":
        return (rng.integers(3, 200, shape),)
    return (rng.standard_normal(shape).astype(np.float32),)


def _of_transformers() -> list[Architecture]:
    return [
        Architecture(
            f"{kind}{head}",
            "transformers",
            family,
            partial(_wrapped, kind, head, config, argument),
            partial(_input, argument, shape),
        )
        for kind, head, config, (argument, shape), family in TRANSFORMERS
    ]


def architectures() -> dict[str, Architecture]:
    """All of them by name."""
    return {one.name: one for one in (*_of_timm(), *_of_transformers())}


def build(architecture: Architecture) -> nn.Module:
    """The network with fixed random weights, in evaluation mode."""
    torch.manual_seed(0)
    return architecture.build().eval()
