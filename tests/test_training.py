import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmdiff_pipelines import MultimodalDDPMScheduler, MultimodalMultitaskPipeline
from mmdiff_pipelines.pipelines.model_card import build_card
from mmdiff_pipelines.pipelines.sharing import UPLOADED
from mmdiff_pipelines.training.checkpoints import checkpoints
from mmdiff_pipelines.training.loop import Trainer

from .conftest import build_pipeline
from .training_case import ANIMALS, MODALITIES, TRUNK, build_dataset, example, run, save_dataset


SCRIPT = Path(__file__).parents[1] / "examples" / "train_multimodal.py"
EMA = ["--use_ema", "--ema_max_decay", "0.9"]


@pytest.fixture
def data(tmp_path):
    return save_dataset(tmp_path)


@pytest.fixture
def records(monkeypatch):
    """The logs of every step of the runs of a test."""
    logs = []
    optimization_step = Trainer.optimization_step

    def recording(self, batches):
        logs.append(optimization_step(self, batches))
        return logs[-1]

    monkeypatch.setattr(Trainer, "optimization_step", recording)
    return logs


def weights(output_dir):
    return load_file(Path(output_dir) / "unet" / "diffusion_pytorch_model.safetensors")


def assert_equal_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def interrupt_after(monkeypatch, steps):
    """Let the next run be killed when it has done some steps."""
    optimization_step = Trainer.optimization_step

    def interrupted(self, batches):
        if self.progress.step == steps:
            raise KeyboardInterrupt
        return optimization_step(self, batches)

    monkeypatch.setattr(Trainer, "optimization_step", interrupted)


RESUMED = {
    "epochs, EMA, dropout, everything random": [
        *EMA, "--dropout", "0.1", "--random_flip", "--random_crop", "2", "--modality", "hole:masked_image",
        "--task_weights", "uncertainty", "--cache_in_memory",
    ],
    "accumulation over the end of an epoch": [*EMA, "--gradient_accumulation_steps", "3"],
    "a worker": ["--dataloader_num_workers", "1"],
    "a stream": ["--streaming", "--shuffle_buffer_size", "10"],
}  # fmt: skip


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, data, monkeypatch, options, records):
    arguments = ["--train_data_dir", data, *MODALITIES, *options, "--max_train_steps", 9, "--checkpointing_steps", 3]
    run(*arguments, "--output_dir", tmp_path / "whole")
    whole = list(records)
    records.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 8)
        run(*arguments, "--output_dir", tmp_path / "killed")
    assert not (tmp_path / "killed" / "unet").exists()
    run(*arguments, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "latest")
    assert records == whole[:8] + whole[6:]
    assert_equal_weights(tmp_path / "whole", tmp_path / "killed")


def test_resumed_at_the_end_of_an_epoch(tmp_path, data, records):
    """36 rows are 4 batches of 8: checkpoint 4 stands between two epochs."""
    arguments = ["--train_data_dir", data, *MODALITIES, "--max_train_steps", 6, "--checkpointing_steps", 4]
    run(*arguments, "--output_dir", tmp_path / "run")
    run(*arguments, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "checkpoint-4")
    assert records[6:] == records[4:6]


def test_a_half_written_checkpoint_is_never_picked_up(tmp_path, data, monkeypatch, records):
    save_state = Accelerator.save_state

    def die_at_the_second(self, output_dir):
        if output_dir.endswith("checkpoint-4"):
            os.makedirs(output_dir)
            Path(output_dir, "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        return save_state(self, output_dir)

    arguments = ["--train_data_dir", data, "--max_train_steps", 4, "--checkpointing_steps", 2]
    arguments += ["--output_dir", tmp_path / "run"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Accelerator, "save_state", die_at_the_second)
        run(*arguments)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    run(*arguments, "--resume_from_checkpoint", "latest")
    assert records[4:] == records[2:4]
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-2", "checkpoint-4"]
    assert not list((tmp_path / "run").glob(".unfinished*"))


def test_only_so_many_checkpoints_are_kept(tmp_path, data):
    run(
        "--train_data_dir", data, "--max_train_steps", 5, "--checkpointing_steps", 1,
        "--checkpoints_total_limit", 2, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-5"]


def test_checkpoints_of_two_runs_are_not_mixed(tmp_path, data):
    arguments = ["--train_data_dir", data, "--max_train_steps", 2, "--checkpointing_steps", 1]
    arguments += ["--output_dir", tmp_path / "run"]
    run(*arguments)
    with pytest.raises(ValueError, match="checkpoints of an earlier run"):
        run(*arguments)
    with pytest.raises(ValueError, match="seed = 0, this run has 1"):
        run(*arguments, "--seed", 1, "--resume_from_checkpoint", "latest")
    with pytest.raises(ValueError, match="scheduler = .*total_noise.*this run has .*v_prediction"):
        run(*arguments, "--prediction_type", "v_prediction", "--resume_from_checkpoint", "latest")
    with pytest.raises(ValueError, match="checkpoint-7 is not there.*checkpoint-1, checkpoint-2"):
        run(*arguments, "--resume_from_checkpoint", "checkpoint-7")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint_is_named(tmp_path, data, file, damage):
    arguments = ["--train_data_dir", data, "--max_train_steps", 1, "--checkpointing_steps", 1]
    arguments += ["--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest"]
    run(*arguments)
    path = tmp_path / "run" / "checkpoint-1" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="(?s)--resume_from_checkpoint: .*checkpoint-1 is damaged.*an earlier"):
        run(*arguments)


def test_latest_of_nothing_starts_a_run(tmp_path, data, capsys):
    run(
        "--train_data_dir", data, "--max_train_steps", 1, "--output_dir", tmp_path / "run",
        "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    assert "no checkpoint; starting from the beginning" in capsys.readouterr().out
    assert (tmp_path / "run" / "model_index.json").exists()


def read_curve(folder):
    """Everything logged to tensorboard: name -> values by step."""
    (event_file,) = [p for p in folder.rglob("events.*") if p.parent.name == "train_multimodal"]
    events = EventAccumulator(str(event_file))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def launch_two(*arguments):
    """In processes of their own; `accelerate launch` starts several on CPU by MPI only."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        SCRIPT,
        *arguments,
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen([str(part) for part in command], env=environment | {"OMP_NUM_THREADS": "1"})


def test_one_and_two_processes_have_the_same_losses(tmp_path, data):
    arguments = [*TRUNK, "--train_data_dir", data, *MODALITIES, "--modality", "hole:masked_image", "--random_flip"]
    arguments += ["--max_train_steps", 6, "--lr_scheduler", "constant", "--learning_rate", "1e-3"]
    arguments += ["--report_to", "tensorboard"]
    two = launch_two(*arguments, "--train_batch_size", 4, "--output_dir", tmp_path / "two")
    run(*arguments, "--train_batch_size", 8, "--output_dir", tmp_path / "one")
    assert two.wait(timeout=120) == 0
    one, two = read_curve(tmp_path / "one"), read_curve(tmp_path / "two")
    assert {"loss", "lr", "image_loss", "label_loss", "mask_loss", "image_rows", "mask_rows"} <= one.keys()
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values == pytest.approx(two[name], rel=1e-4), name
    assert "2 x cpu" in (tmp_path / "two" / "README.md").read_text()


def test_the_order_of_the_data(tmp_path, data, monkeypatch):
    """Epoch e is a permutation seeded by seed + e, cut into batches."""
    seen = []
    step_inputs = Trainer.optimization_step

    def recording(self, batches):
        batch = next(batches)
        seen.append(batch["inputs"]["image"].clone())
        return step_inputs(self, iter([batch]))

    monkeypatch.setattr(Trainer, "optimization_step", recording)
    run("--train_data_dir", data, "--max_train_steps", 6, "--seed", 5, "--output_dir", tmp_path / "run")
    images = torch.stack([torch.from_numpy(np.asarray(row["image"]) / 127.5 - 1) for row in build_dataset()]).float()
    for step, batch in enumerate(seen):
        epoch, position = divmod(step, 4)
        order = torch.randperm(36, generator=torch.Generator().manual_seed(5 + epoch))
        assert torch.allclose(batch[:, 0], images[order[position * 8 : position * 8 + 8]], atol=1e-6)


def test_the_loss_goes_down_and_the_pipeline_loads_and_samples(tmp_path, data, records):
    output_dir = tmp_path / "run"
    run(
        "--train_data_dir", data, *MODALITIES, "--max_train_steps", 60, "--cache_in_memory", *EMA,
        "--validation_steps", 60, "--num_inference_steps", 2, "--num_validation_images", 3,
        "--output_dir", output_dir,
    )  # fmt: skip
    for name in ("image_loss", "mask_loss", "loss"):
        first, last = (np.mean([logs[name] for logs in part if name in logs]) for part in (records[:8], records[-8:]))
        assert last < 0.7 * first, name
    pipe = MultimodalMultitaskPipeline.from_pretrained(str(output_dir))
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, MultimodalDDPMScheduler)
    output = pipe(given={"label": ANIMALS}, num_inference_steps=2)
    assert output.modalities["label"] == ANIMALS and output.modalities["mask"][0].size == (16, 16)
    with PIL.Image.open(output_dir / "samples" / "step-000060.png") as grid:
        assert grid.size == (3 * 96, 2 * 96 + 12)
    card = (output_dir / "README.md").read_text()
    for part in (
        "library_name: mmdiff_pipelines", "from_pretrained", "| label | categorical |", "accelerate launch",
        "| Steps | 60 |", "| Images a step | 8 |", "| Images seen | 480 |", "| mask | 0.", "step-000060.png",
        "| Weights | EMA, decay 0.9 |",
    ):  # fmt: skip
        assert part in card, part
    assert card == build_card(output_dir)
    record = json.loads((output_dir / "training.json").read_text())
    assert record["rows"] == 36 and record["losses"].keys() == {"image", "label", "mask"}
    assert "dataset" not in record and "base_model" not in record  # both are local


def test_only_the_pipeline_is_uploaded(tmp_path, data):
    run(
        "--train_data_dir", data, "--max_train_steps", 2, "--checkpointing_steps", 1, "--validation_steps", 2,
        "--num_inference_steps", 1, "--report_to", "tensorboard", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    files = [str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert set(filter_repo_objects(files, allow_patterns=UPLOADED)) == {
        "README.md", "model_index.json", "samples/step-000002.png", "scheduler/scheduler_config.json",
        "training.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_the_card_names_licences_and_what_was_fine_tuned(tmp_path, data):
    build_pipeline({}).save_pretrained(str(tmp_path / "base"))
    run(
        "--train_data_dir", data, "--max_train_steps", 1, "--pretrained_model_name_or_path", tmp_path / "base",
        "--license", "apache-2.0", "--data_license", "cc0-1.0", "--hub_model_id", "user/model",
        "--output_dir", tmp_path / "run",
    )  # fmt: skip
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model is None
    for part in (f"| Fine-tuned from | {tmp_path / 'base'} |", "The data: cc0-1.0.", 'from_pretrained("user/model")'):
        assert part in card.text, part


def test_scores_of_earlier_weights_do_not_get_on_the_card_of_new_ones(tmp_path, data):
    arguments = ["--train_data_dir", data, "--max_train_steps", 1, "--output_dir", tmp_path / "run"]
    run(*arguments, "--checkpointing_steps", 1)
    (tmp_path / "run" / "evaluation.json").write_text('{"limits": ["small"]}')
    run(*arguments, "--resume_from_checkpoint", "latest")  # no step is left, so these are the same weights
    assert "- small" in (tmp_path / "run" / "README.md").read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(ValueError, match="--output_dir .* has an evaluation.json of earlier weights"):
        run(*arguments)


def test_a_dry_run_says_what_would_be_trained(tmp_path, data, capsys):
    run(
        "--train_data_dir", data, *MODALITIES, "--modality", "hole:masked_image", "--dry_run",
        "--output_dir", tmp_path / "run",
    )  # fmt: skip
    text = capsys.readouterr().out
    for part in (
        "36 rows", "image, label, mask", "image: column 'image', (1, 16, 16)", "['cat', 'dog', 'owl']",
        "5 channels, 1 of them the image's", "(encoder and head)", "readable from t = ", "only given or absent",
    ):  # fmt: skip
        assert part in text, part
    assert not (tmp_path / "run").exists()


def test_nan_in_a_loss_names_the_term_and_the_step_and_keeps_the_last_checkpoint(tmp_path, data, monkeypatch):
    from mmdiff_pipelines.modalities import SegmentationModality

    loss = SegmentationModality.loss
    calls = []

    def poisoned(self, prediction, inputs):
        calls.append(None)
        return loss(self, prediction, inputs) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(SegmentationModality, "loss", poisoned)
    with pytest.raises(FloatingPointError, match="'mask' is nan at step 4"):
        run(
            "--train_data_dir", data, *MODALITIES, "--max_train_steps", 6, "--checkpointing_steps", 1,
            "--output_dir", tmp_path / "run",
        )  # fmt: skip
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-3"
    assert not (tmp_path / "run" / "unet").exists()


def test_a_bad_row_names_the_step(tmp_path):
    rows = [example(i) for i in range(16)]
    rows[9]["mask"] = PIL.Image.fromarray(np.full((16, 16), 3, np.uint8))
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"(?s)at about step \d: modality 'mask'.*class 3.*0 to 1"):
        run("--train_data_dir", tmp_path / "data", *MODALITIES, "--max_train_steps", 4, "--output_dir", tmp_path / "r")


def test_a_damaged_picture_names_the_step(tmp_path):
    example(0)["image"].save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    rows = [f"{tmp_path}/{'bad' if i % 2 else 'good'}.png" for i in range(600)]  # of which the even ones are looked at
    (tmp_path / "rows.csv").write_text("\n".join(["image", *rows]))
    with pytest.raises(ValueError, match=r"at about step 1: .*bad\.png"):
        run("--data_files", tmp_path / "rows.csv", "--cache_dir", tmp_path, "--output_dir", tmp_path / "run")


def test_a_run_of_no_step_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match="--num_train_epochs 1 has 4 batches.*--gradient_accumulation_steps 5"):
        run(
            "--train_data_dir", data, "--num_train_epochs", 1, "--gradient_accumulation_steps", 5,
            "--output_dir", tmp_path / "run",
        )  # fmt: skip


def test_flips_keep_image_and_mask_aligned_and_spare_forbidden_labels(tmp_path, monkeypatch):
    """An arrow that points left is never flipped where its label says so."""
    left = np.zeros((16, 16), np.uint8)
    left[:, :5] = 1
    rows = [
        {"image": PIL.Image.fromarray(left * 255), "label": i % 3, "mask": PIL.Image.fromarray(left)}
        for i in range(24)
    ]
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "data")
    seen = []
    forward = Trainer.optimization_step

    def recording(self, batches):
        step_inputs = self.step_inputs

        def spy(*arguments):
            seen.append(step_inputs(*arguments)["inputs"])
            return step_inputs(*arguments)

        monkeypatch.setattr(self, "step_inputs", spy)
        logs = forward(self, batches)
        monkeypatch.setattr(self, "step_inputs", step_inputs)
        return logs

    monkeypatch.setattr(Trainer, "optimization_step", recording)
    run(
        "--train_data_dir", tmp_path / "data", *MODALITIES, "--random_flip", "--no_flip_labels", "owl,0",
        "--max_train_steps", 6, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    images, masks, labels = (torch.cat([inputs[name] for inputs in seen]) for name in ("image", "mask", "label"))
    assert torch.equal(images[:, 0] > 0, masks == 1)
    flipped = masks[:, 0, -1] == 1
    assert not flipped[labels != 1].any()
    assert 0.2 < flipped[labels == 1].float().mean() < 0.8


def test_rows_without_annotation_are_trained_on(tmp_path, records):
    rows = [example(i) for i in range(16)]
    for i in range(0, 16, 2):
        rows[i]["label"] = None
    for row in rows:
        row["mask"] = None
    rows[3]["mask"] = example(3)["mask"]
    datasets.Dataset.from_list(rows, features=build_dataset(1).features).save_to_disk(tmp_path / "data")
    run("--train_data_dir", tmp_path / "data", *MODALITIES, "--max_train_steps", 4, "--output_dir", tmp_path / "run")
    for logs in records:
        assert logs["image_rows"] >= 4  # a row whose image is given needs something to query
        assert logs.get("label_rows", 0) <= 8 and logs["mask_rows"] <= 1
        assert ("mask_loss" in logs) == (logs["mask_rows"] > 0)


def test_plain_ddpm_from_a_pretrained_unet(tmp_path, data, records):
    unet = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "pretrained" / "unet")
    run(
        "--train_data_dir", data, "--pretrained_unet", tmp_path / "pretrained", "--max_train_steps", 1,
        "--learning_rate", 0, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert set(records[0]) == {"loss", "lr", "image_loss", "image_rows"}
    for name, tensor in unet.state_dict().items():
        assert torch.equal(weights(tmp_path / "run")[name], tensor)


def test_fine_tuning_keeps_modalities_and_scheduler(tmp_path, data):
    run(
        "--train_data_dir", data, *MODALITIES, "--max_train_steps", 1, "--prediction_type", "v_prediction",
        "--output_dir", tmp_path / "first",
    )  # fmt: skip
    run(
        "--train_data_dir", data, "--pretrained_model_name_or_path", tmp_path / "first", "--max_train_steps", 1,
        "--learning_rate", 0, "--output_dir", tmp_path / "second",
    )  # fmt: skip
    assert_equal_weights(tmp_path / "first", tmp_path / "second")
    config = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path / "second")).scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.aggregation == {"label": "decay", "mask": "decay"}
