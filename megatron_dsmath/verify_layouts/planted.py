"""Names of the mistakes that can be planted, and layouts in which each is one; `faults` has them themselves."""

from __future__ import annotations

FAULT_LAYOUTS = {
    "sum-skipped": ("tp2", "tp2sp"),
    "backward-sum-skipped": ("tp2",),
    "norm-sum-skipped": ("tp2sp",),
    "norm-of-parts": ("tp2",),
    "microbatch-mean": ("one", "dp2"),
    "rank-mean": ("dp2",),
    "reduction-skipped": ("dp2", "dp2noopt"),
    "norms-decay": ("one",),
    "layers-renumbered": ("pp2",),
    "documents-missing": ("pp4packed",),
    "qkv-order": ("tp2",),
    "rotary-convention": ("pp2",),
}
