from __future__ import annotations

import os
import sys
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from willfit._devices import CONTEXTS, Device, all_devices, context_for, find_device, resolve_device
from willfit._errors import UsageError

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "total", "context", "compute_capability", "multiprocessors"),
    [
        ("T4", 15655829504, 141426688, (7, 5), 40),
        ("V100-16GB", 16928342016, 330000000, (7, 0), 80),
        ("RTX3090", 25296044032, 446693376, (8, 6), 82),
        ("RTX4090", 25262096384, 446693376, (8, 9), 128),
        ("A100-40GB", 42298834944, 434110464, (8, 0), 108),
        ("A100-80GB", 84987740160, 434110464, (8, 0), 108),
        ("H100-80GB", 84929347584, 641728512, (9, 0), 132),
        ("H200", 150024683520, 641728512, (9, 0), 132),
    ],
)
def test_what_is_measured_is_kept_to_the_byte(
    name: str, total: int, context: int, compute_capability: tuple[int, int], multiprocessors: int
) -> None:
    card = find_device(name)
    assert (card.total, card.context) == (total, context)
    assert card.capacity == total - context
    assert (card.compute_capability, card.multiprocessors) == (compute_capability, multiprocessors)


NAMES = [
    ("a100 80gb", "A100-80GB"), ("A100-80G", "A100-80GB"), ("nvidia a100-sxm4-80gb", "A100-80GB"),
    ("NVIDIA A100 80GB PCIe", "A100-80GB PCIe"), ("a100-pcie-40gb", "A100-40GB PCIe"), ("t4", "T4"),
    ("Tesla T4", "T4"), ("rtx4090", "RTX 4090"), ("RTX 4090", "RTX 4090"), ("4090", "RTX 4090"),
    ("rtx4070ti super", "RTX 4070 Ti SUPER"), ("2080Ti", "RTX 2080 Ti"), ("3080", "RTX 3080"),
    ("3080 12 GB", "RTX 3080 12GB"), ("4060 Ti 16GB", "RTX 4060 Ti 16GB"), ("a6000", "RTX A6000"),
    ("6000 ada", "RTX 6000 Ada"), ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
    ("H100 SXM5", "H100-80GB"), ("h100 nvl", "H100 NVL"), ("L40", "L40"), ("l40s", "L40S"), ("A10", "A10"),
    ("mi300x", "MI300X"), ("AMD Instinct MI250X/MI250", "MI250X"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "found"), NAMES)
def test_names_as_people_write_them(name: str, found: str) -> None:
    assert find_device(name).name == found
    assert resolve_device(name) is find_device(name)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("A100", ["A100-40GB", "A100-40GB PCIe", "A100-80GB", "A100-80GB PCIe"]),
        ("v100", ["V100-16GB", "V100-32GB"]),
        ("H100", ["H100-80GB", "H100 PCIe", "H100 NVL"]),
        ("RTX 6000", ["Quadro RTX 6000", "RTX 6000 Ada", "RTX PRO 6000"]),
    ],
)
def test_a_part_of_several_names_is_refused_with_all_of_them(name: str, candidates: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    assert all(candidate in str(caught.value) for candidate in candidates)
    assert str(caught.value).count(",") == len(candidates) - 1


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'RTX 4091' is no GPU .* RTX 4090.*`willfit devices` lists all"):
        find_device("RTX 4091")


@pytest.mark.parametrize("name", ["A80", "A100-64GB", "tesla", "", "80 GB", "24 GiB"])
def test_a_likeness_is_not_enough(name: str) -> None:
    with pytest.raises(UsageError, match="is no GPU that willfit knows"):
        find_device(name)


def test_one_can_look_among_others() -> None:
    toy = Device(name="Toy 9000", total=GIB, context=0)
    assert resolve_device("toy 9000", among=[toy]) is toy
    with pytest.raises(UsageError):
        find_device("T4", among=[toy])


def test_every_card_is_found_by_each_of_its_names() -> None:
    assert len(all_devices()) >= 40
    for card in all_devices():
        assert all(find_device(name) is card for name in (card.name, *card.aliases))


def test_every_figure_of_the_catalogue_has_a_source_or_is_marked_as_assumed() -> None:
    for card in all_devices():
        for figure in ("total", "context"):
            sourced = any(source.startswith(f"{figure}: ") for source in card.sources)
            assumed = any(assumption.startswith(f"{figure} assumed") for assumption in card.assumptions)
            assert sourced != assumed, (card.name, figure)


def test_the_catalogue_is_plausible() -> None:
    assert [card.total for card in all_devices()] == sorted(card.total for card in all_devices())
    for card in all_devices():
        assert 5 * GIB < card.capacity < card.total < 288 * 10**9
        assert card.memory_bandwidth is not None
        assert card.host_bandwidth is not None
        assert card.host_bandwidth < card.memory_bandwidth
        if card.vendor == "nvidia":
            assert (6, 0) <= card.compute_capability <= (12, 0)
            assert card.context == context_for(card.compute_capability)[0]


def test_contexts_rise_and_cover_all() -> None:
    assert list(CONTEXTS) == sorted(CONTEXTS)
    assert context_for((5, 2)) == context_for((7, 0))
    assert context_for((12, 0))[0] == context_for((9, 0))[0] == 641728512
    assert context_for((9, 0), "amd")[0] == 641728512
    assert "ROCm" in context_for((9, 0), "amd")[1]


def test_a_hand_made_card_says_what_it_assumes() -> None:
    toy = Device(name="toy", total=GIB)
    assert toy.compute_capability == (8, 0)
    assert toy.capacity == GIB - 434110464
    what = [assumption.split(" assumed")[0] for assumption in toy.assumptions]
    assert what == ["compute capability 8.0", "context", "108 multiprocessors"]
    assert Device(name="toy", total=GIB, context=0, compute_capability=(9, 0), multiprocessors=1).assumptions == ()
    assert Device(name="toy", total=GIB, compute_capability=(7, 5)).context == 141426688
    assert replace(toy, available=5).assumptions == toy.assumptions


@pytest.mark.parametrize(
    "figures",
    [
        {"total": 0},
        {"total": 100, "context": 100},
        {"total": 100 * 2**20},  # less than the assumed context
        {"total": 100, "context": -1},
        {"total": 100, "context": 0, "available": 101},
        {"total": 100, "context": 0, "available": -1},
    ],
)
def test_a_card_that_cannot_be_is_refused(figures: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="toy"):
        Device(name="toy", **figures)


def test_a_card_is_frozen_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        find_device("T4").total = 1  # type: ignore[misc]
    assert hash(find_device("T4")) == hash(replace(find_device("T4")))


@given(st.integers(0, 200), st.integers(0, 200))
def test_less_takes_away_but_never_below_nothing(total: int, size: int) -> None:
    card = Device(name="toy", total=total + 1, context=0)
    assert card.less(size).capacity == max(0, total + 1 - size)
    assert card.less(size).total == card.total


@pytest.mark.parametrize(("on", "total"), [("24 GiB", 24 * GIB), ("80 GB", 80 * 10**9), (25_769_803_776, 24 * GIB)])
def test_a_size_is_a_card_of_that_total(on: str | int, total: int) -> None:
    card = resolve_device(on)
    assert card is not None
    assert (card.total, card.capacity) == (total, total - 434110464)
    assert card.compute_capability == (8, 0)
    assert "compute capability 8.0 assumed" in card.assumptions


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("24 G", 'did you mean "24 GiB" or "24 GB"'),
        ("24gb", 'did you mean "24 GB"'),
        ("-5 GiB", "negative"),
        ("100 MiB", "context"),
        (1, 'write on="cuda:1"'),
        (True, "found True"),
        (2.5, "found 2.5"),
        ("5091", "the nearest are RTX 5090"),
        ("cuda:x", "no GPU that willfit knows"),
        (torch.device("cpu"), "is not a GPU"),
    ],
)
def test_what_is_neither_a_gpu_nor_a_size_is_refused(on: str | int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_device(on)


def test_a_capacity_replaces_what_the_card_would_leave() -> None:
    card = resolve_device("T4", capacity="14 GiB")
    assert card is not None
    assert (card.capacity, card.total, card.context) == (14 * GIB, 15655829504, 141426688)
    assert resolve_device(card, capacity=5) == replace(card, available=5)
    with pytest.raises(UsageError, match=r"T4: a capacity of 20.00 GiB is not within the 14.58 GiB"):
        resolve_device("T4", capacity="20 GiB")
    with pytest.raises(UsageError, match="capacity '14 G'"):
        resolve_device("T4", capacity="14 G")


def test_a_card_passes_through() -> None:
    toy = Device(name="toy", total=100, context=0)
    assert resolve_device(toy) is toy


# A machine without a GPU.


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_there_is_none_to_resolve() -> None:
    assert resolve_device() is None


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_a_capacity_is_enough() -> None:
    card = resolve_device(capacity="14 GiB")
    assert card is not None
    assert card.capacity == 14 * GIB
    assert card.total == 14 * GIB + 434110464


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("on", ["cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 1)])
def test_without_a_gpu_asking_for_it_is_refused(on: str) -> None:
    with pytest.raises(UsageError, match=rf'on="{on}": this build of torch has no CUDA; name a GPU instead'):
        resolve_device(on)


def test_a_gpu_that_is_hidden_is_named_as_the_reason(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match=r"this process has no GPU \(CUDA_VISIBLE_DEVICES=\)"):
        resolve_device("cuda")


# A machine with two GPUs: an A100 that NVML has as the second and CUDA_VISIBLE_DEVICES as the first, and a MIG slice.

A100 = SimpleNamespace(
    name="NVIDIA A100-SXM4-80GB", total_memory=84987740160, major=8, minor=0, multi_processor_count=108,
    uuid="aaaa", pci_domain_id=0, pci_bus_id=0xC3, pci_device_id=0,
)  # fmt: skip
SLICE = SimpleNamespace(
    name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", total_memory=5_100_273_664, major=8, minor=0, multi_processor_count=14,
    uuid="bbbb", pci_domain_id=0, pci_bus_id=0x07, pci_device_id=0,
)  # fmt: skip


class FakeNvml(SimpleNamespace):
    """As much of pynvml as is asked: GPUs by UUID and bus, the processes on each, their names."""

    NVMLError = ValueError

    def __init__(self, gpus: dict[bytes | str, dict[int, int | None]], names: dict[int, str | bytes]) -> None:
        super().__init__(open=0)
        self.gpus, self.names = gpus, names

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.gpus:
            raise self.NVMLError("Not Found")
        return uuid

    nvmlDeviceGetHandleByPciBusId = nvmlDeviceGetHandleByUUID  # noqa: N815

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.gpus[handle].items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return []

    def nvmlSystemGetProcessName(self, pid: int) -> str | bytes:  # noqa: N802
        return self.names[pid]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    gpus, nvml = [A100, SLICE], FakeNvml({"GPU-aaaa": {os.getpid(): 5 * GIB}, "MIG-bbbb": {}}, {})
    for name, fake in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "get_device_properties": lambda index: gpus[index],
        "mem_get_info": lambda index: ([70 * GIB, 4 * GIB][index], gpus[index].total_memory),
        "memory_reserved": lambda index: [3 * GIB, 0][index],
        "get_per_process_memory_fraction": lambda index: 1.0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake, raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("on", [None, "cuda", "cuda:0", torch.device("cuda"), torch.device("cuda:0")])
def test_what_is_free_and_what_this_process_has_is_the_capacity(on: str | None) -> None:
    card = resolve_device(on)
    assert card is not None
    assert card.capacity == 70 * GIB + 3 * GIB
    assert card.less(GIB).capacity == 72 * GIB
    assert resolve_device(on, capacity="10 GiB") == replace(card, available=10 * GIB)
    assert (card.index, card.total) == (0, 84987740160)
    assert (card.context, card.memory_bandwidth) == (434110464, 2039 * 10**9)  # the catalogue's A100
    assert card.other_processes == card.assumptions == ()


def test_a_card_that_the_catalogue_lacks_has_an_assumed_context(two_gpus: FakeNvml) -> None:
    card = resolve_device("cuda:1")
    assert card is not None
    assert (card.capacity, card.context, card.memory_bandwidth) == (4 * GIB, 434110464, None)
    assert (card.index, card.multiprocessors) == (1, 14)
    assert card.assumptions == ("context assumed: as measured on an A100 with CUDA 12.8",)
    assert two_gpus.open == 0


@pytest.mark.usefixtures("two_gpus")
def test_a_limit_set_in_torch_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 0.5, raising=False)
    assert resolve_device("cuda").capacity == 84987740160 // 2  # type: ignore[union-attr]


def test_too_high_an_index_is_refused_with_the_number_of_gpus(
    two_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with pytest.raises(UsageError, match=r"has 2 GPUs, the last is cuda:1 \(CUDA_VISIBLE_DEVICES=1,0\)"):
        resolve_device("cuda:2")


def test_other_processes_are_named_without_this_one(two_gpus: FakeNvml) -> None:
    two_gpus.gpus["GPU-aaaa"] |= {1234: 3435973837, 99: None, 7: 512 * 2**20}
    two_gpus.names = {1234: "/usr/bin/python train.py", 99: b"/usr/lib/xorg/Xorg"}  # 7 has ended meanwhile
    card = resolve_device("cuda:0")
    assert card is not None
    seven, xorg, python = card.other_processes
    assert seven == "process (pid 7): 512.00 MiB"
    assert xorg == "Xorg (pid 99): size not known"
    assert python == "python (pid 1234): 3.20 GiB"
    assert card.assumptions == ()


def test_in_a_container_one_of_the_processes_may_be_this_one(two_gpus: FakeNvml) -> None:
    two_gpus.gpus["GPU-aaaa"] = {4_000_001: GIB}
    card = resolve_device("cuda:0")
    assert card is not None
    assert card.other_processes == ("process (pid 4000001): 1.00 GiB",)
    assert "may be this one" in card.assumptions[0]


def test_a_gpu_that_nvml_does_not_know_by_uuid_is_found_by_its_bus(two_gpus: FakeNvml) -> None:
    two_gpus.gpus = {"00000000:C3:00.0": {1234: GIB, os.getpid(): GIB}}
    card = resolve_device("cuda:0")
    assert card is not None
    assert card.other_processes == ("process (pid 1234): 1.00 GiB",)


def test_nvml_that_does_not_know_the_gpu_is_noted(two_gpus: FakeNvml) -> None:
    two_gpus.gpus = {}
    card = resolve_device("cuda")
    assert card is not None
    assert (card.capacity, card.other_processes) == (73 * GIB, ())
    assert card.assumptions == ("other processes on the GPU are not named: NVML does not say (Not Found)",)
    assert two_gpus.open == 0


@pytest.mark.usefixtures("two_gpus")
def test_no_nvml_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    card = resolve_device("cuda")
    assert card is not None
    assert card.capacity == 73 * GIB
    assert card.assumptions[0].startswith("other processes on the GPU are not named: NVML cannot be asked (")


@pytest.mark.usefixtures("two_gpus")
def test_on_amd_nvml_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    card = resolve_device("cuda:1")
    assert card is not None
    assert card.vendor == "amd"
    assert card.assumptions[0] == "other processes are not named on AMD"
