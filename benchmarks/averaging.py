"""Average models of DeepSeekMath's width and vocabulary; compare with numpy, measure time and memory.

Sources are Hugging Face folders with random bf16 weights, and checkpoints as a run of two tensor-parallel ranks saves
them, with the weights only. Of each kind two sources, and four, where the third and fourth are hard links; and two
folders with half of the layers. Memory is measured as in `benchmarks/conversion.py`. The default, 4 layers, is a
quarter of the 7B model and needs 20 GB of disk in `--folder`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conversion import measure
from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.checkpoint_weights import describe_weights
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.config.sections import ModelConfig
from tests.checkpoint.llama import deepseek_shape, write_random
from tests.checkpoint.ranks import save_as_megatron
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

MOST_BYTES = 0.5e9
MOST_GROWTH_BYTES = 50e6  # allocator and interpreter; a block of the mean is 8 MB


def linked(folder: Path, copy: Path) -> Path:
    """Copy a folder, with hard links instead of copies of its files."""
    return Path(shutil.copytree(folder, copy, copy_function=os.link))


def write_run(folder: Path, root: Path, model: ModelConfig) -> list[Path]:
    """Four checkpoints of a run of two ranks, with the folder's weights and no optimizer."""
    shape = {f"model__{key}": value for key, value in model.model_dump().items()}
    run = run_config(precision="bf16", parallel__tensor=2, **shape)
    first = root / "checkpoints/step_1"
    run_ranks(2, save_as_megatron, run, folder, first / "shards", {}, False)
    facts = describe_weights(open_weights(folder)).model_copy(
        update={"kind": "training", "files": store.hash_files(first)}
    )
    steps = [first, *(linked(first, root / f"checkpoints/step_{step}") for step in (2, 3, 4))]
    for step, checkpoint in enumerate(steps, start=1):
        store.write_manifest(checkpoint, facts.model_copy(update={"step": step}))
    return steps


def equals_numpy(mean: Path, sources: list[Path]) -> bool:
    """Whether every value is the sum of the sources in fp32, divided by their number."""
    ours, theirs = open_weights(mean), [open_weights(source) for source in sources]
    for name in ours.shapes:
        for block, *parts in zip(*(reader.row_blocks(name) for reader in (ours, *theirs)), strict=True):
            total = parts[0].float().numpy()
            for part in parts[1:]:
                total = total + part.float().numpy()
            if not np.array_equal((total / np.float32(len(parts))).view(np.uint32), block.numpy().view(np.uint32)):
                return False
    return True


def main() -> int:
    """Print a line per average; returns 1 if a value differs from numpy's or memory exceeds a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="30 is the 7B model (default: 4)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder with enough space")
    options = parser.parse_args()
    peaks: dict[str, list[int]] = {"folders": [], "ranks": []}
    with tempfile.TemporaryDirectory(prefix="dsmath-averaging-", dir=options.folder) as name:
        root = Path(name)
        tiny, shallow, model = (
            deepseek_shape(1, narrower=32),
            *map(deepseek_shape, (options.layers // 2, options.layers)),
        )
        for number in (1, 2):
            write_random(root / f"tiny_{number}", tiny, number)
            write_random(root / f"shallow_{number}", shallow, number)
            size = write_random(root / f"hf_{number}", model, number)
        folders = [root / "hf_1", root / "hf_2", *(linked(root / f"hf_{n}", root / f"hf_{n}_again") for n in (1, 2))]
        _, imports, _ = measure("checkpoint", "average", root / "tiny_1", root / "tiny_2", "--out", root / "tiny_mean")
        print(
            f"{options.layers} layers, {size / 1e9:.2f} GB per source; imported modules {imports / 1e9:.2f} GB",
            flush=True,
        )
        cases = {
            "2 folders of half the layers": [root / "shallow_1", root / "shallow_2"],
            "2 folders": folders[:2],
            "4 folders": folders,
        }
        for case, sources in cases.items():
            peaks["folders"].append(report(case, sources, root / "mean", imports))
        for folder in [*folders[1:], root / "shallow_1", root / "shallow_2"]:
            shutil.rmtree(folder)
        steps = write_run(root / "hf_1", root / "run", model)
        for case, sources in {"2 checkpoints of 2 ranks": steps[:2], "4 checkpoints of 2 ranks": steps}.items():
            peaks["ranks"].append(report(case, sources, root / "mean", imports))
    return 0 if all(max(kind) < min(MOST_BYTES, min(kind) + MOST_GROWTH_BYTES) for kind in peaks.values()) else 1


def report(case: str, sources: list[Path], out: Path, imports: int) -> int:
    """Average, compare with numpy, print a line, delete the result; returns the bytes above the imported modules."""
    read_bytes = sum(file.stat().st_size for source in sources for file in source.rglob("*") if file.is_file())
    seconds, most, _ = measure("checkpoint", "average", *sources, "--out", out)
    same = equals_numpy(out, sources)
    shutil.rmtree(out)
    print(
        f"{case:<30} {seconds:6.1f} s, {read_bytes / 1e6 / seconds:5.0f} MB/s of sources, anonymous memory "
        f"{(most - imports) / 1e9:.3f} GB above the imported modules, {'equal to' if same else 'NOT'} numpy's mean",
        flush=True,
    )
    if not same:
        raise SystemExit("the mean differs from numpy's")
    return most - imports


if __name__ == "__main__":
    sys.exit(main())
