"""Landlock: the Linux kernel itself refuses this process, and those that it starts, to write or to connect.

Source: include/uapi/linux/landlock.h, Documentation/userspace-api/landlock.rst (Linux 5.13 and newer, TCP from 6.7).
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

# The numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
# LANDLOCK_ACCESS_FS_: WRITE_FILE, then from REMOVE_DIR to MAKE_SYM; by version 2 REFER, by 3 TRUNCATE
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_TCP = 0b11  # LANDLOCK_ACCESS_NET_BIND_TCP, CONNECT_TCP, by version 4
_WRITABLE = ("/dev/null", "/dev/shm", "/dev/tty", "/proc/self")


def restrict(folder: Path) -> tuple[str, ...]:
    """Let this process write beneath a folder alone, and connect to nobody; what it has open stays so.

    Returns what cannot be refused here, in sentences.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return ("this kernel has no Landlock: what libraries in C write past Python is not held back",)
    writes = _WRITES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("QQ", writes, _TCP) if version >= 4 else struct.pack("Q", writes)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return (
            f"Landlock is not to be had here ({os.strerror(ctypes.get_errno())}): what libraries in C write past "
            "Python is not held back",
        )
    for path in (str(folder), *_WRITABLE):
        try:
            beneath = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_PATH", 0))
        except OSError:
            continue
        allowed = writes if os.path.isdir(path) else writes & (1 << 1 | _TRUNCATE)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, beneath), 0)
        os.close(beneath)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    refused = libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    if refused:
        return (
            f"Landlock is not to be had here ({os.strerror(ctypes.get_errno())}): what libraries in C write past "
            "Python is not held back",
        )
    return ()
