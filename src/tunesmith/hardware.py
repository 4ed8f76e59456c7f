"""What this machine has, and what devices of its kind can do. Imports no ML library.

On a machine without an NVIDIA driver, `probe` reads a handful of small files; with one, it asks `nvidia-smi` once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tunesmith.frozen import frozen


@frozen
class Peak:
    """What a device can do at most, by its maker's data sheet: dense bfloat16, no sparsity."""

    name: str  # as it stands in the device's own name
    bfloat16_flops_per_second: float
    memory_bytes_per_second: float
    source: str


# More specific names come first: the first row whose name occurs in the device's name counts.
PEAKS = (
    Peak("B200", 2250e12, 8.0e12, "NVIDIA HGX B200 data sheet 2024: 36 PFLOP/s sparse bf16 over 8 GPUs"),
    Peak("H200", 989.4e12, 4.8e12, "NVIDIA H200 data sheet 2024 (SXM; bf16 1,979 TFLOP/s sparse)"),
    Peak("H100 PCIe", 756e12, 2.0e12, "NVIDIA H100 data sheet 2023 (PCIe; bf16 1,513 TFLOP/s sparse)"),
    Peak("H100 NVL", 835e12, 3.9e12, "NVIDIA H100 data sheet 2024 (NVL; bf16 1,671 TFLOP/s sparse)"),
    Peak("H100", 989.4e12, 3.35e12, "NVIDIA H100 data sheet 2023 (SXM; bf16 1,979 TFLOP/s sparse)"),
    Peak("A100-SXM4-80GB", 312e12, 2.039e12, "NVIDIA A100 data sheet 2021 (SXM 80 GB)"),
    Peak("A100 80GB PCIe", 312e12, 1.935e12, "NVIDIA A100 data sheet 2021 (PCIe 80 GB)"),
    Peak("A100", 312e12, 1.555e12, "NVIDIA A100 data sheet 2020 (40 GB)"),
    Peak("L40S", 362e12, 0.864e12, "NVIDIA L40S data sheet 2023 (bf16 733 TFLOP/s sparse)"),
    Peak("L4", 121e12, 0.3e12, "NVIDIA L4 data sheet 2023 (bf16 242 TFLOP/s sparse)"),
    Peak("A10G", 70e12, 0.6e12, "AWS EC2 G5 instances: A10G, 70 TFLOP/s dense tensor"),
    Peak("A10", 125e12, 0.6e12, "NVIDIA A10 data sheet 2021"),
    Peak("RTX A6000", 154.8e12, 0.768e12, "NVIDIA RTX A6000 data sheet 2021 (309.7 TFLOP/s sparse)"),
    Peak("RTX 4090", 165.2e12, 1.008e12, "NVIDIA Ada architecture white paper 2022, table 2 (fp32 accumulate)"),
    Peak("RTX 3090", 71e12, 0.936e12, "NVIDIA Ampere GA102 white paper 2020, table 3 (fp32 accumulate)"),
)


def peak_of(device_name: str) -> Peak | None:
    """Return what the data sheet says about a device, or None for one that is not in the table."""
    return next((peak for peak in PEAKS if peak.name.lower() in device_name.lower()), None)


@frozen
class Hardware:
    """This machine, as far as training and planning care."""

    device: Literal["cpu", "cuda"]  # what computes
    device_name: str
    num_devices: int  # of that kind; 1 for the CPU
    device_memory_bytes: int  # of one device; for the CPU what this process may use at most
    num_cpus: int  # that this process may run on
    memory_bytes: int
    has_fast_bfloat16: bool
    cpu_features: tuple[str, ...] = ()  # of those that matter to matrix products

    def to_json(self) -> dict[str, Any]:
        """Return every fact, JSON-ready."""
        peak = peak_of(self.device_name)
        return dataclasses.asdict(self) | {"peak": dataclasses.asdict(peak) if peak else None}

    def sentence(self) -> str:
        """Return the machine in one line."""
        cpus = f"{self.num_cpus} CPU{'s' if self.num_cpus != 1 else ''}, {self.memory_bytes / 2**30:.0f} GiB memory"
        if self.device == "cpu":
            features = f", {' '.join(self.cpu_features)}" if self.cpu_features else ""
            return f"{self.device_name}: {cpus}{features}"
        many = f"{self.num_devices} × " if self.num_devices > 1 else ""
        return f"{many}{self.device_name} with {self.device_memory_bytes / 2**30:.0f} GiB; {cpus}"


_FEATURES = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx2", "bf16", "i8mm", "sve")
# Not AVX512-BF16 alone: with it, oneDNN multiplies at half the speed of float32 (100 against 190 GFLOP/s on
# one core without AMX, torch 2.13).
_FAST_BFLOAT16 = {"amx_bf16", "bf16"}


@cache
def probe() -> Hardware:
    """Look at this machine. Costs about a millisecond, and one call of `nvidia-smi` where there is a driver."""
    name, features = _cpu()
    memory = _memory_bytes()
    gpus = _gpus()
    if gpus:
        least = min(gpus, key=lambda gpu: gpu.memory_bytes)
        return Hardware(
            device="cuda",
            device_name=least.name,
            num_devices=len(gpus),
            device_memory_bytes=least.memory_bytes,
            num_cpus=num_cpus(),
            memory_bytes=memory,
            has_fast_bfloat16=all(gpu.compute_capability >= 8.0 for gpu in gpus),
            cpu_features=features,
        )
    fast = bool(_FAST_BFLOAT16 & set(features))
    return Hardware("cpu", name, 1, memory, num_cpus(), memory, fast, features)


def num_cpus() -> int:
    """Return how many CPUs this process may use: affinity, and the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def _memory_bytes() -> int:
    """Return the machine's memory, or the container's limit when that is lower; 0 when unknown."""
    total = 0
    with contextlib.suppress(ValueError, OSError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _read(limit_file).strip()
        if limit.isdigit():
            total = min(total, int(limit)) if total else int(limit)
    return total


def _cpu() -> tuple[str, tuple[str, ...]]:
    name, flags = os.uname().machine or "CPU", set[str]()
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
        elif not line:  # the first processor is enough
            break
    return name, tuple(feature for feature in _FEATURES if feature in flags)


@frozen
class _Gpu:
    name: str
    memory_bytes: int
    compute_capability: float


def _gpus() -> list[_Gpu]:
    """Return the NVIDIA devices that this process sees."""
    if not Path("/proc/driver/nvidia/version").exists() and not Path("/dev/nvidiactl").exists():
        return []
    import subprocess

    query = "--query-gpu=index,uuid,name,memory.total,compute_cap"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return visible(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(listing: str, wanted: str | None) -> list[_Gpu]:
    """Read nvidia-smi's answer, keeping what CUDA_VISIBLE_DEVICES names (indices, or beginnings of UUIDs)."""
    gpus: dict[str, _Gpu] = {}
    by_uuid: dict[str, str] = {}
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 5:
            continue
        index, uuid, name, mebibytes, capability = cells
        with contextlib.suppress(ValueError):
            gpus[index] = _Gpu(name, int(float(mebibytes)) << 20, float(capability))
            by_uuid[uuid] = index
    if wanted is None:
        return list(gpus.values())
    chosen: list[_Gpu] = []
    for word in (word.strip() for word in wanted.split(",")):
        index = word if word in gpus else next((i for uuid, i in by_uuid.items() if word and uuid.startswith(word)), "")
        if index not in gpus:  # CUDA, too, stops at the first word that names no device
            break
        chosen.append(gpus[index])
    return chosen


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
