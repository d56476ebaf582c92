"""W&B, at arm's length: online where a key is found, one run id across restarts, never a reason to stop."""

from __future__ import annotations

import netrc
import os
import sys
import threading
import uuid
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.training.metric_names import WANDB_NAMES, wandb_names
from megatron_dsmath.training.run_directory import RunDirectory, replace_text

LONGEST_FINISH_SECONDS = 20.0  # a stopped run has little time left

Mode = Literal["auto", "online", "offline", "disabled"]


class WeightsAndBiases:
    """One W&B run. The first failure is said once, and W&B is left alone from there on."""

    def __init__(self, run: Any) -> None:
        self.run = run

    @classmethod
    def open(cls, run: RunConfig, directory: RunDirectory) -> WeightsAndBiases | None:
        """Start or continue the run's record at W&B; None where it is disabled or cannot be had."""
        mode = wandb_mode(run.tracking.wandb)
        if mode == "disabled":
            return None
        try:
            import wandb

            directory.wandb.mkdir(exist_ok=True)
            id_file = directory.wandb / "run_id"
            if not id_file.exists():
                replace_text(id_file, uuid.uuid4().hex[:8])
            record = wandb.init(
                project=run.tracking.wandb_project,
                name=directory.root.name,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow" if mode == "online" else None,
                dir=directory.root,
                mode=mode,
                config=run.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, init_timeout=30),
            )
            record.define_metric("*", step_metric=WANDB_NAMES["consumed_tokens"])
        except Exception as error:  # a service must not stop a run, whatever it raises
            print(f"W&B is off for this run: {error}", file=sys.stderr)
            return None
        return cls(record)

    def log(self, row: dict[str, Any]) -> None:
        """Send one row under W&B's names."""
        if self.run is None:
            return
        try:
            self.run.log(wandb_names(row), step=row["step"])
        except Exception as error:  # as above
            print(f"W&B is off from step {row['step']} on: {error}", file=sys.stderr)
            self.run = None

    def close(self) -> None:
        """Finish the record; one that does not end in time is left behind, for `wandb sync`."""
        if self.run is None:
            return
        finishing = threading.Thread(target=self._finish, args=(self.run,), daemon=True)
        finishing.start()
        finishing.join(LONGEST_FINISH_SECONDS)
        if finishing.is_alive():
            print(f"W&B did not finish the record within {LONGEST_FINISH_SECONDS:.0f} s", file=sys.stderr)

    @staticmethod
    def _finish(run: Any) -> None:
        try:
            run.finish()
        except Exception as error:  # as above
            print(f"W&B could not finish the record: {error}", file=sys.stderr)


def wandb_mode(wished: Mode) -> Literal["online", "offline", "disabled"]:
    """`auto` is online where a key is in the environment or in .netrc, else offline."""
    if wished != "auto":
        return wished
    return "online" if os.environ.get("WANDB_API_KEY") or _key_in_netrc() else "offline"


def _key_in_netrc() -> bool:
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(file).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
