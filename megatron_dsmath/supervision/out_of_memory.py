"""Memory that runs out, of the host or of the device: one clear error in place of whatever the allocator said."""

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

# Of torch's allocator on the host, C++, numpy, the dynamic loader, CUDA and its libraries.
_SIGNS = re.compile(
    r"can't allocate memory|unable to allocate|bad_alloc|cannot allocate memory|failed to map segment|out of memory|"
    r"_ALLOC_FAILED",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.,]+ ?(?:bytes|[KMGT]i?B))", re.IGNORECASE)
_FP32 = 4  # bytes
_MOMENTS = 2


@contextmanager
def report_out_of_memory(run: RunConfig, progress: RankProgress, rank: int, world_size: int) -> Iterator[None]:
    """Within, an allocation that fails raises ConfigError: the same start would fail again. Other errors pass.

    Raises InternalError where a step was done before: then something else on the machine has taken the memory.
    """
    try:
        yield
    except DsmathError:
        raise
    except BaseException as error:
        if not _ran_out(error):
            raise
        on_device = type(error).__name__ == "OutOfMemoryError"
        asked = _ASKED.search(str(error))
        traceback.clear_frames(error.__traceback__)  # which hold what was computed so far
        size = asked.group(1) if asked else "memory"
        raise _error(run, progress, rank, world_size, size, on_device) from None


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # torch.OutOfMemoryError is a RuntimeError, and so is what its allocator on the host raises.
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
        "found": f"{asked} asked for; {_device_room() if on_device else _host_room()}",
        "expected": f"room for what this rank holds, about: {_needs(run, world_size)}",
    }
    knobs = _knobs(run, on_device)
    if progress.median_step_seconds is None:
        return ConfigError(f"the {device}'s memory runs out", **facts, fix=knobs)
    again = "steps were done before with what there was: see what else runs there, and run it again; or "
    return InternalError(f"the {device}'s memory runs out", **facts, fix=again + knobs)


def _needs(run: RunConfig, world_size: int) -> str:
    """The sizes that follow from the run file, in the order in which they come to be."""
    parallel, model = run.parallel, run.model
    parameters = model.parameters // parallel.model_size
    data_size = max(1, world_size // parallel.model_size)
    shared = data_size if parallel.distributed_optimizer else 1
    weight_bytes = 2 if run.precision == "bf16" else _FP32
    copies = _MOMENTS + (run.precision == "bf16")
    targets = parallel.microbatch_sequences * run.data.sequence_length
    sizes = {
        f"weights ({parameters:,} parameters)": parameters * weight_bytes,
        "gradients": parameters * _FP32,
        "optimizer state": parameters * _FP32 * copies // shared,
        "a save's copy in host memory": parameters * (_FP32 * (_MOMENTS + 1) // shared + weight_bytes),
        "logits of a microbatch on the last stage": targets * model.vocabulary_size // parallel.tensor * _FP32,
    }
    return ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items()) + ", and its activations"


def _knobs(run: RunConfig, on_device: bool) -> str:
    """What to turn, in the order of what it costs; a knob that is at its end is left out."""
    parallel = run.parallel
    knobs = []
    if parallel.microbatch_sequences > 1:
        knobs.append(f"lower parallel.microbatch_sequences ({parallel.microbatch_sequences})")
    if parallel.recompute != "full":
        knobs.append(f"set parallel.recompute to {'selective or ' * (parallel.recompute == 'none')}full")
    if not parallel.distributed_optimizer:
        knobs.append("set parallel.distributed_optimizer: true")
    knobs.append(f"raise parallel.tensor ({parallel.tensor}) or parallel.pipeline ({parallel.pipeline})")
    knobs.append("use more ranks" if on_device else "start fewer ranks on a machine")
    return ", then ".join(knobs)


def _host_room() -> str:
    """What the system lets this process have, and what it has left."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    held, left = _kilobytes("/proc/self/status", "VmSize"), _kilobytes("/proc/meminfo", "MemAvailable")
    room = [] if left is None else [f"{_bytes(left)} of the machine's memory available"]
    if limit != resource.RLIM_INFINITY:
        room.append(f"a limit of {_bytes(limit)} of addresses (ulimit -v)")
        room += [] if held is None else [f"{_bytes(held)} of them held"]
    return ", ".join(room) or "how much there is, this system does not say"


def _device_room() -> str:
    torch = sys.modules["torch"]  # whose error this is
    free, whole = torch.cuda.mem_get_info()
    return f"{_bytes(free)} of the device's {_bytes(whole)} free, {_bytes(torch.cuda.memory_allocated())} held here"


def _kilobytes(file: str, name: str) -> int | None:
    """A line of Linux's tables, in bytes."""
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
