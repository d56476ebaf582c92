"""Reports that the memory of the host or the device is exhausted, as one error in place of the allocator's."""

from __future__ import annotations

import errno
import re
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import ConfigError, DsmathError, InternalError
from megatron_dsmath.training.rank_progress import RankProgress

# Messages of torch's allocator on the host, C++, numpy, the dynamic loader, CUDA and its libraries.
_SIGNS = re.compile(
    r"can't allocate memory|unable to allocate|bad_alloc|cannot allocate memory|failed to map segment|out of memory|"
    r"_ALLOC_FAILED",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.,]+ ?(?:bytes|[KMGT]i?B))", re.IGNORECASE)
_FP32 = 4  # bytes


@contextmanager
def report_out_of_memory(run: RunConfig, progress: RankProgress, rank: int, world_size: int) -> Iterator[None]:
    """Raise ConfigError for an allocation that fails within, because the same start would fail again.

    Raises InternalError where a step was done before: another process has taken the memory. Other errors pass.
    """
    try:
        yield
    except DsmathError:
        raise
    except BaseException as error:
        if not _is_out_of_memory(error):
            raise
        on_device = type(error).__name__ == "OutOfMemoryError"
        asked = _ASKED.search(str(error))
        traceback.clear_frames(error.__traceback__)  # their locals hold tensors
        size = asked.group(1) if asked else "memory"
        raise _error(run, progress, rank, world_size, size, on_device) from None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # torch.OutOfMemoryError is a RuntimeError, as is the error of torch's allocator on the host.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError) and _SIGNS.search(str(error)) is not None
    )


def _error(
    run: RunConfig, progress: RankProgress, rank: int, world_size: int, asked: str, on_device: bool
) -> DsmathError:
    section, step = progress.section, progress.step + (progress.section == "step")
    when = section if section in ("setup", "end") else f"{section} {step}"
    where = [f"rank {rank}", progress.topology, when, progress.detail]
    device = "device" if on_device else "host"
    facts = {
        "where": ", ".join(filter(None, where)),
        "found": f"{asked} requested; {_device_memory() if on_device else _host_memory()}",
        "expected": f"memory for this rank, about: {_required_memory(run, world_size)}",
    }
    fix = _remedies(run, on_device)
    if progress.median_step_seconds is None:
        return ConfigError(f"the {device} is out of memory", **facts, fix=fix)
    fix = f"earlier steps had enough memory: check which other processes use it, and run it again; or {fix}"
    return InternalError(f"the {device} is out of memory", **facts, fix=fix)


def _required_memory(run: RunConfig, world_size: int) -> str:
    """The sizes that follow from the run file, in the order of their allocation."""
    parallel, model = run.parallel, run.model
    parameters = model.parameters // parallel.model_size
    data_size = max(1, world_size // parallel.model_size)
    shared = data_size if parallel.distributed_optimizer else 1
    weight_bytes = 2 if run.precision == "bf16" else _FP32
    copies = 2 + (run.precision == "bf16")  # two moments, and the fp32 weights
    targets = parallel.microbatch_sequences * run.data.sequence_length
    sizes = {
        f"weights ({parameters:,} parameters)": parameters * weight_bytes,
        "gradients": parameters * _FP32,
        "optimizer state": parameters * _FP32 * copies // shared,
        "a save's copy in host memory": parameters * (_FP32 * 3 // shared + weight_bytes),
        "logits of a microbatch on the last stage": targets * model.vocabulary_size // parallel.tensor * _FP32,
    }
    return ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items()) + ", and its activations"


def _remedies(run: RunConfig, on_device: bool) -> str:
    """Changes of the run file that save memory, cheapest first, without those that are made already."""
    parallel = run.parallel
    remedies = []
    if parallel.microbatch_sequences > 1:
        remedies.append(f"lower parallel.microbatch_sequences ({parallel.microbatch_sequences})")
    if parallel.recompute != "full":
        remedies.append(f"set parallel.recompute to {'selective or ' * (parallel.recompute == 'none')}full")
    if not parallel.distributed_optimizer:
        remedies.append("set parallel.distributed_optimizer: true")
    remedies.append(f"raise parallel.tensor ({parallel.tensor}) or parallel.pipeline ({parallel.pipeline})")
    remedies.append("use more ranks" if on_device else "start fewer ranks per machine")
    return ", then ".join(remedies)


def _host_memory() -> str:
    """The memory that is available on this machine, and the limit of this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    held, left = _proc_bytes("/proc/self/status", "VmSize"), _proc_bytes("/proc/meminfo", "MemAvailable")
    facts = [] if left is None else [f"{_bytes(left)} of the machine's memory available"]
    if limit != resource.RLIM_INFINITY:
        facts.append(f"an address space limit of {_bytes(limit)} (ulimit -v)")
        facts += [] if held is None else [f"{_bytes(held)} of it used"]
    return ", ".join(facts) or "this system does not report its memory"


def _device_memory() -> str:
    torch = sys.modules["torch"]  # it has raised the error
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.memory_allocated()
    return f"{_bytes(free)} of the device's {_bytes(total)} free, {_bytes(own)} used by this rank"


def _proc_bytes(file: str, name: str) -> int | None:
    """The entry `name` of a file of /proc, in bytes; None where there is none."""
    path = Path(file)
    for line in path.read_text(encoding="ascii", errors="replace").splitlines() if path.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _bytes(size: float) -> str:
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"
