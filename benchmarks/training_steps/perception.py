"""Vision, speech and image-with-text models of Hugging Face."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training_steps.case import (
    adamw,
    arrays,
    bf16,
    case,
    classes,
    fp16,
    hugging_face,
    optim,
    plain,
    step,
)


def resnet() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(depths=[1, 1, 1, 1], out_features=["stage4"])


def detection(model: Any, optimizer: Any, batch: dict[str, torch.Tensor]) -> None:
    out = model(**batch)
    (out.logits.logsumexp(-1).mean() + out.pred_boxes.abs().mean()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()


# -- vision ------------------------------------------------------------------------------------------------------------

case(
    "deit-amp-fp16",
    gpu="T4",
    optimizer=adamw,
    batch=classes(16, 3, 224, 224),
    step=fp16,
    model=hugging_face("DeiTForImageClassification", "DeiTConfig", num_hidden_layers=4),
)
case(
    "swin-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=classes(8, 3, 224, 224),
    step=bf16,
    model=hugging_face("SwinForImageClassification", "SwinConfig", depths=[2, 2, 2, 2]),
)
case(
    "swin-fp32-keep-output",
    gpu="T4",
    optimizer=adamw,
    batch=classes(4, 3, 224, 224),
    step=step(keep=True),
    model=hugging_face("SwinForImageClassification", "SwinConfig", depths=[1, 1, 2, 1], num_labels=1000),
)
case(
    "convnext-amp-fp16",
    gpu="RTX3090",
    optimizer=adamw,
    batch=classes(16, 3, 160, 160),
    step=fp16,
    model=hugging_face("ConvNextForImageClassification", "ConvNextConfig", depths=[2, 2, 3, 2], num_labels=10),
)
case(
    "segformer-fp32",
    gpu="T4",
    optimizer=adamw,
    step=plain,
    batch=lambda: {"pixel_values": torch.zeros(4, 3, 256, 256), "labels": torch.zeros(4, 256, 256, dtype=torch.long)},
    model=hugging_face("SegformerForSemanticSegmentation", "SegformerConfig", num_labels=19),
)
case(
    "dinov2-bf16",
    gpu="H200",
    optimizer=adamw,
    batch=lambda: {
        "pixel_values": torch.zeros(8, 3, 224, 224, dtype=torch.bfloat16),
        "labels": torch.zeros(8, dtype=torch.long),
    },
    step=plain,
    model=hugging_face("Dinov2ForImageClassification", "Dinov2Config", torch.bfloat16, num_hidden_layers=4),
)
case(
    "mobilenet-v2-fp32",
    gpu="T4",
    optimizer=optim("SGD", lr=0.1, momentum=0.9),
    batch=classes(16, 3, 192, 192),
    step=plain,
    model=hugging_face("MobileNetV2ForImageClassification", "MobileNetV2Config"),
)
case(
    "regnet-amp-fp16-channels-last",
    gpu="V100-16GB",
    optimizer=optim("SGD", lr=0.1),
    step=fp16,
    batch=lambda: {
        "pixel_values": torch.zeros(16, 3, 160, 160).contiguous(memory_format=torch.channels_last),
        "labels": torch.zeros(16, dtype=torch.long),
    },
    model=lambda: hugging_face("RegNetForImageClassification", "RegNetConfig", depths=[1, 2, 3, 1])().to(
        memory_format=torch.channels_last
    ),
)
case(
    "beit-amp-bf16",
    gpu="RTX4090",
    optimizer=adamw,
    batch=classes(8, 3, 224, 224),
    step=bf16,
    model=hugging_face(
        "BeitForImageClassification", "BeitConfig", num_hidden_layers=3, use_relative_position_bias=True
    ),
)
case(
    "vit-mae-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=arrays(pixel_values=(16, 3, 224, 224)),
    step=bf16,
    model=hugging_face("ViTMAEForPreTraining", "ViTMAEConfig", num_hidden_layers=3, decoder_num_hidden_layers=2),
)
case(
    "detr-decoder-fp32",
    gpu="RTX3090",
    optimizer=adamw,
    batch=arrays(pixel_values=(2, 3, 320, 320)),
    step=lambda m, o, b: detection(m, o, b),
    note="without DETR's matching, which runs on the CPU",
    model=lambda: hugging_face(
        "DetrForObjectDetection",
        "DetrConfig",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=resnet(),
        encoder_layers=2,
        decoder_layers=2,
    )(),
)

# -- speech, image and text --------------------------------------------------------------------------------------------

case(
    "wav2vec2-ctc-fp32",
    gpu="A100-40GB",
    optimizer=adamw,
    step=plain,
    batch=lambda: {"input_values": torch.zeros(4, 32000), "labels": torch.ones(4, 20, dtype=torch.long)},
    model=hugging_face(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        num_hidden_layers=3,
        mask_time_prob=0.0,
        layerdrop=0.0,
        ctc_zero_infinity=True,
    ),
)
case(
    "wav2vec2-classify-amp-fp16",
    gpu="V100-16GB",
    optimizer=adamw,
    step=fp16,
    batch=classes(4, 24000, inputs="input_values"),
    model=hugging_face(
        "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", num_hidden_layers=3, mask_time_prob=0.0, layerdrop=0.0
    ),
)
case(
    "whisper-amp-fp16",
    gpu="T4",
    optimizer=adamw,
    step=fp16,
    batch=lambda: {"input_features": torch.zeros(2, 80, 3000), "labels": torch.zeros(2, 64, dtype=torch.long)},
    model=hugging_face(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        encoder_layers=2,
        decoder_layers=2,
        d_model=384,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        use_cache=False,
    ),
)
case(
    "clip-contrastive-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=lambda: {"input_ids": torch.zeros(16, 77, dtype=torch.long), "pixel_values": torch.zeros(16, 3, 224, 224)},
    step=lambda m, o, b: bf16(lambda **batch: m(**batch, return_loss=True), o, b),
    model=lambda: hugging_face(
        "CLIPModel", "CLIPConfig", text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 3}
    )(),
)
case(
    "blip-caption-fp32",
    gpu="RTX4090",
    optimizer=adamw,
    step=plain,
    batch=lambda: {
        "input_ids": torch.zeros(4, 40, dtype=torch.long),
        "labels": torch.zeros(4, 40, dtype=torch.long),
        "pixel_values": torch.zeros(4, 3, 224, 224),
    },
    model=lambda: hugging_face(
        "BlipForConditionalGeneration",
        "BlipConfig",
        vision_config={"num_hidden_layers": 2, "image_size": 224},
        text_config={"num_hidden_layers": 2, "vocab_size": 30524},
    )(),
)
