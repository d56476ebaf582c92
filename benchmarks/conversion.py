"""Converting a model of DeepSeekMath's shape there and back: the same bytes, time, and memory above the imports.

Weights are random, written tensor by tensor. Each conversion is a `dsmath` process; its memory is the anonymous part
of it and its children (`RssAnon`: what it owns, not the files it maps), sampled, less what the same command takes for
a model of a few kilobytes, which is the imports. `python benchmarks/conversion.py --layers 30` is the 7B model and
wants 42 GB of disk at `--folder`; with 2 layers it is 7.5 GB.
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
    """Run `dsmath` with these arguments; returns seconds, the most anonymous bytes at a time, and what it printed."""
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
    """RssAnon of a process and its children; what has ended meanwhile counts nothing."""
    folder = Path(f"/proc/{process}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        children = (folder / "task" / str(process) / "children").read_text().split()
    except OSError:
        return 0
    own = int(status.get("RssAnon", "0 kB").split()[0]) * 1024
    return own + sum(anonymous_bytes(int(child)) for child in children)


def main() -> int:
    """Print a line a conversion; returns 1 when bytes differ or memory is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="30 is the whole model (2)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
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
                    f"{above / 1e9:.2f} GB above the imports' {imports / 1e9:.2f} GB",
                    flush=True,
                )
                print(*(f"  {line}" for line in output.splitlines() if line.startswith("logits")), sep="\n", flush=True)
            files = [file.name for file in (root / "hf").glob("*.safetensors*")]
            same = filecmp.cmpfiles(root / "hf", root / "back", files, shallow=False)[0]
            print(f"{len(same)} of {len(files)} files back with the same bytes", flush=True)
            holds = holds and sorted(same) == sorted(files)
            for folder in ("checkpoint", "back", "small", "small_back"):
                shutil.rmtree(root / folder)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
