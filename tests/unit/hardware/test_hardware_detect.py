"""What is found out about a machine, on fake trees and with fake tools."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from oprel.hardware import detect_hardware, with_free_memory
from oprel.hardware.amd import amd_gpus
from oprel.hardware.apple import apple_gpus
from oprel.hardware.cgroups import CgroupLimits, read_limits
from oprel.hardware.cpu import count_cores
from oprel.hardware.memory import read_memory
from oprel.hardware.nvidia import nvidia_gpus

MIB = 1024 * 1024
GIB = 1024 * MIB


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def no_nvidia(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


class TestCgroups:
    def test_version_2_takes_the_tightest_limit_on_the_way_up(self, tmp_path: Path) -> None:
        root = write(
            tmp_path,
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": str(4 * GIB),
                "sys/fs/cgroup/a/memory.current": str(3 * GIB),
                "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB}\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
            },
        )
        assert read_limits(root) == CgroupLimits(memory_bytes=4 * GIB, free_bytes=2 * GIB, cpus=2)

    def test_version_1_is_read_too(self, tmp_path: Path) -> None:
        root = write(
            tmp_path,
            {
                "proc/self/cgroup": "9:memory:/box\n1:cpu,cpuacct:/box\n0::/\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(GIB),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            },
        )
        assert read_limits(root) == CgroupLimits(memory_bytes=2 * GIB, free_bytes=GIB, cpus=1)

    @pytest.mark.parametrize(
        "files",
        [{}, {"proc/self/cgroup": "0::/\n"}, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}],
        ids=["nothing", "unreadable", "max"],
    )
    def test_no_limit_is_no_limit(self, tmp_path: Path, files: dict[str, str]) -> None:
        assert read_limits(write(tmp_path, files)) == CgroupLimits()


class TestCores:
    def test_processors_that_share_a_core_count_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
        for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
            write(tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": siblings + "\n"})
        assert count_cores("Linux", tmp_path, None) == (2, 4)

    def test_affinity_and_quota_bound_both(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6}, raising=False)
        assert count_cores("Linux", tmp_path, None) == (3, 3)
        assert count_cores("Linux", tmp_path, 2) == (2, 2)


class TestMemory:
    MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"

    def test_available_is_what_the_kernel_says(self, tmp_path: Path) -> None:
        root = write(tmp_path, {"proc/meminfo": self.MEMINFO})
        assert read_memory("Linux", root, CgroupLimits()) == (16 * GIB, 8 * GIB)

    def test_a_containers_limit_is_the_machine(self, tmp_path: Path) -> None:
        root = write(tmp_path, {"proc/meminfo": self.MEMINFO})
        limits = CgroupLimits(memory_bytes=4 * GIB, free_bytes=3 * GIB)
        assert read_memory("Linux", root, limits) == (4 * GIB, 3 * GIB)

    def test_macos_counts_what_it_can_reclaim(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tool(tmp_path, "sysctl", 'test "$2" = hw.memsize && echo 17179869184')
        lines = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free: 100.\nPages active: 900.\n"
        (tmp_path / "report").write_text(lines + "Pages inactive: 20.\nPages speculative: 3.\nPages purgeable: 1.\n")
        tool(tmp_path, "vm_stat", f'while read -r line; do echo "$line"; done < {tmp_path / "report"}')
        monkeypatch.setenv("PATH", str(tmp_path))
        assert read_memory("Darwin", tmp_path, CgroupLimits()) == (16 * GIB, 124 * 16384)


class TestNvidia:
    def test_by_nvidia_smi(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_nvidia: None) -> None:
        tool(
            tmp_path / "bin",
            "nvidia-smi",
            "echo '0, NVIDIA RTX, 4090, GPU-1, 24564, 24000'; echo '1, B, U2, [N/A], [N/A]'",
        )
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        gpus, problems = nvidia_gpus(tmp_path)
        assert not problems
        # The first line has a comma too many to be read, and a wrong figure would be worse than none.
        assert [(gpu.index, gpu.name, gpu.uuid, gpu.total_bytes) for gpu in gpus] == [(1, "B", "U2", 0)]

    def test_free_memory_by_nvidia_smi(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_nvidia: None) -> None:
        tool(tmp_path / "bin", "nvidia-smi", "echo '0, NVIDIA A, GPU-1, 24564, 24000'")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        (gpu,) = nvidia_gpus(tmp_path)[0]
        assert (gpu.vendor, gpu.found_by) == ("nvidia", "nvidia-smi")
        assert (gpu.total_bytes, gpu.free_bytes) == (24564 * MIB, 24000 * MIB)

    def test_a_driver_that_fails_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_nvidia: None
    ) -> None:
        tool(tmp_path / "bin", "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        gpus, problems = nvidia_gpus(tmp_path)
        assert gpus == ()
        assert "NVIDIA-SMI has failed" in problems[0]

    def test_a_gpu_without_a_driver_is_told(self, tmp_path: Path, no_nvidia: None) -> None:
        device = "sys/bus/pci/devices/0000:01:00.0"
        root = write(tmp_path, {f"{device}/class": "0x030000\n", f"{device}/vendor": "0x10de\n"})
        gpus, problems = nvidia_gpus(root)
        assert gpus == ()
        assert "nvidia-smi" in problems[0]

    def test_nothing_is_nothing(self, tmp_path: Path, no_nvidia: None) -> None:
        assert nvidia_gpus(tmp_path) == ((), ())

    def test_nvml_is_asked_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nvml = types.ModuleType("pynvml")
        calls = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda _: b"NVIDIA H100",
            "nvmlDeviceGetUUID": lambda _: "GPU-9",
            "nvmlDeviceGetMemoryInfo": lambda _: types.SimpleNamespace(total=80 * GIB, free=79 * GIB),
        }
        for name, call in calls.items():
            setattr(nvml, name, call)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        (gpu,) = nvidia_gpus(tmp_path)[0]
        assert (gpu.name, gpu.uuid, gpu.free_bytes, gpu.found_by) == ("NVIDIA H100", "GPU-9", 79 * GIB, "nvml")

    def test_nvml_without_a_driver_on_a_machine_without_a_gpu_is_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_nvidia: None
    ) -> None:
        nvml = types.ModuleType("pynvml")

        def fail() -> None:
            raise RuntimeError("NVML Shared Library Not Found")

        nvml.nvmlInit = fail  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        assert nvidia_gpus(tmp_path) == ((), ())


def test_amd_by_the_kernels_files(tmp_path: Path) -> None:
    device = "sys/class/drm/card1/device"
    root = write(
        tmp_path,
        {
            f"{device}/mem_info_vram_total": f"{16 * GIB}\n",
            f"{device}/mem_info_vram_used": f"{GIB}\n",
            f"{device}/product_name": "Radeon RX 7800\n",
        },
    )
    (gpu,) = amd_gpus(root)
    assert (gpu.vendor, gpu.name, gpu.free_bytes) == ("amd", "Radeon RX 7800", 15 * GIB)


def test_apple_shares_the_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "sysctl", 'test "$2" = machdep.cpu.brand_string && echo "Apple M9"')
    monkeypatch.setenv("PATH", str(tmp_path))
    (gpu,) = apple_gpus("arm64", 16 * GIB, 4 * GIB)
    assert (gpu.name, gpu.total_bytes, gpu.free_bytes) == ("Apple M9", 12 * GIB, 4 * GIB)
    assert apple_gpus("x86_64", 16 * GIB, 4 * GIB) == ()


class TestDetection:
    def test_this_machine(self) -> None:
        found = detect_hardware()
        assert 0 < found.cores <= found.threads
        assert 0 < found.ram_available_bytes <= found.ram_total_bytes

    def test_never_raises(self, tmp_path: Path, no_nvidia: None) -> None:
        """A machine without /proc still has an answer, and notes that say what is missing."""
        found = detect_hardware(root=tmp_path)
        assert found.ram_total_bytes == 0
        assert any("memory" in note for note in found.notes)

    def test_free_memory_is_looked_at_again_alone(self, tmp_path: Path, no_nvidia: None) -> None:
        root = write(tmp_path, {"proc/meminfo": TestMemory.MEMINFO})
        first = detect_hardware(root=root)
        write(root, {"proc/meminfo": TestMemory.MEMINFO.replace("8388608", "4194304")})
        again = with_free_memory(first, root=root)
        assert (first.ram_available_bytes, again.ram_available_bytes) == (8 * GIB, 4 * GIB)
        assert again.cores == first.cores
