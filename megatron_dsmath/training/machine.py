"""What a run's bits depend on beside its run file: the same numbers are the same bits where all this is the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from megatron_dsmath.parallel.topology import Topology

Facts = Mapping[str, Any]


def machine(topology: Topology) -> dict[str, Any]:
    """Of this process: how it sums, on what."""
    on_gpu = topology.device.type == "cuda"
    return {
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(topology.device) if on_gpu else "cpu",
        "torch": torch.__version__,
    }


def differences(before: Facts, now: Facts) -> list[str]:
    """What is not as it was, as people read it: `threads 2 then, 1 now`."""
    names = [name for name in now if before.get(name) != now[name]]
    return [f"{name} {_shown(before.get(name))} then, {_shown(now[name])} now" for name in names]


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)


@cache
def _processor() -> str:
    """The model, and the instructions that torch chose for it."""
    described = Path("/proc/cpuinfo")  # Linux; `platform` knows no model there
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"
