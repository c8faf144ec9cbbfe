"""Rules for single CPU kernels: what they take besides their outputs, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from willfit._trace.kernels import OperatorCall
from willfit._trace.overrides import overload

if TYPE_CHECKING:
    from willfit._trace.cpu.recorder import CpuRecorder


class CpuCall(OperatorCall):
    """A call whose rule decides when its outputs are given."""

    __slots__ = ()
    recorder: CpuRecorder

    def run(self) -> Any:
        """The outputs of the operator, given now."""
        return self.recorder.run(self.func, self.args, self.kwargs)

    def as_composite(self) -> Any:
        """The operator by the others that it is made of."""
        return self.recorder.run_composite(self.func, self.args, self.kwargs)

    def on_meta(self) -> Any:
        """What the outputs will be like."""
        return self.recorder.on_meta(self.func, self.args, self.kwargs)

    def born(self, meta: torch.Tensor) -> torch.Tensor:
        """One of the outputs, given now."""
        return self.recorder.born(meta, self.func)


CpuRule = Callable[[CpuCall], Any]

_rules: dict[str, CpuRule] = {}


def cpu_kernel(*names: str) -> Callable[[CpuRule], CpuRule]:
    """Register a rule for operators such as ``"native_batch_norm"`` of aten."""

    def register(rule: CpuRule) -> CpuRule:
        for name in names:
            assert name not in _rules, f"two rules for aten::{name} on the CPU"
            _rules[name] = rule
        return rule

    return register


def cpu_rules() -> dict[Any, CpuRule]:
    """Every rule by operator, for those that this version of PyTorch has."""
    from willfit._trace.cpu import (  # noqa: F401 - importing them registers the rules
        attention,
        convolution,
        indexing,
        normalization,
        pointwise,
        pooling,
        products,
    )

    return {op: rule for name, rule in _rules.items() if (op := overload(name)) is not None}
