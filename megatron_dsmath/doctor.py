"""`dsmath doctor`: what this machine has for the other verbs, one line each, with a remedy for what is missing.

Green: correct; yellow: works with a limitation; red: a verb fails. Nothing is installed, written or sent.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, DsmathError

Verdict = Literal["green", "yellow", "red"]

GIB = 1024**3
SLOWER = "its faster kernels are not used"
TORCH_VERSIONS = ((2, 11), (2, 13))  # oldest and newest, as in setup.py
INSTALL_TORCH = "pip install 'torch>=2.11,<2.14'"
MEGATRON_CORE_VERSION = "0.16.1"
DEVICES = Path("/dev")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # nothing is written there


@dataclass(frozen=True)
class Finding:
    """One line: the item, its verdict, what was found, and the next step if it is not green."""

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None


def examine() -> list[Finding]:
    """Examine the machine, in the order of its installation; takes as long as importing torch."""
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, ImportError or what its libraries choose
        on_gpu, of_torch = False, [_broken_torch(error)]
    else:
        on_gpu = torch.cuda.is_available()
        of_torch = [_torch_version(torch.__version__), *_devices(torch), _backends(torch.distributed, on_gpu)]
    return [_python(), *of_torch, *_packages(on_gpu), *_machine(), _sandbox(), _weights_and_biases()]


def show(findings: Sequence[Finding], as_json: bool = False) -> int:
    """Print the findings as lines or as a JSON list; return the exit code, 1 if one is red."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(soft_wrap=True, highlight=False)
        for finding in findings:
            console.print(Text(f"{finding.verdict:<8}", style=finding.verdict) + f"{finding.name:<20}{finding.found}")
            if finding.remedy:
                console.print(Text(f"{'':<28}-> {finding.remedy}"))
    return EXIT_ANSWER_IS_NO if any(finding.verdict == "red" for finding in findings) else EXIT_DONE


def show_fault_points(as_json: bool = False) -> int:
    """Print the points and kinds of injected faults; return the exit code."""
    from megatron_dsmath.fault_injection import KINDS, POINTS, VARIABLE
    from megatron_dsmath.tables import print_table

    if as_json:
        print(json.dumps({"variable": VARIABLE, "points": POINTS, "kinds": KINDS}, indent=1))
        return EXIT_DONE
    for table, columns in ((POINTS, ("point", "state of the run")), (KINDS, ("kind", "effect"))):
        print_table([dict(zip(columns, row, strict=True)) for row in table.items()], columns, False)
    print(f"{VARIABLE}=KIND:POINT, optionally with :rank=N, :step=N, :count=N; see docs/faults.md")
    return EXIT_DONE


def _python() -> Finding:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "green", version)
    return Finding("python", "red", version, "use Python 3.10 to 3.13")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _broken_torch(error: Exception) -> Finding:
    installed = _version("torch")
    if installed is None:
        return Finding("torch", "red", "not installed", INSTALL_TORCH)
    return Finding("torch", "red", f"{installed} does not import: {error}", "pip install --force-reinstall torch")


def _torch_version(version: str) -> Finding:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if TORCH_VERSIONS[0] <= numbers <= TORCH_VERSIONS[1]:
        return Finding("torch", "green", version)
    return Finding("torch", "yellow", f"{version}, not tested", INSTALL_TORCH)


def _devices(torch: Any) -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield _without_gpu(torch.version.cuda)
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found = f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        if gpu.major >= 8:
            yield Finding(f"gpu {index}", "green", found)
        else:
            yield Finding(f"gpu {index}", "yellow", f"{found}: no bf16", "train with precision: fp32")


def _without_gpu(cuda: str | None) -> Finding:  # `cuda`: the CUDA version of the torch build
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = {flag for line in _lines("/proc/cpuinfo") for flag in line.split()}
    in_hardware = flags & {"avx512_bf16", "amx_bf16", "bf16"}  # Linux' names on x86-64 (AVX-512, AMX) and Arm
    found = f"{cores} CPU cores, bf16 {'in hardware' if in_hardware else 'emulated'}"
    if not any(DEVICES.glob("nvidia[0-9]*")):
        return Finding("devices", "green", f"no GPU; {found}")
    remedy = f"check CUDA_VISIBLE_DEVICES, and nvidia-smi's CUDA version against torch's {cuda}"
    if cuda is None:
        remedy = "this torch is built for CPUs: install the CUDA build (pytorch.org/get-started)"
    return Finding("devices", "yellow", f"this machine has a GPU that torch cannot use; {found}", remedy)


def _backends(distributed: Any, on_gpu: bool) -> Finding:
    has = {"gloo": distributed.is_gloo_available(), "nccl": distributed.is_nccl_available()}
    found = ", ".join(name for name, there in has.items() if there) or "none"
    needed = "nccl" if on_gpu else "gloo"
    if has[needed]:
        return Finding("backends", "green", found)
    return Finding("backends", "red", f"{found}; {needed} is missing", f"install a torch built with {needed}")


def _packages(on_gpu: bool) -> Iterator[Finding]:
    yield _megatron_core()
    yield _apex(on_gpu)
    yield _package("transformer-engine", "yellow", SLOWER, "pip install 'megatron_dsmath[gpu]'", needed=on_gpu)
    yield _package("flash-attn", "yellow", SLOWER, "", needed=False)  # torch's attention has its own flash kernel
    yield _package("sentencepiece", "red", "SentencePiece tokenizers cannot be read", "pip install sentencepiece")
    yield _package("tokenizers", "red", "tokenizer.json files cannot be read", "pip install tokenizers")
    yield _package("psutil", "red", "megatron-core's checkpoint writer hangs without it", "pip install psutil")
    yield _package("transformers", "yellow", "no comparison with its models", "pip install 'megatron_dsmath[hf]'")


def _package(name: str, verdict: Verdict, lost: str, remedy: str, needed: bool = True) -> Finding:
    version = _version(name)
    return _absent(name, verdict, lost, remedy, needed) if version is None else Finding(name, "green", version)


def _absent(name: str, verdict: Verdict, lost: str, remedy: str, needed: bool) -> Finding:
    if needed:
        return Finding(name, verdict, f"not installed: {lost}", remedy)
    return Finding(name, "green", "not installed, not needed here")


def _megatron_core() -> Finding:
    version = _version("megatron-core")
    if version == MEGATRON_CORE_VERSION:
        return Finding("megatron-core", "green", version)
    found = f"{version or 'not installed'}: {MEGATRON_CORE_VERSION} is needed"
    return Finding("megatron-core", "red", found, f"pip install megatron-core=={MEGATRON_CORE_VERSION}")


def _apex(on_gpu: bool) -> Finding:
    """NVIDIA's apex has `apex.optimizers` and the compiled `amp_C`; PyPI's apex is an unrelated package."""
    spec = importlib.util.find_spec("apex")  # does not import it
    source = "build NVIDIA's apex from github.com/NVIDIA/apex with its CUDA extensions, or use NVIDIA's container"
    if spec is None:
        return _absent("apex", "yellow", SLOWER, source, needed=on_gpu)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "optimizers").is_dir() for folder in folders):
        return Finding("apex", "yellow", "PyPI's apex, an unrelated package", f"pip uninstall apex; {source}")
    if importlib.util.find_spec("amp_C") is None:
        return Finding("apex", "yellow", "NVIDIA's, built without its CUDA extensions (amp_C)", source)
    return Finding("apex", "green", f"NVIDIA's, {_version('apex') or 'version unknown'}")


def _machine() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    yield _amount("disk", free, (1, 20), f"free in {Path.cwd()}", "free space, or use a larger disk")
    yield _amount("memory", _memory_bytes(), (2, 8), "available", "end other programs, or use a larger machine")
    if SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        yield _amount("shared memory", size, (0, 1), f"in {SHARED_MEMORY}", "docker run --shm-size=8g, or --ipc=host")
    yield _open_files()


def _amount(name: str, size: int, limits_gib: tuple[int, int], where: str, remedy: str) -> Finding:
    """Red below the first limit, yellow below the second."""
    found = f"{size / GIB:.1f} GiB {where}"
    if size >= limits_gib[1] * GIB:
        return Finding(name, "green", found)
    return Finding(name, "yellow" if size >= limits_gib[0] * GIB else "red", found, remedy)


def _memory_bytes() -> int:
    """Host memory available to a process: of the machine, or of the container if that has less."""
    available = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():  # "max": no limit
        available = min(available, int(limit[0]) - int(used[0]))
    return available


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _open_files() -> Finding:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return Finding("open files", "green", "no limit")
    if limit >= 4096:
        return Finding("open files", "green", f"{limit} per process")
    return Finding("open files", "yellow", f"{limit} per process: few for many ranks and corpora", "ulimit -n 65536")


def _sandbox() -> Finding:
    """Whether the sandbox works here, found by running a program in it."""
    from megatron_dsmath.sandbox import landlock
    from megatron_dsmath.sandbox.pool import Sandbox

    try:
        with Sandbox(workers=1, modules=()) as sandbox:
            outcome, isolation = sandbox.run("import os\nos.fork()"), sandbox.isolation
    except DsmathError as error:
        found = f"evaluation with tools cannot run: {error.what}, {error.found}"
        return Finding("sandbox", "yellow", found, error.fix or "")
    if outcome.verdict != "denied":
        return Finding("sandbox", "red", f"a program that forks got the verdict {outcome.verdict}", "report this")
    return Finding("sandbox", "green", f"{isolation} (Landlock version {landlock.version()})")


def _weights_and_biases() -> Finding:
    """The mode of `tracking.wandb: auto` on this machine; the key is never printed."""
    from megatron_dsmath.training.weights_and_biases import wandb_mode

    version = _version("wandb")
    if version is None:
        found = "not installed: metrics are written only to metrics.jsonl"
        return Finding("wandb", "yellow", found, "pip install wandb")
    if wandb_mode("auto") == "online":
        return Finding("wandb", "green", f"{version}, online: an API key was found")
    found = f"{version}, offline: no API key; `wandb sync RUN_DIR/wandb/*` uploads a run later"
    return Finding("wandb", "green", found)
