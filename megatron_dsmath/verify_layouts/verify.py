"""`dsmath verify-layouts`: each layout in a world of local ranks, one after the other, against one process."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, UsageError
from megatron_dsmath.tables import print_table
from megatron_dsmath.verify_layouts import worlds
from megatron_dsmath.verify_layouts.compare import BF16, FP32, Comparison, Whole, by_name, differences, joined, worst
from megatron_dsmath.verify_layouts.diagnosis import KINDS, diagnose
from megatron_dsmath.verify_layouts.layouts import Layout, parse, shapes
from megatron_dsmath.verify_layouts.planted_faults import FAULT_LAYOUTS
from megatron_dsmath.verify_layouts.shrink import arranged, contradiction, shrunk, tensor_sizes
from megatron_dsmath.verify_layouts.worlds import preload, run_ranks

_COLUMNS = (
    "layout",
    "ranks",
    "loss",
    "gradient_norm",
    "gradient",
    "worst_gradient",
    "parameter",
    "worst_parameter",
    "verdict",
)
_DIFFERENCES = ("loss", "gradient_norm", "gradient", "parameter")


def report(comparisons: Iterable[Comparison], total: int, as_json: bool) -> int:
    """Print all of `comparisons`, telling on a terminal how many of about `total` are done; returns the exit code."""
    rows = []
    for done, row in enumerate(comparisons, start=1):
        rows.append(row)
        if sys.stderr.isatty():
            print(
                f"\r{done} of {max(done, total)}: {row.layout} {row.verdict}\x1b[K", end="", file=sys.stderr, flush=True
            )
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print_table([_shown(row) for row in rows], _COLUMNS, False)
        _explain([row for row in rows if row.verdict == "differs"])
    return EXIT_ANSWER_IS_NO if any(row.verdict == "differs" for row in rows) else EXIT_DONE


def _shown(row: Comparison) -> dict[str, object]:
    values = asdict(row)
    short = {name: f"{values[name]:.1e}" for name in _DIFFERENCES if values[name] is not None}
    of_none = {f"worst_{name}": "" for name in ("gradient", "parameter") if not values[name]}
    return {**values, **short, **of_none}


def _explain(differing: list[Comparison]) -> None:
    for row in differing:
        print(f"{row.layout}: {KINDS[row.kind or 'failed']} [{row.kind}]")
        if row.first_parameter:
            print(f"  first parameter that differs: {row.first_parameter}")
        if row.evidence:
            print(f"  {row.evidence}")


MOST_RANKS = 64  # of one machine


def selected(run: RunConfig, names: str | None, ranks: int, fault: str | None) -> list[Layout]:
    """What `--layouts`, `--ranks` and `--plant` ask for. Raises UsageError for what cannot be."""
    if not 1 <= ranks <= MOST_RANKS:
        raise UsageError(
            "the number of processes is wrong", where="--ranks", found=ranks, expected=f"1 to {MOST_RANKS}"
        )
    if fault is not None and fault not in FAULT_LAYOUTS:
        raise UsageError("no fault has this name", where="--plant", found=fault, expected=", ".join(FAULT_LAYOUTS))
    if names is not None:
        return layouts_named(names, run, ranks)
    if fault is not None:
        return layouts_named(",".join(FAULT_LAYOUTS[fault]), run, ranks)
    return all_layouts(run, ranks)


def all_layouts(run: RunConfig, ranks: int) -> list[Layout]:
    """Every shape that `ranks` processes can form, in the run's own way to treat documents; and what is no shape.

    Microbatches, recomputing, bf16 and the other way to treat documents are each tried on one process, on the kinds of
    parallelism by themselves and on them together.
    """
    packed = not run.data.attend_across_documents
    found = [replace(shape, packed=packed) for shape in shapes(ranks, tensor_sizes(run, ranks))]
    alone = Layout(packed=packed)
    kinds = [
        alone,
        Layout(tensor=2, sequence=True, packed=packed),
        Layout(pipeline=2, virtual_stages=2, packed=packed),
        Layout(data=2, packed=packed),
        Layout(tensor=2, sequence=True, pipeline=2, packed=packed),
    ]
    largest = [Layout(pipeline=ranks, packed=packed), Layout(data=ranks, packed=packed)]
    found += [replace(layout, packed=not packed) for layout in (*kinds, *largest)]
    found += [replace(layout, microbatch_sequences=1) for layout in (alone, *kinds[2:4], largest[1])]
    found += [replace(layout, recompute="selective") for layout in (alone, kinds[-1])]
    found += [replace(layout, recompute="full") for layout in (alone, kinds[-1])]
    found += [replace(layout, precision="bf16") for layout in kinds]
    unique = dict.fromkeys(found)
    return [layout for layout in unique if layout.ranks <= ranks and _why_not(run, layout, ranks) is None]


def layouts_named(names: str, run: RunConfig, ranks: int) -> list[Layout]:
    """The layouts of a list such as `tp2,pp2vpp2`. Raises UsageError for one that is none or cannot be formed."""
    layouts = [parse(name.strip()) for name in names.split(",")]
    for layout in layouts:
        reason = _why_not(run, layout, ranks)
        if reason is not None:
            raise UsageError(
                f"this layout cannot be formed: {reason}",
                where="--layouts",
                found=layout.name,
                expected=", ".join(legal.name for legal in all_layouts(run, ranks)),
                fix="leave it out, or verify it with more processes (--ranks)",
            )
    return layouts


def _why_not(run: RunConfig, layout: Layout, ranks: int) -> str | None:
    if layout.ranks > ranks:
        return f"it takes {layout.ranks} processes, and there are {ranks}"
    if layout.tensor not in tensor_sizes(run, ranks):
        return "the tensor-parallel size does not divide the run's model"
    error = contradiction(arranged(shrunk(run, ranks), layout, run), layout)
    return None if error is None else f"{error.what} ({error.found})"


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
        (gpus,) = run_ranks(1, worlds.gpus)
        self._environment = {} if gpus >= ranks else _WITHOUT_GPU
        self._run, self._small = run, shrunk(run, ranks, on_gpu=gpus >= ranks)
        self._weights = folder / "weights"
        run_ranks(1, worlds.write_weights, self._small.model, self._weights)

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
        (theirs,) = run_ranks(1, worlds.their_steps, runs, self._weights)
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
        task = (worlds.measure, self._arranged(layout), self._weights, fault)
        return joined(self._small.model, run_ranks(layout.ranks, *task, environment=self._environment))

    def _arranged(self, layout: Layout) -> RunConfig:
        return arranged(self._small, layout, self._run)
