"""Logs a run to W&B: online if a key is found, with one run id across restarts. Its errors never stop a run."""

from __future__ import annotations

import netrc
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.training.metrics import WANDB_NAMES, wandb_names
from megatron_dsmath.training.run_directory import RunDirectory

LONGEST_FINISH_SECONDS = 20.0  # a run that is asked to stop has little time left

Mode = Literal["auto", "online", "offline", "disabled"]
EvaluationRow = Mapping[str, Any]  # an answer with its problem and verdict, as `evaluation.rows` writes it


class WeightsAndBiases:
    """One run at W&B. The first error is printed, and nothing is sent after it."""

    def __init__(self, run: Any) -> None:
        self.run = run

    @classmethod
    def start(
        cls, project: str, requested: Mode, directory: RunDirectory, config: Mapping[str, Any]
    ) -> WeightsAndBiases | None:
        """Start or continue the W&B run of a directory, under its name; None where W&B is disabled or fails."""
        mode = wandb_mode(requested)
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
        except Exception as error:  # no error of the service may stop a run
            print(f"W&B is off for this run: {error}", file=sys.stderr)
            return None
        return cls(record)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row of metrics.jsonl under W&B's names."""
        self._send(row["step"], lambda: wandb_names(row))

    def log_problems(self, step: int, rows: Sequence[EvaluationRow]) -> None:
        """Send the problems and answers of an evaluation after `step` as a table."""
        self._send(step, lambda: {"eval/problems": _table(rows)})

    def log_results(self, results: Mapping[str, Any], rows: Mapping[str, Sequence[EvaluationRow]]) -> None:
        """Send the numbers of results.json, and a table of problems for each task."""
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
        except Exception as error:  # as in `start`
            print(f"W&B is off from step {step} on: {error}", file=sys.stderr)
            self.run = None

    def close(self) -> None:
        """Finish the W&B run; one that does not finish in time is left for `wandb sync`."""
        if self.run is None:
            return
        finishing = threading.Thread(target=_finish, args=(self.run,), daemon=True)
        finishing.start()
        finishing.join(LONGEST_FINISH_SECONDS)
        if finishing.is_alive():
            print(f"W&B did not finish the run within {LONGEST_FINISH_SECONDS:.0f} s", file=sys.stderr)


def _finish(run: Any) -> None:
    try:
        run.finish()
    except Exception as error:  # as in `start`
        print(f"W&B could not finish the run: {error}", file=sys.stderr)


def _table(rows: Sequence[EvaluationRow]) -> Any:
    import wandb

    columns = ["question", "reference", "output", "programs", "verdict"]
    return wandb.Table(columns=columns, data=[_cells(row) for row in rows])


def _cells(row: EvaluationRow) -> list[str]:
    programs = [f"{program['program']}\n# {program['verdict']}: {program['stdout']}" for program in row["programs"]]
    verdict = "correct" if row["correct"] else row["note"] or f"wrong: {row['extracted']}"
    texts = (row["question"], row["reference"], row["output"], "\n\n".join(programs), verdict)
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]  # a model may write half a character


def wandb_mode(requested: Mode) -> Literal["online", "offline", "disabled"]:
    """The mode of W&B: `auto` is online where a key is in the environment or in .netrc, else offline."""
    if requested != "auto":
        return requested
    return "online" if os.environ.get("WANDB_API_KEY") or _key_in_netrc() else "offline"


def _key_in_netrc() -> bool:
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(file).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
