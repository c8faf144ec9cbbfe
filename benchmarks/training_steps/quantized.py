"""bitsandbytes, alone and under Transformers and peft: weights in 4 and 8 bits, optimizers with 8-bit or paged state.

Models are built as ``from_pretrained`` builds them, but for the checkpoint: bitsandbytes' layers come in the place of
linear ones, and weights of the checkpoint's dtype in them, which bitsandbytes quantizes on the way to the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from training_steps.case import (
    Batch,
    Classifier,
    Step,
    adamw,
    bf16,
    case,
    classes,
    fp16,
    hugging_face,
    plain,
    step,
    tokens,
    trainable,
    with_loss,
    xy,
)
from training_steps.decoders import GROUPED, decoder
from training_steps.images import CNN
from training_steps.zoo import llama

Build = Callable[[], nn.Module]


def bitsandbytes() -> Any:
    """Imported when a case is built: importing it starts CUDA, and each case is measured in a process of its own."""
    with torch.device("cpu"):  # importing it makes tensors
        import bitsandbytes

    return bitsandbytes


# -- models ------------------------------------------------------------------------------------------------------------


def loaded(build: Build, packed: bool = False, **options: Any) -> Build:
    """A model of Transformers as ``from_pretrained(quantization_config=BitsAndBytesConfig(**options))`` makes it.

    Its weights are still whole, and quantized when they get to the GPU; with ``packed`` they are quantized already.
    """

    def make() -> nn.Module:
        model: Any = build()
        layers = bitsandbytes().nn
        with torch.device("cpu"):
            from transformers import BitsAndBytesConfig
            from transformers.quantizers.auto import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**options), pre_quantized=False)
        before = dict(model.named_modules())
        quantizer.preprocess_model(model, device_map=None)
        for name, layer in model.named_modules():
            if isinstance(layer, (layers.Linear4bit, layers.Linear8bitLt)):
                old: Any = before[name]
                weight = old.weight.detach() if isinstance(old, nn.Linear) else old.weight.detach().T.contiguous()
                attributes = {key: value for key, value in vars(layer.weight).items() if key not in ("CB", "SCB")}
                layer.weight = type(layer.weight)(weight, requires_grad=False, **attributes)
                layer.bias = old.bias
                if packed:
                    with torch.device("cpu"):  # bitsandbytes computes a table on the way
                        layer.weight._quantize("meta")
        quantizer.postprocess_model(model)
        return model.train()

    return make


def adapted(build: Build, rank: int = 16, targets: Any = "all-linear", dropout: float = 0.0, **options: Any) -> Build:
    """Prepared and wrapped as QLoRA does; ``checkpointing`` is its ``use_reentrant``, None for none of it."""
    checkpointing = options.pop("checkpointing", None)

    def make() -> nn.Module:
        model = build()
        with torch.device("cpu"):
            from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model, checkpointing is not None, {"use_reentrant": bool(checkpointing)}, auto_clear_cache=False
        )
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=targets,
            lora_dropout=dropout,
            task_type="CAUSAL_LM",
            **options,
        )
        return get_peft_model(model, config)

    return make


NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}
NF4_HALF = NF4 | {"bnb_4bit_compute_dtype": torch.float16}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.bfloat16}
INT8 = {"load_in_8bit": True}

LLAMA = decoder("Llama", torch.bfloat16, **GROUPED, vocab_size=32000)
LLAMA_HALF = decoder("Llama", torch.float16, **GROUPED, vocab_size=32000)
MISTRAL = decoder("Mistral", torch.bfloat16, **GROUPED, vocab_size=32000, sliding_window=4096)
QWEN = decoder("Qwen2", torch.bfloat16, **GROUPED, vocab_size=50021)
OPT = decoder(
    "OPT", torch.float16, hidden_size=768, ffn_dim=3072, num_hidden_layers=4, num_attention_heads=12, vocab_size=50272
)
GPT2 = hugging_face("GPT2LMHeadModel", "GPT2Config", n_layer=6, use_cache=False)
BERT = hugging_face(
    "BertForSequenceClassification", "BertConfig", num_hidden_layers=4, hidden_size=512, num_attention_heads=8
)


def layers_of(kind: str, *sizes: int, embedding: str = "", **options: Any) -> Build:
    """A perceptron of bitsandbytes' layers; between two of PyTorch's, or over one of its embeddings."""

    def build() -> nn.Module:
        kinds = bitsandbytes().nn
        hidden = [getattr(kinds, kind)(a, b, **options) for a, b in pairwise(sizes[1:-1])]
        first = getattr(kinds, embedding)(sizes[0], sizes[1]) if embedding else nn.Linear(sizes[0], sizes[1])
        pooled = [Mean()] if embedding else []
        network = nn.Sequential(first, *(part for each in hidden for part in (each, nn.GELU())), *pooled)
        return Classifier(network.append(nn.Linear(sizes[-2], sizes[-1])))

    return build


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


class Tagger(nn.Module):
    """Tokens by a StableEmbedding, which bitsandbytes asks to use where its optimizers train embeddings."""

    def __init__(self, vocabulary: int = 30000, width: int = 256) -> None:
        super().__init__()
        self.embedding = bitsandbytes().nn.StableEmbedding(vocabulary, width)
        self.encoder = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.outputs = nn.Linear(width, 50)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        scores = self.outputs(self.encoder(self.embedding(input_ids)))
        return with_loss(nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten()))


def token_classes(batch: int, length: int) -> Callable[[], Batch]:
    return lambda: {
        "x": torch.zeros(batch, length, dtype=torch.long),
        "y": torch.zeros(batch, dtype=torch.long),
    }


# -- optimizers and steps ----------------------------------------------------------------------------------------------


def bnb(name: str, lr: float = 1e-4, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: getattr(bitsandbytes().optim, name)(trainable(model), lr=lr, **options)


def as_trainer(name: str) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """As Transformers' Trainer makes it: no decay for biases and norms, 32-bit state for embeddings."""

    def build(model: nn.Module) -> torch.optim.Optimizer:
        decayed = [p for n, p in model.named_parameters() if p.requires_grad and "norm" not in n and "bias" not in n]
        others = [p for n, p in model.named_parameters() if p.requires_grad and ("norm" in n or "bias" in n)]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        optimizers = bitsandbytes().optim
        optimizer = getattr(optimizers, name)(groups, lr=2e-5, betas=(0.9, 0.999), eps=1e-8)
        manager = optimizers.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
        return optimizer

    return build


def adafactor(model: nn.Module) -> torch.optim.Optimizer:
    with torch.device("cpu"):
        from transformers import Adafactor
    return Adafactor(trainable(model), lr=1e-3, relative_step=False, scale_parameter=False)


trainer: Step = step(dtype=torch.bfloat16, accumulate=2, clip=1.0)

# -- 4 bits ------------------------------------------------------------------------------------------------------------

case(
    "qlora-llama-nf4-amp-bf16",
    gpu="A100-80GB",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=bf16,
    model=adapted(loaded(LLAMA, **NF4)),
)
case(
    "qlora-llama-nf4-checkpointing-paged",
    gpu="T4",
    optimizer=bnb("PagedAdamW8bit"),
    batch=tokens(2, 512),
    step=fp16,
    model=adapted(loaded(LLAMA_HALF, **NF4_HALF), 64, dropout=0.1, checkpointing=True),
)
case(
    "qlora-llama-fp4-plain",
    gpu="RTX4090",
    optimizer=bnb("AdamW8bit"),
    batch=tokens(1, 1024),
    step=plain,
    model=adapted(loaded(LLAMA, **FP4)),
)
case(
    "qlora-mistral-nf4-packed-checkpointing",
    gpu="H100-80GB",
    optimizer=bnb("PagedAdamW"),
    batch=tokens(2, 1000, mask=True),
    step=step(dtype=torch.bfloat16, accumulate=2, clip=0.3),
    model=adapted(loaded(MISTRAL, packed=True, **NF4), 32, ["q_proj", "v_proj"], 0.05, checkpointing=False),
)
case(
    "qlora-qwen2-fp4-short",
    gpu="RTX4090",
    optimizer=bnb("Lion8bit"),
    batch=tokens(1, 100),
    step=bf16,
    model=adapted(loaded(QWEN, **(FP4 | {"bnb_4bit_use_double_quant": True})), 8),
)
case(
    "qlora-llama-nf4-short",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(1, 48),
    step=fp16,
    model=adapted(loaded(LLAMA_HALF, **NF4_HALF), 8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
)
case(
    "qlora-llama-nf4-packed-dora",
    gpu="A100-40GB",
    optimizer=bnb("PagedLion8bit"),
    batch=tokens(2, 256),
    step=bf16,
    model=adapted(loaded(LLAMA, packed=True, **NF4), 16, ["q_proj", "down_proj"], use_dora=True),
)
case(
    "qlora-llama-nf4-stored-as-bf16",
    gpu="H100-80GB",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=bf16,
    model=adapted(loaded(LLAMA, **(NF4 | {"bnb_4bit_quant_storage": torch.bfloat16})), 16, use_rslora=True),
)
case(
    "qlora-gpt2-nf4-fp32-checkpoint",
    gpu="T4",
    optimizer=bnb("AdamW"),
    batch=tokens(4, 256),
    step=fp16,
    model=adapted(loaded(GPT2, **NF4_HALF), 16, ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
)
case(
    "linear4bit-odd-shapes",
    gpu="T4",
    optimizer=adamw,
    batch=xy(37, 300),
    step=plain,
    model=layers_of("LinearNF4", 300, 1000, 777, 1001, 10, compute_dtype=torch.float16),
)
case(
    "embedding4bit-linear-fp4",
    gpu="A100-40GB",
    optimizer=bnb("RMSprop8bit"),
    batch=token_classes(8, 200),
    step=bf16,
    model=layers_of("LinearFP4", 20000, 512, 2048, 512, 10, embedding="EmbeddingNF4"),
)

case(
    "llama-8b-qlora-bf16",
    gpu="RTX4090",
    optimizer=bnb("PagedAdamW8bit"),
    batch=tokens(1, 512),
    step=bf16,
    model=adapted(loaded(llama("8b"), packed=True, **NF4), checkpointing=False),
)
case(
    "llama-8b-qlora-fp16",
    gpu="T4",
    optimizer=bnb("PagedAdamW8bit"),
    batch=tokens(1, 512),
    step=fp16,
    model=adapted(loaded(llama("8b", torch.float16), packed=True, **NF4_HALF), checkpointing=False),
)

# -- 8 bits ------------------------------------------------------------------------------------------------------------

case(
    "int8-lora-opt-fp16",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(4, 256),
    step=fp16,
    model=adapted(loaded(OPT, **INT8), 16, ["q_proj", "v_proj"], 0.05),
)
case(
    "int8-lora-llama-checkpointing-paged",
    gpu="RTX4090",
    optimizer=bnb("PagedAdamW8bit"),
    batch=tokens(2, 512),
    step=bf16,
    model=adapted(loaded(LLAMA, **INT8), checkpointing=False),
)
case(
    "int8-lora-llama-packed-no-threshold",
    gpu="A100-80GB",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=plain,
    model=adapted(loaded(LLAMA, packed=True, **(INT8 | {"llm_int8_threshold": 0.0}))),
)
case(
    "linear8bit-trained",
    gpu="T4",
    optimizer=bnb("SGD8bit", momentum=0.9),
    batch=xy(64, 512),
    step=plain,
    model=layers_of("Linear8bitLt", 512, 1024, 2048, 1022, 10, threshold=6.0),
)
case(
    "embedding8bit-linear8bit",
    gpu="H100-80GB",
    optimizer=adamw,
    batch=token_classes(8, 200),
    step=bf16,
    model=layers_of("Linear8bitLt", 20000, 512, 2048, 510, 10, embedding="Embedding8bit", has_fp16_weights=False),
)

# -- optimizers --------------------------------------------------------------------------------------------------------

case(
    "llama-bf16-adamw8bit",
    gpu="A100-80GB",
    optimizer=bnb("AdamW8bit"),
    batch=tokens(2, 512),
    step=plain,
    model=LLAMA,
)
case(
    "gpt2-adamw8bit-amp-bf16-trainer",
    gpu="RTX4090",
    optimizer=as_trainer("AdamW8bit"),
    batch=tokens(4, 256),
    step=trainer,
    model=GPT2,
)
case(
    "bert-paged-adamw-amp-fp16-clip",
    gpu="T4",
    optimizer=bnb("PagedAdamW32bit"),
    batch=tokens(8, 128, mask=True, labels=(8,)),
    step=step(dtype=torch.float16, scale=True, clip=1.0),
    model=BERT,
)
case("cnn-lion8bit", gpu="T4", optimizer=bnb("Lion8bit"), batch=xy(16, 3, 64, 64), step=plain, model=CNN)
case(
    "cnn-sgd8bit-amp-fp16",
    gpu="H100-80GB",
    optimizer=bnb("SGD8bit", momentum=0.9),
    batch=xy(16, 3, 64, 64),
    step=fp16,
    model=CNN,
)
case(
    "tagger-stable-embedding-adam8bit",
    gpu="A100-40GB",
    optimizer=bnb("Adam8bit"),
    batch=tokens(8, 128),
    step=plain,
    model=Tagger,
)
case(
    "tagger-lamb",
    gpu="T4",
    optimizer=bnb("LAMB"),
    batch=tokens(8, 128),
    step=plain,
    model=Tagger,
)
case(
    "vit-ademamix8bit-amp-bf16",
    gpu="H100-80GB",
    optimizer=bnb("AdEMAMix8bit"),
    batch=classes(8, 3, 224, 224),
    step=bf16,
    model=hugging_face("ViTForImageClassification", "ViTConfig", num_hidden_layers=4, num_labels=10),
)
case(
    "qlora-llama-nf4-adafactor",
    gpu="A100-80GB",
    optimizer=adafactor,
    batch=tokens(2, 256),
    step=bf16,
    model=adapted(loaded(LLAMA, **NF4), 64),
)
