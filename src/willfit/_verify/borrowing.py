"""A follower on the user's own GPU, in the user's own process: what is there already is borrowed, and given back.

Tensors that are on the card are not copied, as there may be no room for two of them: the job's copy has their memory.
What a step may change in it (buffers, gradients, the batch, and parameters where the machine's memory has room) is
kept on the host meanwhile, and what was changed is put back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from willfit._real.follower import CopyingFollower
from willfit._trace.trace import Role
from willfit._verify.memory import available_memory

_CHANGED_BY_A_STEP = ("buffers", "gradients", "inputs")


@dataclass(frozen=True, slots=True)
class _Borrowed:
    original: torch.Tensor
    role: Role
    version: int
    kept: torch.UntypedStorage | None

    def may_have_changed(self) -> bool:
        """Operators that change a tensor count up its version, but for those that write a batch norm's statistics."""
        return self.role == "buffers" or self.original._version != self.version


class Borrower(CopyingFollower):
    """Follows a copy of the job that shares the memory of the user's tensors."""

    def __init__(self, device: torch.device, compute_capability: tuple[int, int], multiprocessors: int) -> None:
        super().__init__(device, compute_capability, multiprocessors)
        self._borrowed: dict[int, _Borrowed] = {}
        self._blocks = _block_sizes(device)
        self._room = available_memory() // 2

    def place(self, meta: torch.Tensor, role: Role, module: str, original: torch.Tensor) -> torch.Tensor:
        """The user's own memory where that is on the device; else a copy."""
        if original.device != self.device:
            return super().place(meta, role, module, original)
        storage = original.untyped_storage()
        if storage.data_ptr() not in self._borrowed:
            size, address = storage.nbytes(), storage.data_ptr()
            self._borrowed[address] = _Borrowed(original, role, original._version, self._kept(storage, role))
            self._note(("found", role, module, address, size, self._blocks.get(address, size)))
        return original.detach()

    def _kept(self, storage: torch.UntypedStorage, role: Role) -> torch.UntypedStorage | None:
        if role not in _CHANGED_BY_A_STEP:
            if role != "parameters" or storage.nbytes() > self._room:
                return None
            self._room -= storage.nbytes()
        kept: torch.UntypedStorage = storage.cpu()
        return kept

    def give_back(self) -> list[str]:
        """Put back what the run changed. Returns what could not be, in sentences."""
        lost = 0
        for each in self._borrowed.values():
            if each.may_have_changed():
                if each.kept is None:
                    lost += 1
                else:
                    each.original.untyped_storage().copy_(each.kept)
        self._borrowed.clear()
        if not lost:
            return []
        return [
            f"the step itself changed {lost} tensors that were too large to be kept beside: they have their new values"
        ]


def _block_sizes(device: torch.device) -> dict[int, int]:
    """The allocator's blocks, by address."""
    blocks: dict[int, int] = {}
    for segment in torch.cuda.memory_snapshot():
        entry: Any = segment
        if entry["device"] == (device.index or 0):
            blocks.update({block["address"]: block["size"] for block in entry["blocks"]})
    return blocks
