from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willfit._allocator_settings import AllocatorSettings
from willfit._errors import UsageError

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", AllocatorSettings()),
        ("max_split_size_mb:128", AllocatorSettings(max_split_size=128 * MIB)),
        (" max_split_size_mb : 128 , ", AllocatorSettings(max_split_size=128 * MIB)),  # spaces and a last comma pass
        ("max_split_size_mb:64,max_split_size_mb:20", AllocatorSettings(max_split_size=20 * MIB)),  # the last counts
        ("max_split_size_mb:64MB", AllocatorSettings(max_split_size=64 * MIB)),  # std::stoull reads the digits
        # 2**64 - 1 MiB is cut to what size_t holds: torch 2.13 reports max_split_size -1048576, which is this.
        ("max_split_size_mb:-1", AllocatorSettings(max_split_size=2**64 - MIB)),
        ("max_non_split_rounding_mb:40", AllocatorSettings(max_non_split_rounding=40 * MIB)),
        ("large_segment_size_mb:11", AllocatorSettings(large_segment_size=11 * MIB)),
        (
            "large_segment_size_mb:12,max_split_size_mb:12",  # the least size that is split follows the segments' size
            AllocatorSettings(large_segment_size=12 * MIB, max_split_size=12 * MIB),
        ),
        ("garbage_collection_threshold:0.8", AllocatorSettings(garbage_collection_threshold=0.8)),
        ("garbage_collection_threshold:8e-1", AllocatorSettings(garbage_collection_threshold=0.8)),
        ("per_process_memory_fraction:0", AllocatorSettings(per_process_memory_fraction=0.0)),
        ("expandable_segments:True", AllocatorSettings(expandable_segments=True)),
        ("expandable_segments:False", AllocatorSettings()),
        ("backend:native", AllocatorSettings()),
        ("backend:cudaMallocAsync", AllocatorSettings(backend="cudaMallocAsync")),
        ("roundup_power2_divisions:8", AllocatorSettings(roundup_power2_divisions=(8,) * 16)),
        ("roundup_power2_divisions:[]", AllocatorSettings()),
        (
            # As torch 2.13 reports it: 256 MiB and less 1, 512 MiB 2, 1 GiB 4, above 8.
            "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
            AllocatorSettings(roundup_power2_divisions=(1,) * 9 + (2, 4) + (8,) * 5),
        ),
        (
            # A size between two that are named keeps 0: here 128 MiB.
            "roundup_power2_divisions:[64:8,256:4,>:2]",
            AllocatorSettings(roundup_power2_divisions=(8,) * 7 + (0, 4) + (2,) * 7),
        ),
        (
            "roundup_power2_divisions:[131072:4]",  # beyond 32 GiB: the last entry
            AllocatorSettings(roundup_power2_divisions=(4,) * 16),
        ),
        (
            "pinned_num_register_threads:8,release_lock_on_cudamalloc:True,pinned_num_register_threads:4",
            AllocatorSettings(ignored=("pinned_num_register_threads", "release_lock_on_cudamalloc")),
        ),
        (
            "expandable_segments_reserve_by_class:[capture:0.25,workspace:40G],expandable_segments:True",
            AllocatorSettings(expandable_segments=True, ignored=("expandable_segments_reserve_by_class",)),
        ),
        ("throw_on_cudamalloc_oom:True", AllocatorSettings(ignored=("throw_on_cudamalloc_oom",))),
    ],
)
def test_what_pytorch_takes(text: str, expected: AllocatorSettings) -> None:
    assert AllocatorSettings.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_split_size:64", "found 'max_split_size'; did you mean 'max_split_size_mb'?"),
        ("nonsense:1", "found 'nonsense'; known are backend, "),
        (",max_split_size_mb:64", "must have ':' after ','"),
        ("max_split_size_mb", "must have ':' after 'max_split_size_mb': found the end"),
        ("max_split_size_mb:", "ends too early, a value is missing: found 'max_split_size_mb:'"),
        ("max_split_size_mb,64", "must have ':' after 'max_split_size_mb': found ','"),
        ("max_split_size_mb:64:32", "must have ',' after 'max_split_size_mb:64': found ':'"),
        ("max_split_size_mb:19", "must be a whole number of MiB, 20 or more: found '19'"),
        ("max_split_size_mb:MB", "must be a whole number of MiB, 20 or more: found 'MB'"),
        ("max_split_size_mb:99999999999999999999", "must be a whole number of MiB, 20 or more"),  # std::out_of_range
        ("max_split_size_mb:20,large_segment_size_mb:30,max_split_size_mb:20", "30 or more: found '20'"),
        ("max_non_split_rounding_mb:19", "20 or more: found '19'"),
        ("large_segment_size_mb:10", "11 or more: found '10'"),
        ("expandable_segments:true", "must be True or False, written so: found 'true'"),
        ("garbage_collection_threshold:1.0", "between 0 and 1, both excluded: found '1.0'"),
        ("garbage_collection_threshold:0", "between 0 and 1, both excluded: found '0'"),
        ("garbage_collection_threshold:half", "between 0 and 1, both excluded: found 'half'"),
        ("per_process_memory_fraction:1.1", "a number from 0 to 1: found '1.1'"),
        ("backend:cuda", "must be native or cudaMallocAsync: found 'cuda'"),
        ("roundup_power2_divisions:3", "must be a power of 2: found '3'"),
        ("roundup_power2_divisions:0", "must be a power of 2: found '0'"),
        ("roundup_power2_divisions:[3:1]", "a list whose sizes are powers of 2 in MiB, or > last: found '3'"),
        ("roundup_power2_divisions:[1:3]", "a list of powers of 2, or 0: found '3'"),
        ("roundup_power2_divisions:[1:2", "must have ',' after 'roundup_power2_divisions:[1:2': found the end"),
        ("pinned_num_register_threads:3", "a power of 2 up to 128: found '3'"),
        ("pinned_num_register_threads:256", "a power of 2 up to 128: found '256'"),
        ("pinned_reserve_segment_size_mb:0", "a whole number of MiB above 0: found '0'"),
        ("pinned_use_background_threads:yes", "must be True or False, written so: found 'yes'"),
        ("expandable_segments_reserve_by_class:[a:1", "ends too early"),
    ],
)
def test_what_pytorch_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        AllocatorSettings.parse(text)
    assert message in str(error.value)
    assert "PYTORCH_CUDA_ALLOC_CONF" in str(error.value)


@pytest.mark.parametrize(
    ("environ", "large_segment_size"),
    [
        ({}, 20),
        ({"PYTORCH_ALLOC_CONF": "large_segment_size_mb:32"}, 32),
        ({"PYTORCH_ALLOC_CONF": "large_segment_size_mb:32", "PYTORCH_HIP_ALLOC_CONF": "large_segment_size_mb:40"}, 40),
        ({"PYTORCH_ALLOC_CONF": "large_segment_size_mb:32", "PYTORCH_CUDA_ALLOC_CONF": "large_segment_size_mb:48"}, 48),
        (
            {"PYTORCH_ALLOC_CONF": "large_segment_size_mb:32", "PYTORCH_CUDA_ALLOC_CONF": ""},
            20,
        ),  # set, if empty: it wins
    ],
)
def test_which_variable_wins(environ: dict[str, str], large_segment_size: int) -> None:
    assert AllocatorSettings.from_environment(environ).large_segment_size == large_segment_size * MIB


def test_a_mistake_is_reported_under_the_name_of_its_variable() -> None:
    with pytest.raises(UsageError, match=r"^PYTORCH_ALLOC_CONF has an option"):
        AllocatorSettings.from_environment({"PYTORCH_ALLOC_CONF": "nonsense:1"})


def test_the_environment_of_this_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:77")
    assert AllocatorSettings.from_environment().max_split_size == 77 * MIB


PIECES = ["max_split_size_mb", "roundup_power2_divisions", "backend", "native", *"0123456789.-,:[]> "]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_either_settings_or_a_usage_error(text: str) -> None:
    try:
        settings = AllocatorSettings.parse(text)
    except UsageError:
        return
    assert AllocatorSettings.parse(text) == settings


@pytest.mark.parametrize(("value", "backend"), [("1", "uncached"), ("0", "native"), ("", "native")])
def test_a_process_without_caching_is_told_apart(value: str, backend: str) -> None:
    assert AllocatorSettings.from_environment({"PYTORCH_NO_CUDA_MEMORY_CACHING": value}).backend == backend
