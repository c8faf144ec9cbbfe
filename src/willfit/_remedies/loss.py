"""Cross entropy in chunks: the logits of all tokens are never there in float32, nor the softmax of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from willfit._remedies.remedy import Change, NotApplicable, Situation

_LEAST_VOCABULARY = 8192


def chunked_loss(situation: Situation) -> Iterator[Change]:
    """For causal language models of Transformers, which take another loss function."""
    model: Any = situation.job.model
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 0) or 0
    own = getattr(model, "loss_function", None)
    if getattr(own, "__name__", "") != "ForCausalLMLoss" or situation.job.loss is not None:
        raise NotApplicable("the loss is not that of a causal language model of Transformers")
    if vocabulary < _LEAST_VOCABULARY:
        raise NotApplicable(f"the vocabulary is small: {vocabulary} tokens")
    yield Change(
        name="chunked-loss",
        title="cross entropy in chunks of 1024 tokens",
        disruption="same results",
        cost="the same results; the loss is computed twice, which takes little time",
        code=_CODE,
        order=30,
    )


_CODE = """\
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

def loss_of_chunk(logits, labels):
    return cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")

def loss_function(logits, labels, vocab_size, num_items_in_batch=None, shift_labels=None, **kwargs):
    labels = (pad(labels, (0, 1), value=-100)[..., 1:] if shift_labels is None else shift_labels).reshape(-1)
    chunks = zip(logits.reshape(-1, vocab_size).split(1024), labels.split(1024))
    total = sum(checkpoint(loss_of_chunk, *chunk, use_reentrant=False) for chunk in chunks)
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)

model.loss_function = loss_function
"""
