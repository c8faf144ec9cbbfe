"""CUB: the temporary storage that its device-wide algorithms ask for, which PyTorch takes from the caching allocator.

Source: cub/device/dispatch (CCCL 3.0, which CUDA 13.0 ships) with the tunings beside it, called through CUB_WRAPPER in
ATen/cuda/cub.cuh. What counts is how many items a block takes at once, which is tuned by architecture and types.
Where PyTorch is a build without CUDA, it is taken to be the version that the wheels on PyPI have.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from packaging.version import Version

from willfit._trace.cuda.reduction import max_threads_per_multiprocessor

_DEFAULTS = {"2.11": "13.0", "2.8": "12.8", "2.7": "12.6", "2.6": "12.4"}  # of the wheels on PyPI
_TORCH = Version(Version(torch.__version__).base_version)
_CUDA = Version(torch.version.cuda or next(cuda for first, cuda in _DEFAULTS.items() if Version(first) <= _TORCH))
_IS_CCCL_3 = Version("13") <= _CUDA
_OFFSET = 8 if Version("12.8") <= _CUDA else 4

_DIGITS = 256  # 8 bits in a pass of onesweep
_SHARED = 48 * 1024
_OPAQUE = 255  # room to align the start


def ceil_div(a: int, b: int) -> int:
    """Rounded up."""
    return -(-a // b)


def aliased(sizes: Iterable[int]) -> int:
    """AliasTemporaries: each at a multiple of 256 bytes in one allocation."""
    return sum(ceil_div(size, 256) * 256 for size in sizes) + _OPAQUE


def _architecture(compute_capability: tuple[int, int]) -> int:
    """The policy that the chain of architectures ends at: 80, 90 and 100 have tunings, others the default."""
    major, minor = compute_capability
    if major >= 10:
        return 100
    return {(8, 0): 80, (9, 0): 90}.get((major, minor), 0)


def _memory_bound(threads: int, items: int, itemsize: int) -> int:
    """MemBoundScaling: items of a tile, from the numbers for 4 bytes."""
    items = max(1, min(items * 4 // itemsize, items * 2))
    return items * min(threads, ceil_div(_SHARED // (itemsize * items), 32) * 32)


def _register_bound(threads: int, items: int, itemsize: int) -> int:
    """RegBoundScaling."""
    items = max(1, items * 4 // max(4, itemsize))
    return items * min(threads, ceil_div(_SHARED // (itemsize * items), 32) * 32)


def _tile_states(items: int, tile: int, itemsize: int, *, primitive: bool = True) -> int:
    """ScanTileState, after a warp of padding: status and value of each tile in one word, or in arrays of their own.

    Before CCCL 3.0 the words are not aligned by themselves (cub/agent/single_pass_scan_operators.cuh).
    """
    tiles = ceil_div(items, tile) + 32
    if primitive:
        words = tiles * {8: 16, 4: 8}.get(itemsize, 4)
        return aliased([words]) if _IS_CCCL_3 else words
    return aliased([tiles * 4, tiles * itemsize, tiles * itemsize])


# -- sorting -----------------------------------------------------------------------------------------------------------

_SMALL_KEYS = {  # threads and items of a block, by the sizes of key and value: sm90_small_key_tuning, 64-bit offsets
    (1, 0): (512, 19), (1, 1): (448, 16), (1, 2): (512, 14), (1, 4): (512, 14), (1, 8): (384, 18),
    (2, 0): (512, 19), (2, 1): (384, 16), (2, 2): (448, 16), (2, 4): (512, 12), (2, 8): (512, 23),
}  # fmt: skip
_SMALL_KEYS_100 = {  # sm100_small_key_tuning where it differs
    (1, 1): (384, 20), (1, 2): (256, 22), (1, 4): (384, 15),
    (2, 0): (384, 20), (2, 1): (384, 15), (2, 2): (576, 15), (2, 4): (512, 18),
}  # fmt: skip


def radix_sort(
    items: int,
    key: int,
    value: int,
    compute_capability: tuple[int, int],
    multiprocessors: int,
    bits: int | None = None,
    *,
    floating: bool = False,
) -> int:
    """DeviceRadixSort over 64-bit offsets; ``value`` is 0 for keys alone, ``bits`` those of the key that are sorted."""
    if items <= _register_bound(256, 19, max(key, value)):  # one block sorts all
        return 1
    architecture = _architecture(compute_capability)
    widest = max(key, value)
    if key < 4 and architecture < 90:  # passes of several kernels, which meet in a spine
        grid = blocks_per_multiprocessor(512, compute_capability) * multiprocessors * _SUBSCRIPTION
        spine = grid * (128 if key > 1 else 32) + _memory_bound(512, 23, 8)
        return aliased([spine * 8, items * key, items * value])
    if architecture >= 90:
        if key < 4:
            tuned = _SMALL_KEYS_100 if architecture == 100 else {}
            block = tuned.get((key, value)) or _SMALL_KEYS[key, value]
        elif key == 4:
            block = (384, 19 - floating if not value else 17 if value < 8 else 29)
        else:
            block = (384, 30 if value < 8 else 24)
    elif architecture == 80 or compute_capability >= (8, 0):
        block = (384, 17 if key == 4 and value else 21)
    else:
        block = (256, 46 if key == value == 4 else 23)
    tile = _register_bound(*block, widest)
    passes = ceil_div(8 * key if bits is None else bits, 8)
    portion = (2**28 - 1) // tile * tile
    portions = ceil_div(items, portion)
    kept = items if passes > 1 else 0
    return aliased(
        [
            portions * passes * _DIGITS * 8,
            ceil_div(min(items, portion), tile) * _DIGITS * 4,
            kept * key,
            kept * value,
            portions * passes * 4,
        ]
    )


def segmented_sort(items: int, key: int, value: int) -> int:
    """DeviceSegmentedRadixSort: a third buffer for keys and one for values."""
    return aliased([items * key, items * value])


def merge_sort(items: int, key: int, value: int) -> int:
    """DeviceMergeSort, which thrust takes where the order is the caller's own: the middles of tiles, and a copy."""
    tile = 256 * max(1, min(17, 17 * 4 // key))  # the default policy since sm_60
    return aliased([(ceil_div(items, tile) + 1) * 4, items * key, items * value])


# -- scans and selections ----------------------------------------------------------------------------------------------


def scan(items: int, itemsize: int, *, primitive: bool = True) -> int:
    """DeviceScan with an operation that CUB has no tuning for: PyTorch's own functors, and std::plus."""
    items = min(items, _MOST_SCANNED)
    return aliased([_tile_states(items, _memory_bound(128, 15, itemsize), itemsize, primitive=primitive)])


_MOST_SCANNED = 2**30  # max_cub_size in ATen/cuda/cub.cuh: more are scanned in turns

_SCAN_BY_KEY = {80: {4: (256, 15), 8: (224, 10)}, 90: {4: (288, 14), 8: (224, 11)}, 100: {4: (224, 20), 8: (256, 23)}}


def scan_by_key(items: int, key: int, value: int, compute_capability: tuple[int, int]) -> int:
    """DeviceScan::InclusiveSumByKey and InclusiveScanByKey with keys and values of one size."""
    threads, each = _SCAN_BY_KEY.get(_architecture(compute_capability), {}).get(key, (256, 9))
    tiles = ceil_div(items, threads * each)
    return aliased([(tiles + 32) * 16, key * (tiles + 1)])


_UNIQUE_BY_KEY = {
    80: {(4, 4): (256, 11), (8, 4): (256, 7), (4, 8): (256, 7), (8, 8): (192, 7)},
    90: {(4, 4): (512, 14), (8, 4): (640, 7), (4, 8): (512, 11), (8, 8): (448, 11)},
    100: {(4, 4): (512, 14), (8, 4): (384, 10), (4, 8): (384, 10), (8, 8): (576, 7)},
}


_UNIQUE = {
    80: {1: (992, 20), 2: (576, 14), 4: (256, 18), 8: (192, 10)},
    90: {1: (256, 22), 2: (256, 22), 4: (384, 17), 8: (384, 11)},
}


def unique(items: int, itemsize: int, compute_capability: tuple[int, int], *, primitive: bool = True) -> int:
    """DeviceSelect::Unique."""
    tunings = _UNIQUE.get(min(90, _architecture(compute_capability)), {}) if primitive else {}
    threads, each = tunings.get(itemsize, (128, max(1, min(40 // itemsize, 10))))
    return aliased([_tile_states(items, threads * each, 4), 0])


def run_length_encode(items: int) -> int:
    """DeviceRunLengthEncode::Encode with 64-bit counts, which CUB has no tuning for."""
    return aliased([(ceil_div(items, 128 * 6) + 32) * 16, 0])


def unique_by_key(items: int, key: int, value: int, compute_capability: tuple[int, int], offset: int = _OFFSET) -> int:
    """DeviceSelect::UniqueByKey, over 64-bit offsets unless said otherwise; over 32 bits before CCCL 2.7."""
    default = (64, max(1, min(11 * 4 // key, 11)))
    threads, each = _UNIQUE_BY_KEY.get(_architecture(compute_capability), {}).get((key, value), default)
    return aliased([_tile_states(items, threads * each, offset), 0])


def thrust_unique_by_key(items: int, key: int, value: int, compute_capability: tuple[int, int]) -> int:
    """thrust::unique_by_key: CUB's over 32-bit offsets, beside the count that it finds."""
    return aliased([unique_by_key(items, key, value, compute_capability, offset=4), 8])


_FLAGGED_INDICES = {80: (384, 6), 90: (384, 11), 100: (384, 11)}


def select_flagged(items: int, compute_capability: tuple[int, int]) -> int:
    """DeviceSelect::Flagged over 64-bit numbers counted on the way."""
    threads, each = _FLAGGED_INDICES.get(_architecture(compute_capability), (128, 5))
    return aliased([_tile_states(items, threads * each, 4), 0])


_SUBSCRIPTION = 5  # waves of blocks that CUB launches at most


def blocks_per_multiprocessor(threads: int, compute_capability: tuple[int, int]) -> int:
    """How many blocks of a kernel of CUB's run on one multiprocessor at once: as many as its threads allow."""
    return max_threads_per_multiprocessor(compute_capability) // threads


def reduce(items: int, itemsize: int, compute_capability: tuple[int, int], multiprocessors: int) -> int:
    """DeviceReduce::Sum: one block alone, or a number for each block."""
    if items <= _memory_bound(256, 16, itemsize):
        return 1
    blocks = blocks_per_multiprocessor(256, compute_capability) * multiprocessors * _SUBSCRIPTION
    return aliased([blocks * itemsize])


def number_of_bits(largest: int) -> int:
    """get_num_bits in ATen/cuda/cub.h."""
    return max(1, largest.bit_length())
