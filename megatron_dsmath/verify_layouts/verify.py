"""`dsmath verify-layouts`: compare each layout, computed by local ranks, with one process."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, UsageError
from megatron_dsmath.tables import print_table
from megatron_dsmath.verify_layouts import compare
from megatron_dsmath.verify_layouts.compare import BF16, FP32, Comparison, LayoutResult, RankResult, largest
from megatron_dsmath.verify_layouts.diagnosis import KINDS, diagnose
from megatron_dsmath.verify_layouts.forked_ranks import preload, run_ranks
from megatron_dsmath.verify_layouts.layouts import Layout, layout_shapes, parse_layout
from megatron_dsmath.verify_layouts.measure import measure_layout, transformers_steps, write_weights
from megatron_dsmath.verify_layouts.shrink import layout_error, shrink_run, tensor_sizes, with_layout

MAX_RANKS = 64
# torch's random generator imports the compiler; without the preload each rank would import it.
_PRELOADED_MODULES = ("torch._dynamo", "numpy.random", measure_layout.__module__)
_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
_RESULTS = ("loss", "gradient_norm", "gradient", "worst_gradient", "parameter", "worst_parameter")
_COLUMNS = ("layout", "ranks", *_RESULTS, "verdict")


def select_layouts(run: RunConfig, names: str | None, ranks: int) -> list[Layout]:
    """The layouts in `names` (such as `tp2,pp2vpp2`), or all layouts of up to `ranks` processes.

    Raises UsageError for a number of processes out of range, and for a layout that does not exist or cannot be formed.
    """
    if not 1 <= ranks <= MAX_RANKS:
        raise UsageError("the number of processes is wrong", where="--ranks", found=ranks, expected=f"1 to {MAX_RANKS}")
    if names is None:
        return all_layouts(run, ranks)
    layouts = [parse_layout(name.strip()) for name in names.split(",")]
    for layout in layouts:
        reason = _reason_not_possible(run, layout, ranks)
        if reason is not None:
            raise UsageError(
                f"this layout is not possible: {reason}",
                where="--layouts",
                found=layout.name,
                expected=", ".join(possible.name for possible in all_layouts(run, ranks)),
                fix="leave it out, or use more processes (--ranks)",
            )
    return layouts


def all_layouts(run: RunConfig, ranks: int) -> list[Layout]:
    """Every shape that `ranks` processes can form, and selected shapes with each other setting.

    The shapes treat documents as the run does. The other treatment of documents, microbatches of one sequence,
    recomputation and bf16 are tried on one process, on each kind of parallelism, and on several kinds together.
    """
    packed = not run.data.attend_across_documents
    layouts = [replace(shape, packed=packed) for shape in layout_shapes(ranks, tensor_sizes(run, ranks))]
    one = Layout(packed=packed)
    kinds = [
        one,
        Layout(tensor=2, sequence=True, packed=packed),
        Layout(pipeline=2, virtual_stages=2, packed=packed),
        Layout(data=2, packed=packed),
        Layout(tensor=2, sequence=True, pipeline=2, packed=packed),
    ]
    largest_pipeline, largest_data = Layout(pipeline=ranks, packed=packed), Layout(data=ranks, packed=packed)
    layouts += [replace(layout, packed=not packed) for layout in (*kinds, largest_pipeline, largest_data)]
    layouts += [replace(layout, microbatch_sequences=1) for layout in (one, *kinds[2:4], largest_data)]
    layouts += [replace(layout, recompute="selective") for layout in (one, kinds[-1])]
    layouts += [replace(layout, recompute="full") for layout in (one, kinds[-1])]
    layouts += [replace(layout, precision="bf16") for layout in kinds]
    return [layout for layout in dict.fromkeys(layouts) if _reason_not_possible(run, layout, ranks) is None]


def _reason_not_possible(run: RunConfig, layout: Layout, ranks: int) -> str | None:
    if layout.ranks > ranks:
        return f"it takes {layout.ranks} processes, and there are {ranks}"
    if layout.tensor not in tensor_sizes(run, ranks):
        return "the tensor-parallel size does not divide the run's model"
    error = layout_error(with_layout(shrink_run(run, ranks), layout, run), layout)
    return None if error is None else f"{error.what} ({error.found})"


def compare_layouts(run: RunConfig, layouts: Sequence[Layout], ranks: int) -> Iterator[Comparison]:
    """Compare each of `layouts` with one process in fp32, and the one process with transformers, one row at a time.

    The run is shrunk for up to `ranks` processes. They use GPUs if there is one for each, otherwise the CPU.
    """
    with tempfile.TemporaryDirectory(prefix="dsmath-layouts-") as folder:
        comparer = LayoutComparer(run, ranks, Path(folder))
        for layout in layouts:
            yield comparer.compare(layout)
        yield from comparer.compare_with_transformers()


class LayoutComparer:
    """One set of weights, written into `folder`, and what one process computes with them."""

    def __init__(self, run: RunConfig, ranks: int, folder: Path) -> None:
        preload(_PRELOADED_MODULES)
        on_gpu = torch.cuda.device_count() >= ranks
        self._environment = {} if on_gpu else _WITHOUT_GPU
        self._run, self._small = run, shrink_run(run, ranks, on_gpu=on_gpu)
        self._weights = folder / "weights"
        self._one_process: dict[bool, LayoutResult] = {}  # for packed layouts, and for others
        write_weights(self._small.model, self._weights)

    def compare(self, layout: Layout, measure: Callable[[RunConfig, Path], RankResult] = measure_layout) -> Comparison:
        """Compare a layout, whose ranks each call `measure`, with one process that computes the same in fp32."""
        theirs, tolerance = self._result_of_one_process(layout.packed), BF16 if layout.precision == "bf16" else FP32
        try:
            ours = self._compute(layout, measure)
        except RuntimeError as error:
            last_line = str(error).strip().splitlines()[-1]
            return Comparison(layout.name, layout.ranks, "differs", kind="failed", evidence=last_line)
        found = compare.differences(ours, theirs)
        worst_gradient, gradient = largest(found.gradients)
        worst_parameter, parameter = largest(found.parameters[-1])
        is_equal = found.within(tolerance)
        arranged = with_layout(self._small, layout, self._run)
        diagnosis = None if is_equal else diagnose(arranged, layout, ours, theirs, found, tolerance)
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

    def compare_with_transformers(self) -> Iterator[Comparison]:
        """Compare the results of one process so far with transformers, or report that it is not installed."""
        try:
            name = f"transformers {version('transformers')}"
        except PackageNotFoundError:
            yield Comparison("transformers: not installed", 1, "skipped")
            return
        runs = [with_layout(self._small, Layout(packed=packed), self._run) for packed in self._one_process]
        (steps,) = run_ranks(1, transformers_steps, runs, self._weights)
        for (packed, ours), (loss, gradients) in zip(self._one_process.items(), steps, strict=True):
            difference = abs(ours.losses[0] / loss - 1)
            worst_gradient, gradient = largest(compare.tensor_differences(ours.gradients, gradients))
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

    def _result_of_one_process(self, packed: bool) -> LayoutResult:
        if packed not in self._one_process:
            self._one_process[packed] = self._compute(Layout(packed=packed), measure_layout)
        return self._one_process[packed]

    def _compute(self, layout: Layout, measure: Callable[[RunConfig, Path], RankResult]) -> LayoutResult:
        arranged = with_layout(self._small, layout, self._run)
        results = run_ranks(layout.ranks, measure, arranged, self._weights, environment=self._environment)
        return compare.join_ranks(self._small.model, results)


def print_comparisons(comparisons: Iterable[Comparison], total: int, as_json: bool) -> int:
    """Print the comparisons and return the exit code. On a terminal, show how many of about `total` are done."""
    rows = []
    for done, row in enumerate(comparisons, start=1):
        rows.append(row)
        if sys.stderr.isatty():
            progress = f"{done} of {max(done, total)}: {row.layout} {row.verdict}"
            print(f"\r{progress}\x1b[K", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    differing = [row for row in rows if row.verdict == "differs"]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print_table([_table_row(row) for row in rows], _COLUMNS, False)
        for row in differing:
            print(f"{row.layout}: {KINDS[row.kind or 'failed']} [{row.kind}]")
            if row.first_parameter:
                print(f"  first parameter that differs: {row.first_parameter}")
            if row.evidence:
                print(f"  {row.evidence}")
    return EXIT_ANSWER_IS_NO if differing else EXIT_DONE


def _table_row(row: Comparison) -> dict[str, object]:
    """The fields as the table shows them. A parameter is named only where there is a difference."""
    values = asdict(row)
    short = {name: f"{value:.1e}" for name, value in values.items() if isinstance(value, float)}
    unnamed = {f"worst_{name}": "" for name in ("gradient", "parameter") if not values[name]}
    return {**values, **short, **unnamed}
