"""LSTM, GRU and plain recurrent networks: by cuDNN, or step by step with fused cells.

Sources: lstm, gru and rnn_tanh in aten/src/ATen/native/RNN.cpp (FullLayer, FullBidirectionalLayer and the cells);
_thnn_fused_lstm_cell_cuda and _thnn_fused_gru_cell in cuda/RNN.cu; _cudnn_rnn and _cudnn_rnn_backward in
cudnn/RNN.cpp. PyTorch asks where its tensors lie, which for fake ones is not the GPU, hence the overrides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from willfit._trace.cuda import autocast  # whose casts come first
from willfit._trace.cuda.composing import contiguous, empty, empty_like, operate
from willfit._trace.fake import CUDA, FakeCudaTensor, run_on_meta
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import override

_aten = torch.ops.aten
_strides = torch._prims_common.make_contiguous_strides_for
MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}  # CUDNN_RNN_RELU and so on
_GATES = {0: 1, 1: 1, 2: 4, 3: 3}
CUDNN_ALONE_KNOWS = (
    "cuDNN's recurrent networks are taken to keep for backward each layer's gates, cell states and outputs, "
    "and to need the gates of one layer as workspace: cuDNN alone knows"
)
_DTYPES = (torch.float32, torch.float64, torch.float16)

Hidden = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, Hidden, Sequence[torch.Tensor]], Hidden]


# -- cells -------------------------------------------------------------------------------------------------------------


def _gates(x: torch.Tensor, hidden: torch.Tensor, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.matmul(x, weights[0].t()), torch.matmul(hidden, weights[1].t())


def _biases(weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (weights[2], weights[3]) if len(weights) >= 4 else (None, None)


def _lstm_step(x: torch.Tensor, hidden: Hidden, weights: Sequence[torch.Tensor]) -> Hidden:
    """LSTMCell; an odd last weight projects the hidden state."""
    out, cell, _ = _aten._thnn_fused_lstm_cell(*_gates(x, hidden[0], weights), hidden[1], *_biases(weights))
    if len(weights) % 2:
        out = torch.matmul(out, weights[-1].t())
    return out, cell


def _gru_step(x: torch.Tensor, hidden: Hidden, weights: Sequence[torch.Tensor]) -> Hidden:
    """GRUCell."""
    return (_aten._thnn_fused_gru_cell(*_gates(x, hidden[0], weights), hidden[0], *_biases(weights))[0],)


def _plain_step(
    activation: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, hidden: Hidden, weights: Sequence[torch.Tensor]
) -> Hidden:
    """SimpleCell."""
    input_bias, hidden_bias = _biases(weights)
    total = torch.nn.functional.linear(hidden[0], weights[1], hidden_bias)
    own = torch.nn.functional.linear(x, weights[0], input_bias)  # held until the statement ends, as in C++
    return (activation(total.add_(own)),)


_STEPS: dict[str, Step] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": partial(_plain_step, torch.tanh),
    "rnn_relu": partial(_plain_step, torch.relu),
}


# -- networks ----------------------------------------------------------------------------------------------------------


def _is_for_cudnn(x: torch.Tensor) -> bool:
    """use_cudnn in native/RNN.cpp: bfloat16 from compute capability 8.0 on."""
    has_bfloat16 = torch.cuda.get_device_capability()[0] >= 8
    return torch._C._get_cudnn_enabled() and (x.dtype in _DTYPES or (x.dtype == torch.bfloat16 and has_bfloat16))


def _network(kind: str) -> Callable[..., Any]:
    def run(
        own: Callable[..., Any],
        x: torch.Tensor,
        hx: Any,
        params: Sequence[torch.Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        if not isinstance(x, FakeCudaTensor):
            return own(x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
        hidden: Hidden = tuple(hx) if kind == "lstm" else (hx,)
        directions = 2 if bidirectional else 1
        options = (num_layers, dropout, train, directions)
        if _is_for_cudnn(x) and x.numel():
            return _by_cudnn(kind, x, hidden, params, options, batch_first, None)
        out, *last = _step_by_step(kind, x.transpose(0, 1) if batch_first else x, hidden, params, options)
        return out.transpose(0, 1) if batch_first else out, *last

    return run


def _packed_network(kind: str) -> Callable[..., Any]:
    def run(
        own: Callable[..., Any],
        x: torch.Tensor,
        batch_sizes: torch.Tensor,
        hx: Any,
        params: Sequence[torch.Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> Any:
        if not isinstance(x, FakeCudaTensor) or not _is_for_cudnn(x):
            return own(x, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)
        hidden: Hidden = tuple(hx) if kind == "lstm" else (hx,)
        options = (num_layers, dropout, train, 2 if bidirectional else 1)
        return _by_cudnn(kind, x, hidden, params, options, False, batch_sizes)

    return run


for _kind in MODES:
    override(f"{_kind}.input")(_network(_kind))
    override(f"{_kind}.data")(_packed_network(_kind))


def _step_by_step(
    kind: str, x: torch.Tensor, hidden: Hidden, params: Sequence[torch.Tensor], options: tuple[int, float, bool, int]
) -> tuple[torch.Tensor, ...]:
    """apply_layer_stack over FullLayer or FullBidirectionalLayer."""
    num_layers, dropout, train, directions = options
    each = len(params) // (num_layers * directions)
    states = [state.unbind(0) for state in hidden]
    last: list[Hidden] = []
    for layer in range(num_layers):
        steps = list(x.unbind(0))
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            state: Hidden = tuple(parts[number] for parts in states)
            weights = params[number * each : (number + 1) * each]
            if direction:
                steps.reverse()
            made = []
            for step in steps:
                state = _STEPS[kind](step, state, weights)
                made.append(state[0])
            if direction:
                made.reverse()
            outputs.append(torch.stack(made, 0))
            last.append(state)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        del outputs
        if dropout != 0 and train and layer < num_layers - 1:
            x = torch.dropout(x, dropout, True)
    stacked = [torch.stack(parts, 0) for parts in reversed(tuple(zip(*last, strict=True)))]
    return x, *reversed(stacked)


@override("lstm_cell")
def lstm_cell(own: Callable[..., Any], x: torch.Tensor, hx: Sequence[torch.Tensor], *weights: Any, **named: Any) -> Any:
    """nn.LSTMCell."""
    if not isinstance(x, FakeCudaTensor) or named:
        return own(x, hx, *weights, **named)
    return _lstm_step(x, tuple(hx), [weight for weight in weights if weight is not None])


@override("gru_cell")
def gru_cell(own: Callable[..., Any], x: torch.Tensor, hx: torch.Tensor, *weights: Any, **named: Any) -> Any:
    """nn.GRUCell."""
    if not isinstance(x, FakeCudaTensor) or named:
        return own(x, hx, *weights, **named)
    return _gru_step(x, (hx,), [weight for weight in weights if weight is not None])[0]


@kernel("_pack_padded_sequence")
def pack_padded_sequence(call: Call) -> Any:
    """Steps with as many sequences as are long enough, one run after the other (native/PackedSequence.cpp)."""
    x, lengths, batch_first = call.args
    if batch_first:
        x = operate(call, "transpose.int", x, 0, 1)
    batch_sizes: list[int] = []
    steps = []
    for current, length in zip(range(len(lengths), 0, -1), reversed(lengths.tolist()), strict=True):
        if length > len(batch_sizes):
            rows = operate(call, "slice.Tensor", x, 0, len(batch_sizes), length)
            rows = contiguous(call, operate(call, "slice.Tensor", rows, 1, 0, current))
            steps.append(operate(call, "view", rows, [-1, *x.shape[2:]]))
            batch_sizes += [current] * (length - len(batch_sizes))
    sizes = torch.tensor(batch_sizes, dtype=torch.int64, device="cpu")
    call.recorder.own_cpu_tensor(sizes)
    return operate(call, "cat", steps), sizes


# -- fused cells -------------------------------------------------------------------------------------------------------


@kernel("_thnn_fused_lstm_cell")
def fused_lstm_cell(call: Call) -> Any:
    """The gates' activations are kept for backward."""
    gates, _, cell = call.args[:3]
    workspace = empty_like(call, gates, torch.contiguous_format)
    hidden = empty_like(call, cell, torch.contiguous_format)
    return hidden, empty_like(call, cell, torch.contiguous_format), workspace


@kernel("_thnn_fused_lstm_cell_backward_impl")
def fused_lstm_cell_backward(call: Call) -> Any:
    """One gradient for the gates, whichever weight they come from; its sum is that of the biases."""
    cell, workspace = call.args[2], call.args[4]
    gates = empty_like(call, workspace, torch.contiguous_format)
    before = empty_like(call, cell, torch.contiguous_format)
    return gates, before, operate(call, "sum.dim_IntList", gates, [0]) if call.args[5] else None


@kernel("_thnn_fused_gru_cell")
def fused_gru_cell(call: Call) -> Any:
    """Five numbers of each hidden one are kept for backward."""
    hidden = call.args[2]
    workspace = empty(call, (hidden.size(0), hidden.size(1) * 5), hidden.dtype)
    return empty_like(call, hidden, torch.contiguous_format), workspace


@kernel("_thnn_fused_gru_cell_backward")
def fused_gru_cell_backward(call: Call) -> Any:
    """Gradients of the gates for either weight, and their sums for the biases."""
    gradient, workspace, has_bias = call.args
    width = workspace.size(1) // 5
    gates = [empty(call, (workspace.size(0), 3 * width), workspace.dtype) for _ in range(2)]
    before = empty_like(call, gradient, torch.contiguous_format)
    biases = [operate(call, "sum.dim_IntList", gate, [0]) if has_bias else None for gate in gates]
    return *gates, before, *biases


# -- cuDNN -------------------------------------------------------------------------------------------------------------


def _by_cudnn(
    kind: str,
    x: torch.Tensor,
    hidden: Hidden,
    params: Sequence[torch.Tensor],
    options: tuple[int, float, bool, int],
    batch_first: bool,
    batch_sizes: torch.Tensor | None,
) -> Any:
    """_cudnn_impl."""
    num_layers, dropout, train, directions = options
    each = len(params) // (num_layers * directions)
    width = params[1].size(0) // _GATES[MODES[kind]]
    projected = hidden[0].size(2) if each in (3, 5) else 0
    out, *last = _aten._cudnn_rnn(
        x,
        list(params),
        each,
        None,
        hidden[0],
        hidden[1] if kind == "lstm" else None,
        MODES[kind],
        width,
        projected,
        num_layers,
        batch_first,
        dropout,
        train,
        directions == 2,
        batch_sizes.tolist() if batch_sizes is not None else [],
        None,
    )[: 3 if kind == "lstm" else 2]
    return out, *last


def _numel(weights: Sequence[torch.Tensor], each: int) -> int:
    """Elements of the buffer that cuDNN has its weights in: two biases are among them, also of a network without."""
    rows = 0 if each >= 4 else sum(weight.size(0) for weight in weights[::each])
    return sum(weight.numel() for weight in weights) + 2 * rows


def _layouts(buffer: torch.Tensor, weights: Sequence[torch.Tensor]) -> Iterator[tuple[Any, ...]]:
    """Where each weight has its place in the buffer."""
    offset = 0
    for weight in weights:
        yield buffer.untyped_storage(), offset, tuple(weight.shape), _strides(tuple(weight.shape))
        offset += weight.numel()


@override("_cudnn_rnn")
def cudnn_rnn_under_autocast(
    own: Callable[..., Any], x: Any, weights: Any, each: int, buffer: Any, hidden: Any, cell: Any, *rest: Any
) -> Any:
    """Everything to fp16, the weights into a new buffer (_cudnn_rnn_cast_reflatten in cudnn/AutocastRNN.cpp)."""
    if not torch.is_autocast_enabled("cuda"):
        return own(x, weights, each, buffer, hidden, cell, *rest)
    if weights[0].dtype in (torch.float32, torch.bfloat16):
        buffer = torch.zeros(_numel(weights, each), dtype=torch.float16, device=CUDA)
        views = [torch.empty(0, dtype=torch.float16, device=CUDA).set_(*place) for place in _layouts(buffer, weights)]
        weights = [view.copy_(weight) for view, weight in zip(views, weights, strict=True)]
    cell, hidden, x = (autocast.cast(each, torch.float16) for each in (cell, hidden, x))
    return own(x, weights, each, buffer, hidden, cell, *rest)


@kernel("_cudnn_rnn_flatten_weight")
def cudnn_rnn_flatten_weight(call: Call) -> Any:
    """copy_weights_to_flat_buf_views: all weights become views of one buffer, as when an nn.RNNBase is moved."""
    weights, each = call.args[:2]
    buffer = operate(call, "zeros", [_numel(weights, each)], dtype=weights[0].dtype, device=CUDA)
    for weight, place in zip(weights, _layouts(buffer, weights), strict=True):
        run_on_meta(_aten.set_.source_Storage_storage_offset, (weight, *place), {})
    return buffer


@kernel("_cudnn_rnn")
def cudnn_rnn(call: Call) -> Any:
    """Weights that lie in one buffer, or are copied to one; this and the reserve are kept for backward."""
    x, weights, each, buffer, hidden, cell = call.args[:6]
    width, projected, layers = call.args[7:10]
    batch_first, _, train, both_ways, batch_sizes = call.args[10:15]
    if batch_first and not batch_sizes:
        x = operate(call, "transpose.int", x, 0, 1)
    x = contiguous(call, x)
    directions = 2 if both_ways else 1
    out = empty(call, (*x.shape[:-1], (projected or width) * directions), x.dtype)
    last = [empty(call, state.shape if state is not None else (0,), x.dtype) for state in (hidden, cell)]
    is_flat = buffer is not None or len({weight.untyped_storage()._cdata for weight in weights}) == 1
    buffer = empty(call, (0 if is_flat else _numel(weights, each),), x.dtype)
    rows = out.numel() // ((projected or width) * directions)
    gates = _GATES[call.args[6]]
    call.recorder.assume(CUDNN_ALONE_KNOWS)
    workspace = rows * directions * gates * width * x.element_size()
    with call.temporary(workspace):
        kept = rows * directions * layers * (gates + 2) * width * x.element_size()
        reserve = empty(call, (kept if train else 0,), torch.uint8)
    if batch_first and not batch_sizes:
        out = operate(call, "transpose.int", out, 0, 1)
    return out, *last, reserve, buffer


@kernel("_cudnn_rnn_backward")
def cudnn_rnn_backward(call: Call) -> Any:
    """Gradients of the input and the states, and of all weights in one buffer, of which they are views."""
    x, weights, each, _, hidden, cell = call.args[:6]
    given_or_zeros = [
        operate(call, "zeros_like", given, memory_format=torch.contiguous_format) if of_it is None else of_it
        for given, of_it in zip((call.args[6], hidden, cell), call.args[7:10], strict=True)
        if given is not None
    ]
    gradient = given_or_zeros[0]
    mode, width, batch_first = call.args[10], call.args[11], call.args[14]
    both_ways, batch_sizes = call.args[17:19]
    wanted = call.args[21]
    if batch_first and not batch_sizes:
        x = operate(call, "transpose.int", x, 0, 1)
        gradient = operate(call, "transpose.int", gradient, 0, 1)
    copies = [contiguous(call, x), contiguous(call, gradient)]
    dx = empty(call, x.shape, x.dtype)
    states = [None if state is None else empty(call, state.shape, x.dtype) for state in (hidden, cell)]
    workspace = x.numel() // x.size(-1) * (2 if both_ways else 1) * _GATES[mode] * width * x.element_size()
    with call.temporary(workspace):
        pass
    del copies
    gradients: list[list[Any]] = []
    if wanted[3]:
        sizes = [weight.numel() for weight in weights]
        copies = [contiguous(call, x)]
        buffer = empty(call, (_numel(weights, each),), x.dtype)
        with call.temporary(workspace):
            if each >= 4:
                parts = operate(call, "split_with_sizes", buffer, sizes)
                shaped = zip(parts, weights, strict=True)
                gradients = [[operate(call, "view", part, list(weight.shape)) for part, weight in shaped]]
            else:  # cuDNN's, with biases, are more than the network's
                gradients = [[empty(call, weight.shape, weight.dtype) for weight in weights]]
        del buffer
        del copies
    if batch_first and not batch_sizes:
        dx = operate(call, "transpose.int", dx, 0, 1)
    return dx, *states, *(gradients or [[None] * len(weights)])
