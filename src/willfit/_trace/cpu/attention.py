"""Flash attention on the CPU.

Source: cpu_flash_attention and cpu_flash_attention_backward in aten/src/ATen/native/cpu/FlashAttentionKernel.cpp, and
_scaled_dot_product_flash_attention_cpu_backward in aten/src/ATen/native/transformers/attention.cpp. The buffers of the
threads, of some ten kB each, are left out.
"""

from __future__ import annotations

from typing import Any

from willfit._trace.cpu.kernels import CpuCall, cpu_kernel
from willfit._trace.kernels import nbytes


@cpu_kernel("_safe_softmax")
def safe_softmax(call: CpuCall) -> Any:
    """Rows that are masked as a whole are looked for, by other operators."""
    return call.as_composite()


@cpu_kernel("_scaled_dot_product_flash_attention_for_cpu_backward")
def flash_attention_backward(call: CpuCall) -> Any:
    """Gradients of query, key and value; that of the output is made contiguous where it is not."""
    gradient = call.args[0]
    out = call.run()
    if not gradient.is_contiguous():
        with call.temporary(nbytes(gradient)):
            pass
    return out
