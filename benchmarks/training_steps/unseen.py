"""Steps that were chosen when the rules were done, to see how predictions fare on what they were not tried on."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from training_steps.case import (
    Batch,
    adamw,
    arrays,
    bf16,
    case,
    classes,
    fp16,
    hugging_face,
    lora,
    optim,
    plain,
    step,
    tokens,
)


def depth(model: Any, optimizer: Any, batch: Batch) -> None:
    out = model(**batch).predicted_depth
    (out.log1p().var() + F.l1_loss(out, torch.ones_like(out))).backward()
    optimizer.step()
    optimizer.zero_grad()


DECODER = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 12}
ENCODER = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 8}

case(
    "stablelm-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(3, 500, mask=True),
    step=bf16,
    model=hugging_face(
        "StableLmForCausalLM", "StableLmConfig", **DECODER, num_key_value_heads=12, vocab_size=30000, use_cache=False
    ),
)
case(
    "starcoder2-bf16",
    gpu="RTX3090",
    optimizer=adamw,
    batch=tokens(2, 600),
    step=plain,
    model=hugging_face(
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        torch.bfloat16,
        **DECODER,
        num_key_value_heads=2,
        vocab_size=49152,
        use_cache=False,
    ),
)
case(
    "gpt-big-code-amp-fp16",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(2, 300, mask=True),
    step=fp16,
    model=hugging_face(
        "GPTBigCodeForCausalLM", "GPTBigCodeConfig", n_embd=768, n_layer=3, n_head=12, vocab_size=49152, use_cache=False
    ),
)
case(
    "mpt-fp32",
    gpu="A100-80GB",
    optimizer=optim("SGD", lr=0.1, momentum=0.9),
    batch=tokens(2, 256),
    step=plain,
    model=hugging_face(
        "MptForCausalLM", "MptConfig", d_model=768, n_heads=12, n_layers=3, vocab_size=50368, use_cache=False
    ),
)
case(
    "cohere-lora-bf16",
    gpu="RTX4090",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=step(clip=1.0),
    model=lora(
        hugging_face("CohereForCausalLM", "CohereConfig", torch.bfloat16, **DECODER, vocab_size=60000, use_cache=False),
        8,
        "all-linear",
        task_type="CAUSAL_LM",
    ),
)
case(
    "codegen-fp16-amp",
    gpu="V100-16GB",
    optimizer=adamw,
    batch=tokens(2, 256),
    step=fp16,
    model=hugging_face(
        "CodeGenForCausalLM", "CodeGenConfig", n_embd=1024, n_layer=2, n_head=16, vocab_size=50400, use_cache=False
    ),
)
case(
    "xglm-fp32-accumulate",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(2, 200),
    step=step(accumulate=3, zero={"set_to_none": False}),
    model=hugging_face(
        "XGLMForCausalLM",
        "XGLMConfig",
        d_model=512,
        ffn_dim=2048,
        num_layers=3,
        attention_heads=8,
        vocab_size=32001,
        use_cache=False,
    ),
)
case(
    "mpnet-fp32",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(8, 128),
    step=plain,
    model=hugging_face("MPNetForMaskedLM", "MPNetConfig", **ENCODER),
)
case(
    "fnet-fp32",
    gpu="RTX3090",
    optimizer=adamw,
    batch=tokens(8, 128),
    step=plain,
    model=hugging_face("FNetForMaskedLM", "FNetConfig", **ENCODER),
)
case(
    "squeezebert-amp-fp16",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(8, 128, mask=True),
    step=fp16,
    model=hugging_face("SqueezeBertForMaskedLM", "SqueezeBertConfig", embedding_size=512, **ENCODER),
)
case(
    "mobilebert-fp32",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(8, 128, mask=True),
    step=plain,
    model=hugging_face("MobileBertForMaskedLM", "MobileBertConfig", num_hidden_layers=3),
)
case(
    "longformer-fp32",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(2, 1024, mask=True),
    step=plain,
    model=hugging_face(
        "LongformerForMaskedLM",
        "LongformerConfig",
        **ENCODER,
        attention_window=[128, 128, 128],
        max_position_embeddings=1030,
    ),
)
case(
    "pegasus-amp-bf16",
    gpu="H200",
    optimizer=optim("Adafactor", lr=1e-3),
    batch=tokens(4, 96, mask=True),
    step=bf16,
    model=hugging_face(
        "PegasusForConditionalGeneration",
        "PegasusConfig",
        d_model=512,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        use_cache=False,
        decoder_start_token_id=0,
    ),
)
case(
    "swin-v2-fp32",
    gpu="T4",
    optimizer=adamw,
    batch=classes(4, 3, 256, 256),
    step=plain,
    model=hugging_face(
        "Swinv2ForImageClassification", "Swinv2Config", depths=[1, 1, 2, 1], window_size=8, image_size=256
    ),
)
case(
    "efficientnet-amp-fp16",
    gpu="RTX3090",
    optimizer=optim("RMSprop", momentum=0.9),
    batch=classes(8, 3, 160, 160),
    step=fp16,
    model=hugging_face(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        image_size=160,
        num_labels=10,
    ),
)
case(
    "mobilevit-fp32",
    gpu="T4",
    optimizer=adamw,
    batch=classes(8, 3, 256, 256),
    step=plain,
    model=hugging_face("MobileViTForImageClassification", "MobileViTConfig"),
)
case(
    "poolformer-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=classes(8, 3, 224, 224),
    step=bf16,
    model=hugging_face("PoolFormerForImageClassification", "PoolFormerConfig"),
)
case(
    "cvt-fp32",
    gpu="V100-16GB",
    optimizer=adamw,
    batch=classes(4, 3, 224, 224),
    step=plain,
    model=hugging_face("CvtForImageClassification", "CvtConfig", depth=[1, 2, 3]),
)
case(
    "dpt-fp32",
    gpu="RTX3090",
    optimizer=adamw,
    batch=lambda: {"pixel_values": torch.zeros(2, 3, 224, 224)},
    step=depth,
    model=hugging_face(
        "DPTForDepthEstimation",
        "DPTConfig",
        num_hidden_layers=4,
        backbone_out_indices=[0, 1, 2, 3],
        image_size=224,
        patch_size=16,
    ),
)
case(
    "hubert-amp-fp16",
    gpu="T4",
    optimizer=adamw,
    batch=classes(2, 32000, inputs="input_values"),
    step=fp16,
    model=hugging_face(
        "HubertForSequenceClassification", "HubertConfig", num_hidden_layers=2, mask_time_prob=0.0, layerdrop=0.0
    ),
)
case(
    "spectrogram-transformer-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=lambda: {"input_values": torch.zeros(4, 512, 128), "labels": torch.zeros(4, dtype=torch.long)},
    step=bf16,
    model=hugging_face("ASTForAudioClassification", "ASTConfig", num_hidden_layers=3, max_length=512),
)
case(
    "patch-time-series-fp32",
    gpu="T4",
    optimizer=adamw,
    batch=arrays(past_values=(32, 512, 7), future_values=(32, 96, 7)),
    step=plain,
    model=hugging_face(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        num_input_channels=7,
        context_length=512,
        patch_length=16,
        patch_stride=8,
        prediction_length=96,
        d_model=256,
        ffn_dim=1024,
    ),
)
