"""`dsmath verify-layouts`: each layout in a world of local ranks, one after the other, against one process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.verify_layouts import tasks
from megatron_dsmath.verify_layouts.compare import BF16, FP32, Comparison, by_name, differences, worst
from megatron_dsmath.verify_layouts.diagnosis import diagnose
from megatron_dsmath.verify_layouts.layouts import Layout
from megatron_dsmath.verify_layouts.shrink import arranged, shrunk
from megatron_dsmath.verify_layouts.whole import Whole, joined
from megatron_dsmath.verify_layouts.worlds import preload, run_ranks

# With what each rank would else import for itself: torch's random generator asks for the compiler.
_PRELOAD = ("torch._dynamo", "numpy.random", *(f"{__package__}.{module}" for module in ("measure", "weights")))
_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def verify(run: RunConfig, layouts: Sequence[Layout], ranks: int, fault: str | None = None) -> Iterator[Comparison]:
    """Compare each of `layouts` with one process in fp32, and that with transformers; a line as soon as it is known.

    The run is made small for up to `ranks` processes. On GPUs where there is one for each, else on the CPU. `fault`: a
    mistake (`faults.FAULTS`) planted in every rank of the layouts, never in the one process.
    """
    with tempfile.TemporaryDirectory(prefix="dsmath-layouts-") as folder:
        bench = Bench(run, ranks, Path(folder))
        for layout in layouts:
            yield bench.compared(layout, fault)
        if fault is None:
            yield from bench.witnessed()


class Bench:
    """One set of weights in `folder`, one batch, and what one process computes of them."""

    def __init__(self, run: RunConfig, ranks: int, folder: Path) -> None:
        preload(_PRELOAD)
        self._alone: dict[bool, Whole] = {}
        (gpus,) = run_ranks(1, tasks.gpus)
        self._environment = {} if gpus >= ranks else _WITHOUT_GPU
        self._run, self._small = run, shrunk(run, ranks, on_gpu=gpus >= ranks)
        self._weights = folder / "weights"
        run_ranks(1, tasks.write_weights, self._small.model, self._weights)

    def compared(self, layout: Layout, fault: str | None = None) -> Comparison:
        """One layout, its ranks with a `fault` or without, against one process that computes the same in fp32."""
        theirs, tolerance = self._one_process(layout.packed), BF16 if layout.precision == "bf16" else FP32
        try:
            ours = self._computed(layout, fault)
        except RuntimeError as error:
            last_line = str(error).strip().splitlines()[-1]
            return Comparison(layout.name, layout.ranks, "differs", kind="failed", evidence=last_line)
        found = differences(ours, theirs)
        worst_gradient, gradient = worst(found.gradients)
        worst_parameter, parameter = worst(found.parameters[-1])
        is_equal = found.within(tolerance)
        diagnosis = None if is_equal else diagnose(self._arranged(layout), layout, ours, theirs, found, tolerance)
        return Comparison(
            layout=layout.name,
            ranks=layout.ranks,
            verdict="equal" if is_equal else "differs",
            loss=max(found.losses),
            gradient_norm=max(found.norms),
            gradient=gradient,
            worst_gradient=worst_gradient,
            parameter=parameter,
            worst_parameter=worst_parameter,
            **(diagnosis._asdict() if diagnosis else {}),
        )

    def witnessed(self) -> Iterator[Comparison]:
        """The one process itself, for each kind of batch it computed, against transformers where it is installed."""
        try:
            name = f"transformers {version('transformers')}"
        except PackageNotFoundError:
            yield Comparison("transformers: not installed", 1, "skipped")
            return
        runs = [self._arranged(Layout(packed=packed)) for packed in self._alone]
        (theirs,) = run_ranks(1, tasks.their_steps, runs, self._weights)
        for (packed, ours), (loss, gradients) in zip(self._alone.items(), theirs, strict=True):
            difference = abs(ours.losses[0] / loss - 1)
            worst_gradient, gradient = worst(by_name(ours.gradients, gradients))
            is_equal = difference <= FP32.loss and gradient <= FP32.gradient
            yield Comparison(
                f"{name}, document by document" if packed else name,
                1,
                "equal" if is_equal else "differs",
                loss=difference,
                gradient=gradient,
                worst_gradient=worst_gradient,
                kind=None if is_equal else "one-process",
                first_parameter=None if is_equal else worst_gradient,
            )

    def _one_process(self, packed: bool) -> Whole:
        if packed not in self._alone:
            self._alone[packed] = self._computed(Layout(packed=packed), None)
        return self._alone[packed]

    def _computed(self, layout: Layout, fault: str | None) -> Whole:
        task = (tasks.measure, self._arranged(layout), self._weights, fault)
        return joined(self._small.model, run_ranks(layout.ranks, *task, environment=self._environment))

    def _arranged(self, layout: Layout) -> RunConfig:
        return arranged(self._small, layout, self._run)
