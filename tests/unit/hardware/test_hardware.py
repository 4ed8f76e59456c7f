from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tunesmith import hardware

LISTING = """\
0, GPU-aaaa-1111, NVIDIA H100 80GB HBM3, 81559, 9.0
1, GPU-bbbb-2222, NVIDIA A100-SXM4-80GB, 81920, 8.0
2, GPU-cccc-3333, Tesla V100-SXM2-16GB, 16384, 7.0
"""


def test_this_machine_is_described() -> None:
    found = hardware.probe()
    assert found.num_cpus >= 1 and found.memory_bytes > 1 << 28 and found.device_memory_bytes > 0
    assert found.device_name in found.sentence() and "GiB" in found.sentence()
    json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, ["H100", "A100", "V100"]),
        ("", []),
        ("1", ["A100"]),
        ("2,0", ["V100", "H100"]),
        ("GPU-bbbb", ["A100"]),
        ("0,7,1", ["H100"]),
        ("-1", []),
    ],
)
def test_visible_devices(wanted: str | None, names: list[str]) -> None:
    found = hardware.visible(LISTING, wanted)
    assert len(found) == len(names)
    assert all(name in gpu.name for name, gpu in zip(names, found, strict=True))


def test_listing_that_is_not_one() -> None:
    assert hardware.visible("No devices were found\n", None) == []
    assert hardware.visible("0, GPU-a, Odd, [N/A], [N/A]\n", None) == []


@pytest.mark.parametrize(
    ("name", "flops"),
    [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12)],
)
def test_peaks(name: str, flops: float) -> None:
    peak = hardware.peak_of(name)
    assert peak is not None and peak.bfloat16_flops_per_second == flops and peak.source


def test_unknown_device_has_no_peak() -> None:
    assert hardware.peak_of("Intel(R) Xeon(R) Processor") is None


def test_every_row_is_reached_by_its_own_name() -> None:
    assert all(hardware.peak_of(peak.name) is peak for peak in hardware.PEAKS)


def test_looking_costs_little_and_imports_nothing_heavy() -> None:
    program = "import sys; from tunesmith.hardware import probe; probe(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout and "numpy" not in done.stdout
