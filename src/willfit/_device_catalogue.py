"""The GPUs that willfit knows by name. Each total has its source, or is marked as assumed.

A total is what torch reports, not what the box says: the driver keeps some back, later drivers about 1 % more than
early ones. Where logs differ the smaller figure is taken, under Linux and with ECC as the card ships. The context is
measured on four kinds of card and assumed on their relatives. Bandwidths are the data sheets'.
"""

from __future__ import annotations

from typing import Final, Literal

from willfit._devices import Device, context_for

MIB: Final = 2**20

# Bytes a second in one direction: 16 lanes, less the encoding (128b/130b); NVLink-C2C by NVIDIA's data sheet.
PCIE_3: Final = 15_754_000_000
PCIE_4: Final = 31_508_000_000
PCIE_5: Final = 63_015_000_000
NVLINK_C2C: Final = 450_000_000_000

XLA: Final = "https://github.com/openxla/xla, xla/backends/gpu/target_config/specs/"


def _log(line: str) -> str:
    """A line found in a public log, of torch, YOLO, the CUDA samples or the like, with the figure that torch has."""
    return f"public log: {line!r}"


def _97_percent(mib: int) -> int:
    """Bytes that a driver leaves at least: logs have 97.2 % (T4, RTX 5080) to 99.7 % (B200) of what the card has."""
    return mib * MIB * 97 // 100


def _gpu(
    name: str,
    driver_name: str,
    total: int,
    compute_capability: tuple[int, int],
    multiprocessors: int,
    gigabytes_a_second: int,
    host_bandwidth: int,
    source: str | None = None,
    *,
    context_measured: bool = False,
    vendor: Literal["nvidia", "amd"] = "nvidia",
    aliases: tuple[str, ...] = (),
) -> Device:
    """A row of the catalogue. Without a source its total is assumed; without a measured context so is that."""
    context, origin = context_for(compute_capability, vendor)
    sources = [f"total: {source}"] if source else []
    assumptions = [] if source else ["total assumed: 97 % of the card's memory, the least that others report"]
    if context_measured:
        sources.append(f"context: {origin}")
    else:
        assumptions.append(f"context assumed: {origin}")
    return Device(
        name=name,
        driver_name=driver_name,
        aliases=aliases,
        total=total,
        context=context,
        compute_capability=compute_capability,
        multiprocessors=multiprocessors,
        vendor=vendor,
        memory_bandwidth=gigabytes_a_second * 10**9,
        host_bandwidth=host_bandwidth,
        assumptions=tuple(assumptions),
        sources=tuple(sources),
    )


_DATA_CENTRE = (
    _gpu("P100", "Tesla P100-PCIE-16GB", 17_066_885_120, (6, 0), 56, 732, PCIE_3, XLA + "p100.txtpb"),
    _gpu("V100-16GB", "Tesla V100-SXM2-16GB", 16_928_342_016, (7, 0), 80, 900, PCIE_3,
         _log("16144 MBytes (16928342016 bytes), (080) Multiprocessors")),
    _gpu("V100-32GB", "Tesla V100-SXM2-32GB", 32_494 * MIB, (7, 0), 80, 900, PCIE_3,
         _log("Tesla V100-SXM2-32GB, 32494MiB")),
    _gpu("T4", "Tesla T4", 15_655_829_504, (7, 5), 40, 320, PCIE_3,
         _log("14931 MBytes (15655829504 bytes), (40) Multiprocessors"), context_measured=True),
    _gpu("A10", "NVIDIA A10", 22_594 * MIB, (8, 6), 72, 600, PCIE_4, _log("NVIDIA A10, 22.07 GiB total")),
    _gpu("A10G", "NVIDIA A10G", 22_584 * MIB, (8, 6), 80, 600, PCIE_4, _log("NVIDIA A10G, 22.06 GiB")),
    _gpu("A30", "NVIDIA A30", _97_percent(24_576), (8, 0), 56, 933, PCIE_4),
    _gpu("A40", "NVIDIA A40", 45_491 * MIB, (8, 6), 84, 696, PCIE_4, _log("NVIDIA A40, 44.43 GiB total")),
    _gpu("A100-40GB", "NVIDIA A100-SXM4-40GB", 42_298_834_944, (8, 0), 108, 1555, PCIE_4,
         "https://github.com/bottlerocket-os/bottlerocket/pull/3873", context_measured=True),
    _gpu("A100-40GB PCIe", "NVIDIA A100-PCIE-40GB", 42_298_834_944, (8, 0), 108, 1555, PCIE_4,
         "the SXM card's, whose memory it has: https://github.com/bottlerocket-os/bottlerocket/pull/3873"),
    _gpu("A100-80GB", "NVIDIA A100-SXM4-80GB", 84_987_740_160, (8, 0), 108, 2039, PCIE_4,
         "https://github.com/ultralytics/ultralytics/issues/22877 (81051MiB)", context_measured=True),
    _gpu("A100-80GB PCIe", "NVIDIA A100 80GB PCIe", 81_049 * MIB, (8, 0), 108, 1935, PCIE_4,
         "https://github.com/ekondis/mixbench/issues/47"),
    _gpu("A800-80GB", "NVIDIA A800-SXM4-80GB", 81_049 * MIB, (8, 0), 108, 2039, PCIE_4,
         "the A100's, whose memory it has: https://github.com/ekondis/mixbench/issues/47"),
    _gpu("L4", "NVIDIA L4", 22_553 * MIB, (8, 9), 58, 300, PCIE_4, _log("NVIDIA L4, 22.03 GiB")),
    _gpu("L40", "NVIDIA L40", 45_414 * MIB, (8, 9), 142, 864, PCIE_4, _log("NVIDIA L40, 44.4GB")),
    _gpu("L40S", "NVIDIA L40S", 45_450 * MIB, (8, 9), 142, 864, PCIE_4, _log("NVIDIA L40S, 44.39 GiB")),
    _gpu("H100-80GB", "NVIDIA H100 80GB HBM3", 84_929_347_584, (9, 0), 132, 3350, PCIE_5,
         _log("memory_bandwidth: 3352320000000 device_memory_size: 84929347584"),
         context_measured=True, aliases=("H100 SXM",)),
    _gpu("H100 PCIe", "NVIDIA H100 PCIe", 84_942_979_072, (9, 0), 114, 2039, PCIE_5, XLA + "h100_pcie.txtpb"),
    _gpu("H100 NVL", "NVIDIA H100 NVL", _97_percent(95_830), (9, 0), 132, 3938, PCIE_5, aliases=("H100-94GB",)),
    _gpu("H800", "NVIDIA H800", 84_929_347_584, (9, 0), 132, 3350, PCIE_5,
         "the H100's, whose memory it has: " + _log("memory_bandwidth: 3352320000000 device_memory_size: 84929347584"),
         aliases=("H800-80GB", "H800 SXM")),
    _gpu("H20", "NVIDIA H20", 97_285 * MIB, (9, 0), 78, 4000, PCIE_5,
         _log("name='NVIDIA H20', major=9, minor=0, total_memory=97285MB, multi_processor_count=78")),
    _gpu("H200", "NVIDIA H200", 150_024_683_520, (9, 0), 132, 4800, PCIE_5,
         "a later driver's, 0.06 % below " + _log("name='NVIDIA H200', major=9, minor=0, total_memory=143156MB"),
         aliases=("H200 SXM 141GB",)),
    _gpu("GH200", "NVIDIA GH200 480GB", 96_716 * MIB, (9, 0), 132, 4000, NVLINK_C2C,
         _log("NVIDIA GH200 480GB, 94.5 GiB HBM3"), aliases=("GH200 96GB",)),
    _gpu("B200", "NVIDIA B200", 182_631 * MIB, (10, 0), 148, 7672, PCIE_5,
         _log("name='NVIDIA B200', major=10, minor=0, total_memory=182631MB, multi_processor_count=148")),
    _gpu("GB200", "NVIDIA GB200", 197_897_748_480, (10, 0), 152, 7928, NVLINK_C2C, XLA + "gb200.txtpb"),
    _gpu("B300", "NVIDIA B300", _97_percent(274_658), (10, 3), 148, 8000, PCIE_5),
)  # fmt: skip

_WORKSTATION = (
    _gpu("Titan RTX", "NVIDIA TITAN RTX", 24_212 * MIB, (7, 5), 72, 672, PCIE_3, _log("NVIDIA TITAN RTX, 24212MiB")),
    _gpu("Quadro RTX 6000", "Quadro RTX 6000", _97_percent(23_040), (7, 5), 72, 672, PCIE_3),
    _gpu("Quadro RTX 8000", "Quadro RTX 8000", _97_percent(46_080), (7, 5), 72, 672, PCIE_3),
    _gpu("RTX A2000 12GB", "NVIDIA RTX A2000 12GB", 12_017 * MIB, (8, 6), 26, 288, PCIE_4,
         _log("NVIDIA RTX A2000 12GB, 12017MiB")),
    _gpu("RTX A4000", "NVIDIA RTX A4000", 15_979 * MIB, (8, 6), 48, 448, PCIE_4,
         "https://github.com/DengKaiCQ/VGGT-Long/issues/6 (15.61 GiB)"),
    _gpu("RTX A4500", "NVIDIA RTX A4500", _97_percent(20_470), (8, 6), 56, 640, PCIE_4),
    _gpu("RTX A5000", "NVIDIA RTX A5000", 24_248 * MIB, (8, 6), 64, 768, PCIE_4, _log("NVIDIA RTX A5000, 24248MiB")),
    _gpu("RTX A6000", "NVIDIA RTX A6000", 48_670 * MIB, (8, 6), 84, 768, PCIE_4,
         "https://github.com/ultralytics/ultralytics/issues/19084 (48670MiB)"),
    _gpu("RTX 4000 Ada", "NVIDIA RTX 4000 Ada Generation", _97_percent(20_475), (8, 9), 48, 360, PCIE_4),
    _gpu("RTX 5000 Ada", "NVIDIA RTX 5000 Ada Generation", _97_percent(32_760), (8, 9), 100, 576, PCIE_4),
    _gpu("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation", 48_536 * MIB, (8, 9), 142, 960, PCIE_4,
         _log("NVIDIA RTX 6000 Ada Generation, 48,536 MiB"), context_measured=True),
    _gpu("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97_250 * MIB, (12, 0), 188, 1792, PCIE_5,
         _log("name='NVIDIA RTX PRO 6000 Blackwell Server Edition' capability=12.0 vram=97250MB"),
         aliases=("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 96GB")),
)  # fmt: skip

_GEFORCE = (
    _gpu("RTX 2060", "NVIDIA GeForce RTX 2060", 5_918 * MIB, (7, 5), 30, 336, PCIE_3,
         _log("NVIDIA GeForce RTX 2060, 5918MiB")),
    _gpu("RTX 2070", "NVIDIA GeForce RTX 2070", 7_782 * MIB, (7, 5), 36, 448, PCIE_3,
         _log("NVIDIA GeForce RTX 2070, 7782 MiB total")),
    _gpu("RTX 2080", "NVIDIA GeForce RTX 2080", 7_783 * MIB, (7, 5), 46, 448, PCIE_3,
         _log("NVIDIA GeForce RTX 2080, 7783/7783 MB")),
    _gpu("RTX 2080 Ti", "NVIDIA GeForce RTX 2080 Ti", 11_009 * MIB, (7, 5), 68, 616, PCIE_3,
         _log("NVIDIA GeForce RTX 2080 Ti, 11009MiB")),
    _gpu("RTX 3060", "NVIDIA GeForce RTX 3060", 12_036 * MIB, (8, 6), 28, 360, PCIE_4,
         _log("NVIDIA GeForce RTX 3060, 12036MiB"), aliases=("RTX 3060 12GB",)),
    _gpu("RTX 3060 Ti", "NVIDIA GeForce RTX 3060 Ti", _97_percent(8_192), (8, 6), 38, 448, PCIE_4),
    _gpu("RTX 3070", "NVIDIA GeForce RTX 3070", 7_973 * MIB, (8, 6), 46, 448, PCIE_4,
         _log("NVIDIA GeForce RTX 3070, 7973.6875MB")),
    _gpu("RTX 3080", "NVIDIA GeForce RTX 3080", 10_016 * MIB, (8, 6), 68, 760, PCIE_4,
         "https://github.com/ultralytics/yolov5/issues/2855 (10016.75MB)", aliases=("RTX 3080 10GB",)),
    _gpu("RTX 3080 12GB", "NVIDIA GeForce RTX 3080", _97_percent(12_288), (8, 6), 70, 912, PCIE_4),
    _gpu("RTX 3080 Ti", "NVIDIA GeForce RTX 3080 Ti", 12_054 * MIB, (8, 6), 80, 912, PCIE_4,
         _log("NVIDIA GeForce RTX 3080 Ti, 12054MiB")),
    _gpu("RTX 3090", "NVIDIA GeForce RTX 3090", 25_296_044_032, (8, 6), 82, 936, PCIE_4,
         _log("NVIDIA GeForce RTX 3090, compute capability 8.6, total memory bytes 25296044032")),
    _gpu("RTX 3090 Ti", "NVIDIA GeForce RTX 3090 Ti", _97_percent(24_564), (8, 6), 84, 1008, PCIE_4),
    _gpu("RTX 4060 Ti", "NVIDIA GeForce RTX 4060 Ti", _97_percent(8_188), (8, 9), 34, 288, PCIE_4 // 2,
         aliases=("RTX 4060 Ti 8GB",)),
    _gpu("RTX 4060 Ti 16GB", "NVIDIA GeForce RTX 4060 Ti", 15_938 * MIB, (8, 9), 34, 288, PCIE_4 // 2,
         _log("NVIDIA GeForce RTX 4060 Ti, 15.57 GiB total VRAM")),
    _gpu("RTX 4070", "NVIDIA GeForce RTX 4070", 11_994 * MIB, (8, 9), 46, 504, PCIE_4,
         _log("NVIDIA GeForce RTX 4070, 11994MiB")),
    _gpu("RTX 4070 SUPER", "NVIDIA GeForce RTX 4070 SUPER", _97_percent(12_282), (8, 9), 56, 504, PCIE_4),
    _gpu("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti", _97_percent(12_282), (8, 9), 60, 504, PCIE_4),
    _gpu("RTX 4070 Ti SUPER", "NVIDIA GeForce RTX 4070 Ti SUPER", _97_percent(16_376), (8, 9), 66, 672, PCIE_4),
    _gpu("RTX 4080", "NVIDIA GeForce RTX 4080", 15_945 * MIB, (8, 9), 76, 716, PCIE_4,
         _log("NVIDIA GeForce RTX 4080, 15701/15945 MB, 76MCU")),
    _gpu("RTX 4080 SUPER", "NVIDIA GeForce RTX 4080 SUPER", _97_percent(16_376), (8, 9), 80, 736, PCIE_4),
    _gpu("RTX 4090", "NVIDIA GeForce RTX 4090", 25_262_096_384, (8, 9), 128, 1008, PCIE_4,
         _log("cuda:0 NVIDIA GeForce RTX 4090, vram_total: 25262096384")),
    _gpu("RTX 5070", "NVIDIA GeForce RTX 5070", _97_percent(12_227), (12, 0), 48, 672, PCIE_5),
    _gpu("RTX 5070 Ti", "NVIDIA GeForce RTX 5070 Ti", 15_880 * MIB, (12, 0), 70, 896, PCIE_5,
         _log("NVIDIA GeForce RTX 5070 Ti, 15,880 MiB, compute capability 12.0")),
    _gpu("RTX 5080", "NVIDIA GeForce RTX 5080", 15_840 * MIB, (12, 0), 84, 960, PCIE_5,
         _log("CUDA:0 (NVIDIA GeForce RTX 5080, 15840MiB)")),
    _gpu("RTX 5090", "NVIDIA GeForce RTX 5090", 33_677_180_928, (12, 0), 170, 1792, PCIE_5,
         "https://github.com/aikitoria/open-gpu-kernel-modules/issues/1"),
)  # fmt: skip

_AMD = (
    _gpu("MI210", "AMD Instinct MI210", 65_520 * MIB, (9, 0), 104, 1638, PCIE_4,
         "the MI250X's, whose memory it has: " + _log("name='AMD Instinct MI250X', total_memory=65520MB"),
         vendor="amd"),
    _gpu("MI250X", "AMD Instinct MI250X", 65_520 * MIB, (9, 0), 110, 1638, PCIE_4,
         "one of its two GPUs: " + _log("name='AMD Instinct MI250X', major=9, minor=0, total_memory=65520MB"),
         vendor="amd", aliases=("MI250", "AMD Instinct MI250X/MI250")),
    _gpu("MI300X", "AMD Instinct MI300X", 196_592 * MIB, (9, 4), 304, 5300, PCIE_5,
         _log("name='AMD Instinct MI300X', major=9, minor=4, total_memory=196592MB, multi_processor_count=304"),
         vendor="amd"),
    _gpu("MI325X", "AMD Instinct MI325X", _97_percent(262_144), (9, 4), 304, 6000, PCIE_5, vendor="amd"),
)  # fmt: skip

CATALOGUE: Final = _DATA_CENTRE + _WORKSTATION + _GEFORCE + _AMD
"""Every GPU that willfit knows, by kind."""
