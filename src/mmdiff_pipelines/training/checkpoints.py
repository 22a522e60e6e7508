"""Checkpoints that are whole or not there: written to a hidden folder, then renamed."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError


PREFIX = "checkpoint-"
UNFINISHED = ".unfinished-"
SHOWN = 500  # characters of an error


class Progress:
    """How far a run has come; part of its checkpoints.

    Args:
        run: what must be the same for a run to be resumed exactly.
    """

    RECENT = 100

    def __init__(self, run: dict[str, Any]):
        self.run = run
        self.step = 0  # optimizer steps done
        self.epoch = 0
        self.batch = 0  # batches of this epoch done
        self.seconds = 0.0
        self.recent: list[dict[str, float]] = []  # logs of the last steps

    def record(self, logs: dict[str, float], seconds: float) -> None:
        self.seconds += seconds
        self.recent = [*self.recent[1 - self.RECENT :], logs]

    def recent_means(self) -> dict[str, float]:
        """The mean of each quantity over the last steps that have it."""
        values: dict[str, list[float]] = {}
        for logs in self.recent:
            for name, value in logs.items():
                values.setdefault(name, []).append(value)
        return {name: sum(items) / len(items) for name, items in values.items()}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the checkpoint is of another run."""
        for name, value in self.run.items():
            saved = state["run"].get(name, value)  # checkpoints of before a name was added lack it
            if saved != value:
                raise ValueError(
                    f"--resume_from_checkpoint: the checkpoint was made with {name} = {saved}, this run has {value}; it "
                    "could not go on exactly. To train a finished model further, start a new run from it: "
                    "--pretrained_model_name_or_path, with another --output_dir."
                )
        vars(self).update(state)


def checkpoints(output_dir: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    found = [p for p in output_dir.glob(f"{PREFIX}*") if p.is_dir() and p.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]))


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """What --resume_from_checkpoint means; "latest" may find none, in a run that starts.

    Raises:
        ValueError: if a named checkpoint does not exist, or a new run would mix its checkpoints with those of another.
    """
    found = checkpoints(output_dir)
    if resume_from_checkpoint is None:
        if found:
            raise ValueError(
                f"--output_dir {output_dir} has checkpoints of an earlier run; add --resume_from_checkpoint latest to "
                "go on with it, or give another folder."
            )
        return None
    if resume_from_checkpoint == "latest":
        return found[-1] if found else None
    for path in (Path(resume_from_checkpoint), output_dir / resume_from_checkpoint):
        if path.is_dir():
            return path
    names = ", ".join(path.name for path in found) or "no checkpoint"
    raise ValueError(f"--resume_from_checkpoint {resume_from_checkpoint} is not there; {output_dir} has {names}.")


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, total_limit: int | None) -> None:
    """Save everything that accelerate holds as `checkpoint-<step>`, and delete the oldest beyond the limit."""
    unfinished = output_dir / f"{UNFINISHED}{PREFIX}{step}"
    if accelerator.is_main_process:
        remove_unfinished(output_dir)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _finish(unfinished, output_dir / f"{PREFIX}{step}")
        _prune(output_dir, step, total_limit)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Load everything that accelerate holds.

    Raises:
        ValueError: for a checkpoint of another run, or one that is damaged or of another model.
    """
    try:
        accelerator.load_state(str(path))
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"--resume_from_checkpoint: {path} is damaged, or of a run with other options: {str(error)[:SHOWN]}\n"
            "--resume_from_checkpoint takes an earlier checkpoint, too."
        ) from error


def _finish(unfinished: Path, finished: Path) -> None:
    if finished.exists():  # of a run that was resumed further back
        os.replace(finished, unfinished.with_name(f"{UNFINISHED}replaced"))
    os.replace(unfinished, finished)
    remove_unfinished(finished.parent)


def _prune(output_dir: Path, step: int, total_limit: int | None) -> None:
    """Delete the oldest; the one just saved stays, whatever its number."""
    others = [path for path in checkpoints(output_dir) if path.name != f"{PREFIX}{step}"]
    for path in others[: len(others) + 1 - total_limit] if total_limit else ():
        shutil.rmtree(path)


def remove_unfinished(output_dir: Path) -> None:
    for path in output_dir.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)
