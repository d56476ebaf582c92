"""W&B, at arm's length: online where a key is found, one run id across restarts, never a reason to stop."""

from __future__ import annotations

import netrc
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.training.metrics import WANDB_NAMES, wandb_names
from megatron_dsmath.training.run_directory import RunDirectory

LONGEST_FINISH_SECONDS = 20.0  # a stopped run has little time left
PROBLEM_COLUMNS = ("question", "reference", "output", "programs", "verdict")

Mode = Literal["auto", "online", "offline", "disabled"]
EvaluationRow = Mapping[str, Any]
"""An answer with its problem and verdict, as `evaluation.rows` writes them."""


class WeightsAndBiases:
    """One W&B run. The first failure is said once, and W&B is left alone from there on."""

    def __init__(self, run: Any) -> None:
        self.run = run

    @classmethod
    def open(cls, run: RunConfig, directory: RunDirectory) -> WeightsAndBiases | None:
        """Start or continue the run's record at W&B; None where it is disabled or cannot be had."""
        settings = run.tracking
        return cls.start(settings.wandb_project, settings.wandb, directory, run.model_dump(mode="json"))

    @classmethod
    def start(
        cls, project: str, wish: Mode, directory: RunDirectory, config: Mapping[str, Any]
    ) -> WeightsAndBiases | None:
        """The same for whatever has a directory, whose name the record gets."""
        mode = wandb_mode(wish)
        if mode == "disabled":
            return None
        try:
            import wandb

            directory.wandb.mkdir(exist_ok=True)
            id_file = directory.wandb / "run_id"
            if not id_file.exists():
                replace_text(id_file, uuid.uuid4().hex[:8])
            record = wandb.init(
                project=project,
                name=directory.root.name,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow" if mode == "online" else None,
                dir=directory.root,
                mode=mode,
                config=dict(config),
                settings=wandb.Settings(silent=True, init_timeout=30),
            )
            record.define_metric("*", step_metric=WANDB_NAMES["consumed_tokens"])
        except Exception as error:  # a service must not stop a run, whatever it raises
            print(f"W&B is off for this run: {error}", file=sys.stderr)
            return None
        return cls(record)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row of metrics.jsonl under W&B's names."""
        self._send(row["step"], lambda: wandb_names(row))

    def log_problems(self, step: int, rows: Sequence[EvaluationRow]) -> None:
        """Send what was asked and answered after `step` as a table to look at."""
        self._send(step, lambda: {"eval/problems": _table(rows)})

    def log_results(self, results: Mapping[str, Any], rows: Mapping[str, Sequence[EvaluationRow]]) -> None:
        """Send the numbers of results.json and such a table for each task."""
        numbers = {
            f"eval/{task}/{name}": figure
            for task, figures in results["tasks"].items()
            for name, figure in figures.items()
            if isinstance(figure, int | float)
        }
        self._send(0, lambda: {**numbers, **{f"eval/{task}/problems": _table(some) for task, some in rows.items()}})

    def _send(self, step: int, values: Callable[[], Mapping[str, Any]]) -> None:
        if self.run is None:
            return
        try:
            self.run.log(values(), step=step)
        except Exception as error:  # as above
            print(f"W&B is off from step {step} on: {error}", file=sys.stderr)
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


def _table(rows: Sequence[EvaluationRow]) -> Any:
    import wandb

    return wandb.Table(columns=list(PROBLEM_COLUMNS), data=[_problem(row) for row in rows])


def _problem(row: EvaluationRow) -> list[str]:
    """A row under PROBLEM_COLUMNS."""
    programs = [f"{program['program']}\n# {program['verdict']}: {program['stdout']}" for program in row["programs"]]
    verdict = "right" if row["correct"] else row["note"] or f"wrong: {row['extracted']}"
    texts = (row["question"], row["reference"], row["output"], "\n\n".join(programs), verdict)
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]  # a model may write half a character


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
