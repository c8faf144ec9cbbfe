"""A tensor that stands in for one on a GPU: meta inside (no values, no memory), ``cuda:0`` to whoever asks.

PyTorch's C++ sees a meta tensor, so autograd and the dispatcher work on every machine, whichever build of
PyTorch is installed; Python code, the user's model and torch.optim included, sees a CUDA tensor.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

OVERRIDES_KEY: Any = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]
"""The dispatch key of willfit's overrides: no backend of PyTorch uses it by itself."""

CUDA = torch.device("cuda", 0)
META = torch.device("meta")


class FakeCudaTensor(torch.Tensor):
    """A CUDA tensor without values. Made by the recorder alone."""

    in_kernel: ClassVar[bool] = False
    """True while PyTorch computes shapes: its own Python then has to see the meta tensor that this is."""

    _willfit_known: Any = None
    """Its values, where they are known (known.py)."""

    _willfit_class: type | None = None
    """The class of the parameter that it stands for, where that is one of its own."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def wrap(meta: torch.Tensor, requires_grad: bool = False) -> FakeCudaTensor:
        """A fake tensor over the storage of ``meta``."""
        return torch.Tensor._make_subclass(FakeCudaTensor, meta, requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(
            f"a fake tensor of willfit was used after the prediction had ended (in {func}); "
            "the training step keeps tensors in an object that willfit could not copy"
        )

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What isinstance looks at, and code that asks for a parameter's kind by name."""
        return self._willfit_class or FakeCudaTensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU that the job is predicted for."""
        return META if FakeCudaTensor.in_kernel else CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """True, as on the GPU."""
        return not FakeCudaTensor.in_kernel

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """False, as on the GPU."""
        return FakeCudaTensor.in_kernel

    def get_device(self) -> int:
        """The index of the GPU."""
        return 0

    def data_ptr(self) -> int:
        """An address that is no memory's, and another for each storage."""
        return int(self.untyped_storage()._cdata + self.storage_offset() * self.itemsize) if self.numel() else 0

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as on the GPU."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {CUDA} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def is_pinned(self, device: Any = None) -> bool:
        """Device memory is not pinned."""
        return False

    def record_stream(self, stream: Any) -> None:
        """Nothing: reuse across streams waits for events, whose timing cannot be predicted."""

    def new(self, *args: Any, **kwargs: Any) -> Any:
        """The constructor of old, which does not know a sparse tensor on meta; SparseAdam still calls it."""
        return torch.sparse_coo_tensor(*args) if self.is_sparse and args else super().new(*args, **kwargs)

    def tolist(self) -> Any:
        """Values by the policy for values that are not known."""
        return self.cpu().tolist()

    def __setitem__(self, index: Any, value: Any) -> None:
        """A number put into a CUDA tensor is a tensor on the CPU first (python_variable_indexing.cpp)."""
        if isinstance(value, (bool, int, float, complex)):
            value = torch.tensor(value, dtype=self.dtype)
        super().__setitem__(index, value)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"tensor(..., device='{CUDA}', size={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeCudaTensor:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True  # what isinstance(x, nn.Parameter) looks at
            memo[id(self)] = copied
        return memo[id(self)]  # type: ignore[no-any-return]


def storages_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The memory that a tensor takes: its storage, or those of the indices and values that a sparse one holds."""
    if tensor.layout == torch.strided:
        return (tensor.untyped_storage(),)
    with torch._C._DisableTorchDispatch():
        return tensor._indices().untyped_storage(), tensor._values().untyped_storage()


def run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on fake tensors for its outputs' shapes; they are plain meta tensors."""
    FakeCudaTensor.in_kernel = True
    try:
        with torch._C._DisableTorchDispatch(), torch._C._PreserveDispatchKeyGuard():
            torch._C._dispatch_tls_set_dispatch_key_excluded(OVERRIDES_KEY, True)
            torch._C._set_meta_in_tls_dispatch_include(True)
            return func(*args, **kwargs)
    finally:
        FakeCudaTensor.in_kernel = False
