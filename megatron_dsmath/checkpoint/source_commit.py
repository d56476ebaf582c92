"""Which commit of this program runs: what a checkpoint and a model card say of the code behind the weights."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


@cache
def source_commit(checkout: Path = CHECKOUT) -> str:
    """The commit of a checkout, ending in `-dirty` where files differ from it; `unknown` where there is no checkout.

    An installed package may lie inside somebody else's repository, so only a `.git` of its own counts.
    """
    if not (checkout / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
