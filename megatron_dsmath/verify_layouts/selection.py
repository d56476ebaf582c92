"""Which layouts are verified: those asked for, or all that some processes can form."""

from __future__ import annotations

from dataclasses import replace

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.errors import UsageError
from megatron_dsmath.verify_layouts.layouts import Layout, parse, shapes
from megatron_dsmath.verify_layouts.planted import FAULT_LAYOUTS
from megatron_dsmath.verify_layouts.shrink import arranged, contradiction, shrunk, tensor_sizes

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
