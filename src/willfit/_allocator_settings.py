"""PYTORCH_CUDA_ALLOC_CONF, read as PyTorch reads it: which variable wins, what each option means, what is refused.

Sources: PyTorch's c10/core/AllocatorConfig.{h,cpp} and c10/cuda/CUDAAllocatorConfig.{h,cpp}, as of torch 2.13.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from willfit._errors import UsageError

MIB: Final = 2**20
LARGE_SEGMENT_SIZE: Final = 20 * MIB  # AllocatorConfig.h: large_segment_size_, kLargeBuffer before torch 2.10
MIN_LARGE_ALLOC: Final = 10 * MIB  # AllocatorConfig.h: kMinLargeAlloc
ROUNDUP_INTERVALS: Final = 16  # AllocatorConfig.cpp: kRoundUpPowerOfTwoIntervals, from 1 MiB to 64 GiB
MAX_SIZE: Final = 2**64  # size_t

VARIABLES: Final = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The first one that is set wins, even if it is empty (AllocatorConfig.cpp, AcceleratorAllocatorConfig::instance)."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocatorSettings:
    """How the caching allocator is configured; the defaults are PyTorch's. Sizes are bytes.

    >>> AllocatorSettings.parse("max_split_size_mb:128,expandable_segments:False").max_split_size
    134217728
    >>> AllocatorSettings.parse("max_split_size:128")
    Traceback (most recent call last):
    willfit._errors.UsageError: PYTORCH_CUDA_ALLOC_CONF has an option that PyTorch does not know: found \
'max_split_size'; did you mean 'max_split_size_mb'?
    """

    backend: str = "native"
    """native; cudaMallocAsync or uncached (PYTORCH_NO_CUDA_MEMORY_CACHING): not modelled, for the caller to report."""
    expandable_segments: bool = False
    """One growing segment for each pool and stream in place of many of fixed size."""
    max_split_size: int | None = None
    """Cached blocks of this size or more are not split; None: all may be."""
    max_non_split_rounding: int = LARGE_SEGMENT_SIZE
    """By how much a block that is not split may exceed what was asked for."""
    large_segment_size: int = LARGE_SEGMENT_SIZE
    """The segment taken for a request of more than 1 MiB and less than 10 MiB."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * ROUNDUP_INTERVALS
    """Steps between two powers of 2 to which sizes are rounded up; entry i is for sizes of 2**i MiB (the first also for
    smaller ones, the last also for larger ones); 0 and 1: multiples of 512 B."""
    garbage_collection_threshold: float = 0.0
    """Part of the allowed memory above which unused segments are freed; without effect if the memory fraction is 1."""
    per_process_memory_fraction: float = 1.0
    """Part of the device's total memory that the allocator may hold."""
    ignored: tuple[str, ...] = ()
    """Options that were set and do not change what memory a training step needs."""

    @classmethod
    def parse(cls, text: str, variable: str = "PYTORCH_CUDA_ALLOC_CONF") -> AllocatorSettings:
        """The settings that the text of an environment variable stands for, such as ``"max_split_size_mb:128"``.

        Options are separated by commas; where one is repeated the last counts; numbers are read as C++ reads them
        ("64MB" is 64). Raises `UsageError` for what PyTorch refuses, and for separators other than ``:`` and ``,``,
        which torch up to 2.8 refuses and later versions silently read past.
        """
        return cls(**_Parser(text, variable).options())

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> AllocatorSettings:
        """The settings of a process with these environment variables; by default, of this one.

        Raises `UsageError` where PyTorch would refuse the text.

        >>> AllocatorSettings.from_environment({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}).expandable_segments
        True
        """
        environ = os.environ if environ is None else environ
        variable = next((name for name in VARIABLES if name in environ), None)
        options = {} if variable is None else _Parser(environ[variable], variable).options()
        if environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1":  # other values do nothing (measured with torch 2.13)
            options["backend"] = "uncached"
        return cls(**options)


class _Parser:
    """One text, token by token, as AcceleratorAllocatorConfig::parseArgs goes through it."""

    def __init__(self, text: str, variable: str) -> None:
        self.text = text
        self.variable = variable
        self.tokens: list[str] = re.findall(r"[,:\[\]]|[^,:\[\]]+", re.sub(r"\s", "", text))
        self.at = 0
        self.found: dict[str, Any] = {}
        self.ignored: dict[str, None] = {}

    def options(self) -> dict[str, Any]:
        while self.at < len(self.tokens):
            key = self.next()
            self.expect(":")
            if key in _SIZES:
                self.found[_SIZES[key]] = self.megabytes(key)
            elif key == "expandable_segments":
                self.found[key] = self.flag(key)
            elif key in _IGNORED:
                _IGNORED[key](self, key)
                self.ignored[key] = None
            elif key == "backend":
                self.found[key] = self.value(key, "native or cudaMallocAsync", _backend)
            elif key == "garbage_collection_threshold":
                self.found[key] = self.number(key, "a number between 0 and 1, both excluded", lambda x: 0 < x < 1)
            elif key == "per_process_memory_fraction":
                self.found[key] = self.number(key, "a number from 0 to 1", lambda x: 0 <= x <= 1)
            elif key == "roundup_power2_divisions":
                self.found[key] = self.divisions(key)
            else:
                raise self.unknown(key)
            if self.at < len(self.tokens):
                self.expect(",")
        return self.found | {"ignored": tuple(self.ignored)}

    def next(self) -> str:
        if self.at == len(self.tokens):
            raise UsageError(f"{self.variable} ends too early, a value is missing: found {self.text!r}")
        self.at += 1
        return self.tokens[self.at - 1]

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def expect(self, token: str) -> None:
        if self.peek() != token:
            what = repr(self.peek()) if self.peek() else "the end"
            done = "".join(self.tokens[: self.at])
            raise UsageError(
                f"{self.variable} must have {token!r} after {done!r}: found {what}; "
                "write it as option:value,option:value"
            )
        self.at += 1

    def value(self, key: str, wanted: str, convert: Callable[[str], _T | None]) -> _T:
        token = self.next()
        result = convert(token)
        if result is None:
            raise UsageError(f"{key} in {self.variable} must be {wanted}: found {token!r}")
        return result

    def number(self, key: str, wanted: str, allowed: Callable[[float], bool]) -> float:
        def convert(token: str) -> float | None:
            match = re.match(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", token)  # std::stod ignores what follows
            return float(match[0]) if match and allowed(float(match[0])) else None

        return self.value(key, wanted, convert)

    def integer(self, key: str, wanted: str, allowed: Callable[[int], bool]) -> int:
        def convert(token: str) -> int | None:
            number = _integer(token)
            return number if number is not None and allowed(number) else None

        return self.value(key, wanted, convert)

    def flag(self, key: str) -> bool:
        return self.value(key, "True or False, written so", {"True": True, "False": False}.get)

    def megabytes(self, key: str) -> int:
        if key == "large_segment_size_mb":
            least = MIN_LARGE_ALLOC // MIB + 1
        else:  # compared with the segment size as set so far: the order of the options matters
            least = self.found.get("large_segment_size", LARGE_SEGMENT_SIZE) // MIB
        number = self.integer(key, f"a whole number of MiB, {least} or more", lambda x: x >= least)
        return min(number, (MAX_SIZE - 1) // MIB) * MIB

    def divisions(self, key: str) -> tuple[int, ...]:
        """A single number for all sizes, or a list such as ``[256:1,512:2,1024:4,>:8]``, sizes in MiB."""
        if self.peek() != "[":
            number = self.integer(key, "a power of 2", _is_power_of_2)
            return (number,) * ROUNDUP_INTERVALS
        self.expect("[")
        divisions = [0] * ROUNDUP_INTERVALS
        last, first = 0, True
        while self.peek() != "]":
            start = ">" if self.peek() == ">" else None
            if start:
                self.next()
            else:
                size = self.integer(key, "a list whose sizes are powers of 2 in MiB, or > last", _is_power_of_2)
            self.expect(":")
            number = self.integer(key, "a list of powers of 2, or 0", lambda x: x == 0 or _is_power_of_2(x))
            if start:
                divisions[last + 1 :] = [number] * (ROUNDUP_INTERVALS - last - 1)
            else:
                last = min(size.bit_length() - 1, ROUNDUP_INTERVALS - 1)
                if first:
                    divisions[:last] = [number] * last
                    first = False
                divisions[last] = number
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")
        return tuple(divisions)

    def skip(self, key: str) -> None:
        """A value of any form: a token, or a list in brackets (ConfigTokenizer::skipKey)."""
        if self.next() == "[":
            while self.next() != "]":
                pass

    def unknown(self, key: str) -> UsageError:
        known = [*_SIZES, *_IGNORED, *_OTHERS]
        near = get_close_matches(key, known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        return UsageError(f"{self.variable} has an option that PyTorch does not know: found {key!r}; {advice}")


def _integer(token: str) -> int | None:
    """As std::stoull reads it: what follows the digits is ignored, and -1 is the largest number."""
    match = re.match(r"[+-]?\d+", token)
    number = int(match[0]) if match else None
    return None if number is None or abs(number) >= MAX_SIZE else number % MAX_SIZE


def _is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _backend(token: str) -> str | None:
    return token if token in ("native", "cudaMallocAsync") else None


def _register_threads(parser: _Parser, key: str) -> None:
    parser.integer(key, "a power of 2 up to 128", lambda x: _is_power_of_2(x) and x <= 128)


def _more_than_zero(parser: _Parser, key: str) -> None:
    parser.integer(key, "a whole number of MiB above 0", lambda x: x > 0)


def _any_number(parser: _Parser, key: str) -> None:
    parser.integer(key, "a whole number of MiB", lambda x: True)


_SIZES: Final = {
    "large_segment_size_mb": "large_segment_size",
    "max_split_size_mb": "max_split_size",
    "max_non_split_rounding_mb": "max_non_split_rounding",
}
_OTHERS: Final = (
    "backend",
    "expandable_segments",
    "garbage_collection_threshold",
    "per_process_memory_fraction",
    "roundup_power2_divisions",
)
_IGNORED: Final[dict[str, Callable[[_Parser, str], object]]] = {
    # Locking and pinned host memory: not device memory.
    "release_lock_on_cudamalloc": _Parser.flag,
    "release_lock_on_hipmalloc": _Parser.flag,
    "pinned_use_cuda_host_register": _Parser.flag,
    "pinned_use_hip_host_register": _Parser.flag,
    "pinned_use_background_threads": _Parser.flag,
    "pinned_free_catch_all": _Parser.flag,
    "pinned_num_register_threads": _register_threads,
    "pinned_reserve_segment_size_mb": _more_than_zero,
    "pinned_max_round_threshold_mb": _any_number,
    "pinned_max_cached_size_mb": _any_number,
    # Another error when the memory fraction is reached; torch 2.13 frees its cache and retries all the same (measured).
    "throw_on_cudamalloc_oom": _Parser.flag,
    # CUDA graphs only.
    "graph_capture_record_stream_reuse": _Parser.flag,
    # Address space, not memory (after torch 2.13); malformed values are only warned of.
    "expandable_segments_reserve": _Parser.skip,
    "expandable_segments_reserve_by_class": _Parser.skip,
}
