"""Several processes: two on CPU, started as examples/accelerate_configs/cpu.yaml says, once for all tests here."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from mmdiff_pipelines.training.checkpoints import checkpoints

from . import distributed_worker as worker
from .training_case import reset_accelerate, run


WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIGS = Path(__file__).parents[1] / "examples" / "accelerate_configs"


class Launch(NamedTuple):
    folder: Path
    returncode: int
    seconds_after_death: float
    log: str


def command(folder):
    launch = "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml", "--main_process_port", 0
    return [str(part) for part in (sys.executable, "-m", *launch, "-m", "tests.distributed_worker", folder)]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Both processes take single steps on two datasets, then train until one is killed."""
    folder = tmp_path_factory.mktemp("distributed")
    worker.save_data(folder)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command(folder), env=environment, stdout=log, stderr=subprocess.STDOUT)
        returncode = process.wait(timeout=400)
    ended = time.time()
    text = (folder / "log").read_text()
    assert (folder / "died").exists(), text
    return Launch(folder, returncode, ended - (folder / "died").stat().st_mtime, text)


@pytest.mark.parametrize("data", ["complete", "missing"])
def test_gradients_of_two_processes_are_those_of_one(launch, data):
    """Also where all rows of the second process lack label and mask: nothing hangs, every parameter has a gradient."""
    reset_accelerate()
    one = worker.one_step(launch.folder, data, 1)
    first, second = (torch.load(launch.folder / f"{data}-{rank}.pt") for rank in range(2))
    assert first["logs"] == pytest.approx(one["logs"], rel=1e-5)
    assert one["logs"]["label_rows"] > 0 and one["logs"]["mask_rows"] > 0
    for name, gradient in one["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        assert (first["gradients"][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    for part in ("modality_modules.label.head", "modality_modules.mask.head", "down_blocks"):
        assert any(gradient.any() for name, gradient in one["gradients"].items() if name.startswith(part)), part
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name


def test_the_second_process_really_had_no_annotation(launch):
    """Its share of the logged rows: those of the run without are those of the first process alone."""
    complete, missing = (torch.load(launch.folder / f"{data}-0.pt")["logs"] for data in ("complete", "missing"))
    assert missing["label_rows"] < complete["label_rows"] and missing["mask_rows"] < complete["mask_rows"]
    assert missing["label_rows"] <= worker.GLOBAL_BATCH // 2


def test_a_process_that_dies_ends_the_run_and_leaves_the_last_checkpoint(launch, tmp_path):
    assert launch.returncode != 0
    assert "Signal 9 (SIGKILL)" in launch.log and "rank      : 1" in launch.log
    assert launch.seconds_after_death < 30
    killed = launch.folder / "run-2"
    assert [path.name for path in checkpoints(killed)] == [f"checkpoint-{worker.CHECKPOINT}"]
    assert not (killed / "unet").exists()
    # the batch of the whole run is what counts, so that one process may go on
    run(*worker.arguments(launch.folder, "complete", 1), "--output_dir", killed, "--resume_from_checkpoint", "latest")
    run(*worker.arguments(launch.folder, "complete", 1), "--output_dir", tmp_path / "whole")
    resumed, whole = (load_file(path / "unet" / WEIGHTS) for path in (killed, tmp_path / "whole"))
    for name, tensor in whole.items():
        if not name.endswith("to_k.bias"):  # of no effect: its gradient is rounding, which Adam scales up
            assert torch.allclose(resumed[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_is_one_of_accelerate_and_says_whether_it_was_run(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"] > 1
    assert ("Run by tests/test_distributed.py" in path.read_text()) != ("Not run" in path.read_text())
