"""Convert a model of DeepSeekMath's shape to a checkpoint and back; compare the bytes, measure time and memory.

Weights are random, written tensor by tensor. Each conversion is a `dsmath` process. Its memory is the sampled anonymous
memory of the process and its children (`RssAnon`, without mapped files), minus that of the same command for a tiny
model, which is the memory of the imported modules. `python benchmarks/conversion.py --layers 30` is the 7B model and
needs 42 GB of disk in `--folder`; 2 layers need 7.5 GB.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.checkpoint.llama import deepseek_shape, write_random

MOST_BYTES = 2.5e9


def measure(*arguments: object) -> tuple[float, int, str]:
    """Run `dsmath` with these arguments; returns seconds, the peak of anonymous bytes, and the output."""
    start = time.monotonic()
    command = [sys.executable, "-m", "megatron_dsmath", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, anonymous_bytes(process.pid))
        time.sleep(0.02)
    seconds, output = time.monotonic() - start, process.communicate()[0]
    if process.returncode != 0:
        raise SystemExit(f"{arguments[0]} ended with {process.returncode}")
    return seconds, most, output


def anonymous_bytes(process: int) -> int:
    """RssAnon of a process and its children; 0 for a process that has ended."""
    folder = Path(f"/proc/{process}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        children = (folder / "task" / str(process) / "children").read_text().split()
    except OSError:
        return 0
    own = int(status.get("RssAnon", "0 kB").split()[0]) * 1024
    return own + sum(anonymous_bytes(int(child)) for child in children)


def main() -> int:
    """Print a line per conversion; returns 1 if bytes differ or memory exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="30 is the 7B model (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder with enough space")
    options = parser.parse_args()
    holds = True
    with tempfile.TemporaryDirectory(prefix="dsmath-conversion-", dir=options.folder) as name:
        root = Path(name)
        write_random(root / "tiny", deepseek_shape(1, narrower=32))
        started = time.monotonic()
        size = write_random(root / "hf", deepseek_shape(options.layers))
        print(
            f"{options.layers} layers, {size / 1e9:.2f} GB, written in {time.monotonic() - started:.0f} s", flush=True
        )
        for flags in (["--no-gate"], []):
            for verb, source, out in (("import-hf", "hf", "checkpoint"), ("export-hf", "checkpoint", "back")):
                if verb == "import-hf":
                    _, imports, _ = measure(verb, root / "tiny", "--out", root / "small", *flags)
                else:
                    _, imports, _ = measure(verb, root / "small", "--out", root / "small_back", *flags)
                seconds, most, output = measure(verb, root / source, "--out", root / out, *flags)
                above = most - imports
                holds = holds and above < MOST_BYTES
                print(
                    f"{verb} {' '.join(flags):<9} {seconds:6.1f} s, {size / 1e6 / seconds:5.0f} MB/s, anonymous memory "
                    f"{above / 1e9:.2f} GB above {imports / 1e9:.2f} GB of imported modules",
                    flush=True,
                )
                print(*(f"  {line}" for line in output.splitlines() if line.startswith("logits")), sep="\n", flush=True)
            files = [file.name for file in (root / "hf").glob("*.safetensors*")]
            same = filecmp.cmpfiles(root / "hf", root / "back", files, shallow=False)[0]
            print(f"{len(same)} of {len(files)} files have the same bytes", flush=True)
            holds = holds and sorted(same) == sorted(files)
            for folder in ("checkpoint", "back", "small", "small_back"):
                shutil.rmtree(root / folder)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
