"""Encoders of Hugging Face, with and without a decoder, at sizes at which they are quick to trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training_steps.case import (
    adamw,
    arrays,
    bf16,
    case,
    fp16,
    hugging_face,
    optim,
    plain,
    step,
    tokens,
)


class RenamedIds(nn.Module):
    """Calls the model with its arguments' names less their "_ids", but for input_ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: torch.Tensor) -> Any:
        return self.model(
            **{name if name == "input_ids" else name.removesuffix("_ids"): t for name, t in batch.items()}
        )


ENCODER = {"hidden_size": 768, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 3072}

case(
    "roberta-classify-amp-fp16-clip",
    gpu="T4",
    optimizer=adamw,
    step=step(dtype=torch.float16, scale=True, clip=1.0),
    batch=lambda: tokens(16, 128, mask=True)() | {"labels": torch.zeros(16, dtype=torch.long)},
    model=hugging_face("RobertaForSequenceClassification", "RobertaConfig", **ENCODER, vocab_size=50265),
)
case(
    "distilbert-mlm-fp32",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(8, 128, mask=True),
    step=plain,
    model=hugging_face("DistilBertForMaskedLM", "DistilBertConfig", n_layers=3),
)
case(
    "bert-tokens-bf16",
    gpu="A100-40GB",
    optimizer=optim("RMSprop"),
    batch=tokens(8, 199, mask=True),
    step=plain,
    model=hugging_face("BertForTokenClassification", "BertConfig", torch.bfloat16, **ENCODER, num_labels=9),
)
case(
    "bert-qa-amp-bf16",
    gpu="RTX3090",
    optimizer=adamw,
    step=bf16,
    batch=arrays(input_ids=(8, 384), attention_mask_ids=(8, 384), start_positions_ids=(8,), end_positions_ids=(8,)),
    model=lambda: RenamedIds(hugging_face("BertForQuestionAnswering", "BertConfig", **ENCODER)()),
)
case(
    "deberta-v2-tokens-amp-fp16",
    gpu="V100-16GB",
    optimizer=adamw,
    step=fp16,
    batch=tokens(8, 128, mask=True),
    model=hugging_face(
        "DebertaV2ForTokenClassification",
        "DebertaV2Config",
        **ENCODER,
        vocab_size=32000,
        relative_attention=True,
        position_buckets=64,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    ),
)
case(
    "albert-fp32",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(8, 256),
    step=plain,
    model=hugging_face("AlbertForMaskedLM", "AlbertConfig", **ENCODER, embedding_size=128, vocab_size=30000),
)
case(
    "electra-discriminator-amp-bf16",
    gpu="RTX4090",
    optimizer=adamw,
    batch=tokens(16, 128, mask=True),
    step=bf16,
    model=hugging_face("ElectraForPreTraining", "ElectraConfig", **ENCODER, embedding_size=768),
)
case(
    "modernbert-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(4, 512, mask=True),
    step=bf16,
    model=hugging_face(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        hidden_size=768,
        num_hidden_layers=4,
        num_attention_heads=12,
        intermediate_size=1152,
        vocab_size=50368,
        attn_implementation="sdpa",
        reference_compile=False,
    ),
)
case(
    "xlnet-fp32",
    gpu="RTX3090",
    optimizer=adamw,
    step=plain,
    batch=tokens(4, 128),
    model=hugging_face(
        "XLNetLMHeadModel",
        "XLNetConfig",
        d_model=512,
        n_layer=3,
        n_head=8,
        d_inner=2048,
        vocab_size=32000,
        use_mems_train=False,
    ),
)

# -- encoders with decoders --------------------------------------------------------------------------------------------

case(
    "t5-fp32-adafactor",
    gpu="T4",
    optimizer=optim("Adafactor", lr=1e-3),
    batch=tokens(4, 128),
    step=plain,
    model=hugging_face(
        "T5ForConditionalGeneration", "T5Config", num_layers=3, decoder_start_token_id=0, use_cache=False
    ),
)
case(
    "t5-gated-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(4, 256, mask=True),
    step=bf16,
    model=hugging_face(
        "T5ForConditionalGeneration",
        "T5Config",
        num_layers=3,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    ),
)
case(
    "bart-amp-fp16",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(4, 128, mask=True),
    step=fp16,
    model=hugging_face(
        "BartForConditionalGeneration",
        "BartConfig",
        d_model=512,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        use_cache=False,
    ),
)
case(
    "marian-fp32-labels",
    gpu="V100-16GB",
    optimizer=adamw,
    batch=tokens(8, 64, decoder_input_ids=(8, 53)),
    step=lambda m, o, b: plain(m, o, {**b, "labels": b["decoder_input_ids"]}),
    model=hugging_face(
        "MarianMTModel",
        "MarianConfig",
        d_model=512,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        vocab_size=58101,
        pad_token_id=58100,
        decoder_start_token_id=58100,
    ),
)
