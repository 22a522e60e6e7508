import pytest

from mmdiff_pipelines.training import parse_args
from mmdiff_pipelines.training.arguments import recordable
from mmdiff_pipelines.training.components import mirrored
from mmdiff_pipelines.training.modality_options import adopt_pretrained, parse_modality, scheduler_arguments


DATA = ["--dataset_name", "user/data"]


def test_a_modality_on_the_command_line():
    option = parse_modality("mask:segmentation:column=seg,class_weights=0.2|1,ignore_index=7,weight=2,task_weight=0.5")
    assert (option.name, option.column, option.weight, option.task_weight) == ("mask", "seg", 2, 0.5)
    assert option.spec == {"type": "segmentation", "class_weights": [0.2, 1], "ignore_index": 7}


def test_names_stay_strings_and_values_get_types():
    option = parse_modality("label:categorical:class_names=1|2|true,learn_encoder=True,num_classes=3")
    assert option.arguments == {"class_names": ["1", "2", "true"], "learn_encoder": True, "num_classes": 3}
    assert option.column == "label"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label", "type '' is not known; accepted: categorical"),
        ("label:classes", "type 'classes' is not known"),
        ("image:image", "reserved"),
        ("a-b:vector", "no identifier"),
        ("label:categorical:num_clases=3", "unknown keys .'num_clases'.; accepted: column"),
        ("label:categorical:3", "not of the form key=value"),
    ],
)
def test_a_wrong_modality_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_modality(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of"),
        ([*DATA, "--train_data_dir", "x"], "exactly one of"),
        ([*DATA, "--streaming"], "--max_train_steps"),
        ([*DATA, "--report_to", "wandb", "--hub_token", "hf_x"], "--hub_token"),
        ([*DATA, "--no_flip_labels", "3"], "--random_flip"),
        ([*DATA, "--modality", "a:vector", "--modality", "a:vector"], "twice"),
        ([*DATA, "--modality", "a:nothing"], "accepted: categorical"),
        ([*DATA, "--state_shares", "joint=1,given=1,absent=0"], "sum to 1"),
        ([*DATA, "--state_shares", "joint=1"], "joint=...,given=...,absent=..."),
        ([*DATA, "--state_shares", "joint=x,given=0,absent=0"], "'joint=x,given=0,absent=0': accepted"),
        ([*DATA, "--task_weights", "label"], "'label': accepted: NAME=0.1"),
        ([*DATA, "--task_weights", "label=nan"], "finite and at least 0"),
        ([*DATA, "--num_train_timesteps", "10", "--validation_steps", "5"], "--num_inference_steps is 50"),
        ([*DATA, "--perception_share", "1.5"], "0 to 1"),
        ([*DATA, "--snr_gamma", "0"], "snr_gamma is 0.0; accepted: a number above 0"),
        ([*DATA, "--train_batch_size", "0"], "1 or more"),
        ([*DATA, "--resolution", "8", "8", "8"], "one, or height and width"),
        ([*DATA, "--pretrained_unet", "a", "--pretrained_model_name_or_path", "b"], "--pretrained_unet"),
        ([*DATA, "--streaming", "--max_train_steps", "1", "--cache_in_memory"], "--cache_in_memory"),
        ([*DATA, "--streaming", "--max_train_steps", "1", "--dataloader_num_workers", "2"], "one worker"),
        ([*DATA, "--learning_rat", "1"], "--learning_rat"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_a_reason(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert message in capsys.readouterr().err


def test_task_weights():
    assert parse_args([*DATA, "--task_weights", "label=0.1,mask=1"]).task_weights == {"label": 0.1, "mask": 1.0}
    assert parse_args([*DATA, "--task_weights", "uncertainty"]).task_weights == "uncertainty"


def test_what_is_recorded_has_no_token():
    args = parse_args([*DATA, "--hub_token", "hf_secret", "--resolution", "8", "16"])
    assert "hf_secret" not in str(recordable(args))
    assert recordable(args)["resolution"] == "[8, 16]"


def test_scheduler_defaults_by_space():
    options = [parse_modality("a:vector"), parse_modality("b:image:space=shared"), parse_modality("c:vector:weight=3")]
    assert scheduler_arguments(options) == {
        "aggregation": {"a": "decay", "b": "bridge", "c": "decay"},
        "modality_weights": {"a": 1.0, "b": 0.5, "c": 3},
    }


def test_mirrored_blocks():
    assert mirrored(["DownBlock2D", "AttnDownBlock2D"]) == ["AttnUpBlock2D", "UpBlock2D"]


def test_the_modalities_of_a_pretrained_pipeline_are_kept():
    specs = {"label": {"type": "categorical", "num_classes": 3}}
    (option,) = adopt_pretrained([parse_modality("label:categorical:column=y,task_weight=2")], specs)
    assert (option.column, option.task_weight, option.spec) == ("y", 2, specs["label"])
    assert adopt_pretrained([], specs)[0].column == "label"
    kept, added = adopt_pretrained([parse_modality("depth:image:weight=2")], specs)
    assert kept.name == "label" and (added.name, added.weight) == ("depth", 2)
    for text in ("label:vector", "label:categorical:num_classes=4", "label:categorical:weight=2"):
        with pytest.raises(ValueError, match="--modality"):
            adopt_pretrained([parse_modality(text)], specs)
