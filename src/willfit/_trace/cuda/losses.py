"""Losses on CUDA: the elementwise loss and how it is reduced.

Source: aten/src/ATen/native/Loss.cpp (mse_loss_out, smooth_l1_loss_out, huber_loss, soft_margin_loss_out,
binary_cross_entropy_with_logits), aten/src/ATen/native/cuda/Loss.cu (binary_cross_entropy_cuda), MultiMarginLoss.cu,
MultiLabelMarginCriterion.cu, NLLLoss2d.cu and LossCTC.cu beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from willfit._trace.cuda.composing import contiguous, empty, empty_like, operate
from willfit._trace.cuda.reduction import accumulate_type, iteration, parts, workspace
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.kernels import Call, kernel, nbytes
from willfit._trace.overrides import override
from willfit._trace.recorder import Recorder

_NONE, _MEAN, _SUM = range(3)


def _as_scalar(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor.resize_({})``: the storage stays as large as it was."""
    return call.recorder.run(torch.ops.aten.as_strided.default, (tensor, (), ()), {})  # type: ignore[no-any-return]


def _reduce_into_output(call: Call, tensor: torch.Tensor, reduction: int) -> None:
    """mean_out and sum_out over everything: buffer and semaphores."""
    if tensor.numel() == 0:
        return
    vector = 8 if reduction == _SUM and tensor.itemsize == 2 else 4
    recorder = call.recorder
    for part in parts(iteration(tensor, range(tensor.dim()), tensor.itemsize)):
        sizes = workspace(
            part,
            tensor.itemsize,
            accumulate_type(tensor.dtype),
            recorder.compute_capability,
            recorder.multiprocessors,
            vector,
        )
        with call.temporary(*sizes):
            pass


def _reduced(call: Call, loss: torch.Tensor, reduction: int) -> torch.Tensor:
    """apply_loss_reduction."""
    if reduction == _NONE:
        return loss
    return operate(call, "mean" if reduction == _MEAN else "sum", loss)  # type: ignore[no-any-return]


def _elementwise(call: Call) -> torch.Tensor:
    """The output of a binary iteration over input and target."""
    return operate(call, "sub.Tensor", *call.args[:2])  # type: ignore[no-any-return]


@kernel("mse_loss", "smooth_l1_loss")
def structured(call: Call) -> Any:
    """The output is allocated with one element for each of the input, and shrunk: its storage stays as large."""
    out = _elementwise(call)
    reduction = call.argument("reduction")
    if reduction == _NONE:
        return out
    loss = _elementwise(call)
    _reduce_into_output(call, loss, reduction)
    del loss
    return _as_scalar(call, out)


@kernel("mse_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward")
def structured_backward(call: Call) -> Any:
    """A contiguous gradient, whatever the input is like (mse_loss_backward in Loss.cpp)."""
    return empty_like(call, call.args[1], torch.contiguous_format)


@kernel("huber_loss")
def huber_loss(call: Call) -> Any:
    """The elementwise loss is given up after the reduction."""
    return _reduced(call, _elementwise(call), call.argument("reduction"))


@kernel("binary_cross_entropy")
def binary_cross_entropy(call: Call) -> Any:
    """The reduced loss is copied into the storage of the elementwise one."""
    return _reduced_in_place(call, empty_like(call, call.args[0]))


@kernel("soft_margin_loss")
def soft_margin_loss(call: Call) -> Any:
    """As binary_cross_entropy."""
    return _reduced_in_place(call, operate(call, "neg", call.args[0]))


def _reduced_in_place(call: Call, loss: torch.Tensor) -> torch.Tensor:
    reduction = call.argument("reduction")
    if reduction == _NONE:
        return loss
    _reduced(call, loss, reduction)
    return _as_scalar(call, loss)


@kernel("soft_margin_loss_backward")
def soft_margin_loss_backward(call: Call) -> Any:
    """``z = exp(-target * input)`` first."""
    x, target = call.args[1:3]
    negative = operate(call, "neg", target)
    product = operate(call, "mul.Tensor", negative, x)
    z = operate(call, "exp", product)
    del product
    del negative
    return operate(call, "mul.Tensor", target, z)


@kernel("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(call: Call) -> Any:
    """``(1 - target) * input - log_sigmoid(input) * log_weight``, in place where it can be."""
    x, target = call.args[:2]
    positive = call.argument("pos_weight")
    sigmoid = empty_like(call, x)
    if positive is not None:
        shifted = operate(call, "sub.Scalar", positive, 1)
        weight = operate(call, "mul.Tensor", shifted, target)
        del shifted
        del weight
    loss = operate(call, "rsub.Scalar", target, 1)
    reduced = _reduced(call, loss, call.argument("reduction"))
    del loss
    del sigmoid
    return reduced


@kernel("nll_loss_forward", "nll_loss_backward")
def nll_loss(call: Call) -> Any:
    """Input, target and weights are copied where they are not contiguous, once the outputs are there."""
    out = call.run()
    given = (call.argument(name) for name in ("self", "target", "weight"))
    with call.temporary(*(nbytes(tensor) for tensor in given if tensor is not None and not tensor.is_contiguous())):
        pass
    return out


@kernel("nll_loss2d_forward")
def nll_loss2d(call: Call) -> Any:
    """The total weight is allocated before the output; what is not contiguous is copied meanwhile."""
    out = call.run(order=(1, 0))
    copied = [tensor for tensor in call.args[:2] if not tensor.is_contiguous()]
    with call.temporary(*map(nbytes, copied)):
        pass
    return out


@kernel("multi_margin_loss")
def multi_margin_loss(call: Call) -> Any:
    """A loss for each sample, summed."""
    x, reduction = call.args[0], call.argument("reduction")
    samples = x.size(0) if x.dim() == 2 else 1
    out = empty(call, (samples,) if reduction == _NONE and x.dim() == 2 else (), x.dtype)
    copy = contiguous(call, x)
    if reduction != _NONE and x.dim() == 2:
        losses = empty(call, (samples,), x.dtype)
        _reduce_into_output(call, losses, _SUM)
        del losses
    del copy
    return out


@kernel("multi_margin_loss_backward", "multilabel_margin_loss_backward")
def margin_loss_backward(call: Call) -> Any:
    """The input's gradient, then copies of what is not contiguous."""
    out = empty_like(call, call.args[1], torch.contiguous_format)
    copies = [contiguous(call, tensor) for tensor in call.args[1:3]]
    del copies
    return out


@kernel("multilabel_margin_loss_forward")
def multilabel_margin_loss(call: Call) -> Any:
    """What is a target, for backward, and a loss for each sample, summed."""
    x, target, reduction = call.args[:3]
    copies = [contiguous(call, tensor) for tensor in (x, target)]
    is_target = empty(call, target.shape, x.dtype)
    samples = (x.size(0),) if x.dim() == 2 else ()
    losses = empty(call, samples, x.dtype)
    if reduction == _NONE or not samples:
        return losses, is_target
    out = empty(call, (), x.dtype)
    _reduce_into_output(call, losses, _SUM)
    del losses
    del copies
    return out, is_target


# -- connectionist temporal classification -----------------------------------------------------------------------------


@override("ctc_loss.Tensor")
def ctc_loss_of_tensors(
    own: Callable[..., Any],
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *options: Any,
) -> Any:
    """Lengths are read as numbers; PyTorch does not do that for tensor subclasses, which a fake tensor is one of."""
    recorder = torch._C._get_dispatch_mode(Recorder._mode_key)
    if not isinstance(recorder, Recorder):
        return own(log_probs, targets, input_lengths, target_lengths, *options)
    longest = targets.size(1) if targets.dim() == 2 else targets.numel()
    lengths = [
        _lengths(recorder, input_lengths, log_probs.size(0)),
        _lengths(recorder, target_lengths, longest),
    ]
    return torch.ops.aten.ctc_loss.IntList(log_probs, targets, *lengths, *options)


def _lengths(recorder: Recorder, lengths: torch.Tensor, longest: int) -> list[int]:
    """The numbers in a tensor; the longest that fit where they are on the GPU and not known."""
    known = recorder.known.of(lengths) if isinstance(lengths, FakeCudaTensor) else lengths
    if known is not None:
        return known.tolist()
    recorder.assume("CTC loss: lengths are not known: taken as the longest that fit")
    return [longest] * lengths.numel()


@kernel("_ctc_loss")
def ctc_loss(call: Call) -> Any:
    """Forward variables of each batch, time and state; lengths and offsets are copied to the GPU."""
    log_probs, _, _, target_lengths = call.args[:4]
    time, batch = log_probs.size(0), log_probs.size(1)
    states = 2 * max(target_lengths, default=0) + 1
    lengths = [call.take(8 * batch) for _ in range(3)]
    alpha = empty(call, (batch, time, states), log_probs.dtype)
    loss = empty(call, (batch,), log_probs.dtype)
    call.give_back(lengths[1], lengths[0], lengths[2])
    return loss, alpha


@kernel("_ctc_loss_backward")
def ctc_loss_backward(call: Call) -> Any:
    """Backward variables as large as the forward ones."""
    log_probs, alpha = call.args[1], call.args[6]
    lengths = [call.take(8 * log_probs.size(1)) for _ in range(3)]
    beta = call.take(nbytes(alpha))
    gradient = empty_like(call, log_probs, torch.contiguous_format)
    call.give_back(beta, lengths[1], lengths[0], lengths[2])
    return gradient
