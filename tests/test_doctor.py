from __future__ import annotations

import importlib
import json
import resource
import shutil
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_dsmath import doctor
from megatron_dsmath.cli import main
from megatron_dsmath.doctor import GIB, Finding, examine, show
from megatron_dsmath.fault_injection import KINDS, POINTS

INSTALLED = {
    "torch": "2.13.0",
    "megatron-core": "0.16.1",
    "sentencepiece": "0.2.3",
    "tokenizers": "0.23.3",
    "psutil": "7.2.2",
    "transformers": "5.23.0",
    "wandb": "0.31.0",
}
PYPI_APEX = ("apex/__init__.py", "apex/models.py")
NVIDIA_APEX = ("apex/__init__.py", "apex/optimizers/__init__.py")
DiskUsage = namedtuple("DiskUsage", ["total", "used", "free"])


def torch_with(
    gpus: tuple[Any, ...] = (), cuda: str | None = None, nccl: bool = False, gloo: bool = True, version: str = "2.13.0"
) -> Any:
    return SimpleNamespace(
        __version__=version,
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_properties=lambda index: gpus[index],
        ),
        version=SimpleNamespace(cuda=cuda),
        distributed=SimpleNamespace(is_gloo_available=lambda: gloo, is_nccl_available=lambda: nccl),
    )


H100 = SimpleNamespace(name="NVIDIA H100", total_memory=80 * GIB, major=9, minor=0)
V100 = SimpleNamespace(name="Tesla V100", total_memory=32 * GIB, major=7, minor=0)


class Machine:
    """A machine on which everything is correct; a test breaks one thing at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder
        self.versions = dict(INSTALLED)
        self.devices = folder / "dev"
        self.devices.mkdir()
        monkeypatch.setattr(metadata, "version", self._version)
        monkeypatch.setattr(doctor, "DEVICES", self.devices)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(100 * GIB, 0, 100 * GIB))
        monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
        monkeypatch.setattr(sys, "version_info", (3, 11, 7, "final", 0))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("NETRC", str(folder / "netrc"))
        self.has_torch(torch_with())

    def _version(self, distribution: str) -> str:
        if distribution not in self.versions:
            raise metadata.PackageNotFoundError(distribution)
        return self.versions[distribution]

    def has_torch(self, torch: Any) -> None:
        self.monkeypatch.setitem(sys.modules, "torch", torch)

    def has_files(self, *names: str) -> None:
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).touch()
        importlib.invalidate_caches()

    def finding(self, name: str) -> Finding:
        (finding,) = [finding for finding in examine() if finding.name == name]
        return finding


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_a_complete_machine_is_green(machine: Machine) -> None:
    verdicts = {finding.name: finding.verdict for finding in examine() if finding.name != "memory"}
    assert set(verdicts.values()) == {"green"}
    assert set(verdicts) >= {"python", "torch", "devices", "backends", "apex", "disk", "open files", "wandb"}


def test_every_line_that_is_not_green_has_a_remedy(machine: Machine) -> None:
    machine.versions.clear()
    machine.has_torch(torch_with((V100,), gloo=False))
    machine.monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(0, 0, 0))
    not_green = [finding for finding in examine() if finding.verdict != "green"]
    assert len(not_green) >= 10
    assert all(finding.remedy for finding in not_green)


@pytest.mark.parametrize(("minor", "verdict"), [(9, "red"), (10, "green"), (13, "green"), (14, "red")])
def test_python_is_in_the_range_of_setup_py(machine: Machine, minor: int, verdict: str) -> None:
    machine.monkeypatch.setattr(sys, "version_info", (3, minor, 0, "final", 0))
    assert machine.finding("python").verdict == verdict


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("2.10.1", "yellow"), ("2.11.0", "green"), ("2.13.0+cu130", "green"), ("2.14.0", "yellow"), ("3.0", "yellow")],
)
def test_torch_is_in_the_range_of_setup_py(machine: Machine, version: str, verdict: str) -> None:
    machine.has_torch(torch_with(version=version))
    assert machine.finding("torch").verdict == verdict


def test_the_versions_are_those_of_setup_py() -> None:
    text = (Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
    assert '"torch>=2.11,<2.14"' in text and doctor.TORCH_VERSIONS == ((2, 11), (2, 13))
    assert f'"megatron-core=={doctor.MEGATRON_CORE_VERSION}"' in text
    assert 'python_requires=">=3.10,<3.14"' in text


def test_without_torch_the_other_lines_are_still_examined(machine: Machine) -> None:
    machine.has_torch(None)  # an import of it raises ModuleNotFoundError
    del machine.versions["torch"]
    assert machine.finding("torch") == Finding("torch", "red", "not installed", "pip install 'torch>=2.11,<2.14'")
    assert machine.finding("megatron-core").verdict == "green"


def test_a_torch_that_does_not_import_shows_its_error(machine: Machine) -> None:
    machine.monkeypatch.delitem(sys.modules, "torch")
    (machine.folder / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')", encoding="utf-8")
    importlib.invalidate_caches()
    finding = machine.finding("torch")
    assert finding.verdict == "red"
    assert finding.found == "2.13.0 does not import: libcudart.so.13: cannot open"


def test_each_gpu_has_a_line_and_is_yellow_without_bf16(machine: Machine) -> None:
    machine.has_torch(torch_with((H100, V100), cuda="13.0", nccl=True))
    assert machine.finding("gpu 0") == Finding("gpu 0", "green", "NVIDIA H100, 80 GiB, compute capability 9.0")
    assert machine.finding("gpu 1").verdict == "yellow"
    assert "no bf16" in machine.finding("gpu 1").found


@pytest.mark.parametrize(("cuda", "remedy"), [(None, "built for CPUs"), ("13.0", "torch's 13.0")])
def test_a_gpu_that_torch_cannot_use_is_reported(machine: Machine, cuda: str | None, remedy: str) -> None:
    (machine.devices / "nvidia0").touch()
    machine.has_torch(torch_with(cuda=cuda))
    assert machine.finding("devices").verdict == "yellow"
    assert remedy in str(machine.finding("devices").remedy)


@pytest.mark.parametrize(
    ("gpus", "gloo", "nccl", "verdict"),
    [
        ((), True, False, "green"),
        ((), False, False, "red"),
        ((H100,), True, False, "red"),
        ((H100,), True, True, "green"),
    ],
)
def test_the_backend_of_the_device_is_needed(
    machine: Machine, gpus: tuple[Any, ...], gloo: bool, nccl: bool, verdict: str
) -> None:
    machine.has_torch(torch_with(gpus, gloo=gloo, nccl=nccl))
    assert machine.finding("backends").verdict == verdict


@pytest.mark.parametrize("version", [None, "0.15.0", "0.16.10"])
def test_another_megatron_core_is_red(machine: Machine, version: str | None) -> None:
    machine.versions.pop("megatron-core")
    if version is not None:
        machine.versions["megatron-core"] = version
    finding = machine.finding("megatron-core")
    assert (finding.verdict, finding.remedy) == ("red", "pip install megatron-core==0.16.1")


@pytest.mark.parametrize(
    ("files", "verdict", "found"),
    [
        (PYPI_APEX, "yellow", "PyPI's apex, an unrelated package"),
        (NVIDIA_APEX, "yellow", "NVIDIA's, built without its CUDA extensions (amp_C)"),
        ((*NVIDIA_APEX, "amp_C.py"), "green", "NVIDIA's, version unknown"),
    ],
)
def test_nvidias_apex_is_distinguished_from_pypis(
    machine: Machine, files: tuple[str, ...], verdict: str, found: str
) -> None:
    machine.has_files(*files)
    finding = machine.finding("apex")
    assert (finding.verdict, finding.found) == (verdict, found)


@pytest.mark.parametrize("name", ["apex", "transformer-engine"])
def test_gpu_kernels_are_needed_only_with_a_gpu(machine: Machine, name: str) -> None:
    assert machine.finding(name).verdict == "green"
    machine.has_torch(torch_with((H100,), cuda="13.0", nccl=True))
    assert machine.finding(name).verdict == "yellow"


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("sentencepiece", "red"),
        ("tokenizers", "red"),
        ("psutil", "red"),
        ("transformers", "yellow"),
        ("wandb", "yellow"),
    ],
)
def test_a_missing_package_is_red_if_a_verb_fails_without_it(machine: Machine, name: str, verdict: str) -> None:
    del machine.versions[name]
    assert machine.finding(name).verdict == verdict


@pytest.mark.parametrize(("free_gib", "verdict"), [(0.5, "red"), (1, "yellow"), (19.9, "yellow"), (20, "green")])
def test_disk_space_is_that_of_the_working_directory(machine: Machine, free_gib: float, verdict: str) -> None:
    free = int(free_gib * GIB)
    usage = {Path.cwd(): DiskUsage(0, 0, free), doctor.SHARED_MEMORY: DiskUsage(GIB, 0, 0)}
    machine.monkeypatch.setattr(shutil, "disk_usage", usage.__getitem__)
    assert machine.finding("disk").verdict == verdict
    assert str(Path.cwd()) in machine.finding("disk").found


def test_dockers_64_mib_of_shared_memory_are_yellow(machine: Machine, tmp_path: Path) -> None:
    machine.monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    machine.monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(64 * 1024**2, 0, 0))
    assert machine.finding("shared memory").verdict == "yellow"
    assert "--shm-size" in str(machine.finding("shared memory").remedy)


def test_a_containers_limit_bounds_the_memory(machine: Machine) -> None:
    files = {
        "/proc/cpuinfo": [],
        "/proc/meminfo": ["MemTotal: 99 kB", "MemAvailable:   67108864 kB"],
        "/sys/fs/cgroup/memory.max": [str(4 * GIB)],
        "/sys/fs/cgroup/memory.current": [str(GIB)],
    }
    machine.monkeypatch.setattr(doctor, "_lines", files.__getitem__)
    assert machine.finding("memory").found == "3.0 GiB available"
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert machine.finding("memory").found == "64.0 GiB available"


@pytest.mark.parametrize(("limit", "verdict"), [(1024, "yellow"), (4096, "green"), (resource.RLIM_INFINITY, "green")])
def test_few_open_files_are_yellow(machine: Machine, limit: int, verdict: str) -> None:
    machine.monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert machine.finding("open files").verdict == verdict


def test_wandb_is_offline_without_a_key(machine: Machine) -> None:
    assert machine.finding("wandb").found.startswith("0.31.0, offline: no API key")


def test_no_key_is_ever_printed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "0123456789abcdef" * 2
    (machine.folder / "netrc").write_text(f"machine api.wandb.ai login user password {secret}\n", encoding="utf-8")
    show(examine())
    machine.monkeypatch.setenv("WANDB_API_KEY", secret)
    show(examine())
    show(examine(), as_json=True)
    printed = capsys.readouterr()
    assert printed.out.count("0.31.0, online") == 3
    assert secret not in printed.out + printed.err


def test_lines_name_verdict_finding_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert show([Finding("disk", "red", "0.1 GiB free", "free space"), Finding("torch", "green", "2.13.0")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "red     disk                0.1 GiB free",
        "                            -> free space",
        "green   torch               2.13.0",
    ]


def test_only_red_makes_the_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert show([Finding("open files", "yellow", "1024", "ulimit"), Finding("torch", "green", "2.13.0")]) == 0


def test_json_has_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    show([Finding("torch", "green", "2.13.0")], as_json=True)
    expected = [{"name": "torch", "verdict": "green", "found": "2.13.0", "remedy": None}]
    assert json.loads(capsys.readouterr().out) == expected


def test_every_fault_point_and_kind_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--fault-points"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert {*POINTS, *KINDS} <= {line[0] for line in lines}
    assert main(["doctor", "--fault-points", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"variable": "DSMATH_FAULT", "points": POINTS, "kinds": KINDS}
