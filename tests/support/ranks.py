"""n gloo ranks in one test: forked from a server that has imported what tests need once (0.2 s, not 16)."""

from __future__ import annotations

from megatron_dsmath.verify_layouts.forked_ranks import preload, run_ranks

__all__ = ["run_ranks"]

preload(["torch._dynamo", "tests.support.preload"])
