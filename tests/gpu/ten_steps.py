"""Ten fp32 steps on the device of this process; prints [[loss, gradient norm], ...] as JSON."""

from __future__ import annotations

import json

from megatron_dsmath.parallel.topology import destroy_topology
from tests.support import training
from tests.support.runs import run_config


def main() -> None:
    """Train and print."""
    opened = training.start(run_config(schedule__peak_learning_rate=3e-3))
    figures = [opened.step(step) for step in range(10)]
    destroy_topology()
    print(json.dumps({"device": opened.topology.device.type, "figures": figures}))


if __name__ == "__main__":
    main()
