"""LoRA adapters of the trunk: in the model, and by training."""

import pytest
import torch
from diffusers import UNet2DModel
from peft import LoraConfig
from safetensors.torch import load_file

from mmdiff_pipelines import MultimodalMultitaskPipeline, MultimodalUNet2DModel
from mmdiff_pipelines.training import parse_args
from mmdiff_pipelines.training.loop import Trainer

from .conftest import TRUNK, build_inputs, build_pipeline, build_unet
from .test_training import EMA, interrupt_after
from .training_case import MODALITIES, run, save_dataset


ADAPTER = "pytorch_lora_weights.safetensors"
LEARNED = {
    "label": {"type": "categorical", "num_classes": 3, "class_names": ["cat", "dog", "owl"]},
    "mask": {"type": "segmentation", "num_classes": 2},
}
CONVOLUTIONS_ONLY = {
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    "add_attention": False,
}


def outputs(unet):
    """What the model says of one fixed batch: the anchor's output and all predictions, as one dict."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, unet.total_channels, 16, 16, generator=generator)
    torch.manual_seed(0)
    with torch.no_grad():
        output = unet(sample, 3, encodings=unet.encode(build_inputs(unet, 2)))
    return {"image": output.sample, **output.predictions}


def assert_same(a, b, exact=True):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) if exact else torch.allclose(a[name], b[name], atol=1e-5), name


def assert_all_differ(a, b):
    for name in a:
        assert not torch.allclose(a[name], b[name], atol=1e-4), name


def add_adapter(unet, name="default", seed=1, rank=2):
    """An adapter of the convolutions and of the attention, where there is any, as if trained."""
    modules = [n for n, m in unet.named_modules() if n.endswith(("conv1", "to_q")) and ".lora_" not in n]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in unet.named_parameters():
            if f".lora_B.{name}" in key:
                parameter.normal_(std=0.5, generator=generator)


@pytest.mark.parametrize("trunk", [{}, CONVOLUTIONS_ONLY], ids=["attention", "convolutions only"])
def test_an_adapter_is_saved_loaded_switched_off_and_deleted(tmp_path, trunk):
    unet = build_unet(**trunk)
    keys, without = list(unet.state_dict()), outputs(unet)
    add_adapter(unet)
    adapted = outputs(unet)
    assert_all_differ(adapted, without)
    unet.save_lora_adapter(tmp_path)
    assert any(".to_q." in key for key in load_file(tmp_path / ADAPTER)) == (not trunk)

    other = build_unet(**trunk)
    other.load_lora_adapter(tmp_path)  # no option is needed, also offline
    assert_same(outputs(other), adapted)
    other.disable_lora()
    assert_same(outputs(other), without)
    other.enable_lora()
    other.fuse_lora()
    assert_same(outputs(other), adapted, exact=False)
    other.unfuse_lora()
    other.delete_adapters("default_0")
    assert_same(outputs(other), without, exact=False)
    other.unload_lora()
    assert list(other.state_dict()) == keys


def test_two_adapters_are_weighted_and_mixed(tmp_path):
    unet = build_unet()
    add_adapter(unet, "a", seed=1)
    alone = outputs(unet)
    unet.save_lora_adapter(tmp_path / "a", "a")
    add_adapter(unet, "b", seed=2)
    assert_all_differ(outputs(unet), alone)
    unet.set_adapters(["a", "b"], [1.0, 0.0])
    assert_same(outputs(unet), alone, exact=False)
    unet.set_adapters(["a", "b"], [0.5, 0.5])
    assert_all_differ(outputs(unet), alone)
    unet.delete_adapters("b")
    unet.set_adapters("a")
    assert_same(outputs(unet), alone)
    with pytest.raises(ValueError, match="already in use"):
        unet.load_lora_adapter(tmp_path / "a", adapter_name="a")
    assert_same(outputs(unet), alone)


def test_a_prefix_as_pipelines_write_it(tmp_path):
    unet = build_unet()
    add_adapter(unet)
    adapted = outputs(unet)
    unet.save_lora_adapter(tmp_path)
    weights = {f"unet.{key}": tensor for key, tensor in load_file(tmp_path / ADAPTER).items()}
    other = build_unet()
    with pytest.raises(ValueError, match="no linear layer"):
        other.load_lora_adapter(weights)
    with pytest.raises(ValueError, match="none with this `prefix`"):
        other.load_lora_adapter(weights, prefix="transformer")
    # a bare state dict has no alpha: the scale is 1, here alpha / rank = 2
    other.load_lora_adapter({k: t * 2 if "lora_B" in k else t for k, t in weights.items()}, prefix="unet")
    assert_same(outputs(other), adapted, exact=False)


def damaged(weights, damage):
    key = next(key for key in weights if "lora_B" in key)
    if damage == "half":
        del weights[key]
    elif damage == "rank":
        weights[key] = weights[key][:, :1].contiguous()
    elif damage == "other keys":
        weights = {key.replace(".lora_A.", ".down.").replace(".lora_B.", ".up."): t for key, t in weights.items()}
    return weights


@pytest.mark.parametrize(
    ("trunk", "damage", "message"),
    [
        (
            {"block_out_channels": (8, 32)},
            None,
            r"down_blocks\.1\S+to_q has the weight \(16, 16\), .*the LoRA \(2, .*and 7 more",
        ),
        ({"layers_per_block": 2}, None, r"down_blocks\.0\.resnets\.1\.conv1 is no linear layer or convolution"),
        ({}, "half", "has no pair of LoRA weights"),
        ({}, "rank", r"has the weight .*the LoRA"),
        ({}, "other keys", "has no pair of LoRA weights"),
    ],
)
def test_lora_of_another_trunk_is_refused_and_nothing_changes(trunk, damage, message):
    trained = build_unet(**trunk)
    add_adapter(trained)
    weights = {
        key.replace(".default", ""): tensor.clone() for key, tensor in trained.state_dict().items() if ".lora_" in key
    }
    unet = build_unet()
    keys, before = list(unet.state_dict()), outputs(unet)
    with pytest.raises(ValueError, match=message) as caught:
        unet.load_lora_adapter(damaged(weights, damage))
    assert "MultimodalUNet2DModel" in str(caught.value) and "unchanged" in str(caught.value)
    assert list(unet.state_dict()) == keys and not hasattr(unet, "peft_config")
    assert_same(outputs(unet), before)


def test_a_folder_without_an_adapter_is_a_clear_error(tmp_path):
    with pytest.raises(OSError, match=ADAPTER):
        build_unet().load_lora_adapter(str(tmp_path))


# ---- training


@pytest.fixture
def data(tmp_path):
    return save_dataset(tmp_path)


@pytest.fixture
def base(tmp_path):
    build_pipeline(LEARNED).save_pretrained(str(tmp_path / "base"))
    return tmp_path / "base"


def lora_arguments(data, base, *more):
    return ["--train_data_dir", data, "--pretrained_model_name_or_path", base, "--lora_rank", 2, *more]


def test_training_moves_only_the_adapter_and_saves_only_it(tmp_path, data, base, monkeypatch):
    trainers = []
    finish = Trainer.finish
    monkeypatch.setattr(Trainer, "finish", lambda self: (trainers.append(self), finish(self)))
    run(
        *lora_arguments(data, base, "--lora_alpha", 8, "--max_train_steps", 3, *EMA, "--validation_steps", 3),
        "--num_inference_steps", 2, "--num_validation_images", 2, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert not (tmp_path / "run" / "unet").exists() and not (tmp_path / "run" / "model_index.json").exists()
    assert (tmp_path / "run" / "samples" / "step-000003.png").exists()
    weights = load_file(tmp_path / "run" / ADAPTER)
    for part in ("to_q", "to_out.0", "conv1", "conv2", "conv_shortcut", "time_emb_proj"):
        assert any(f".{part}.lora_B" in key for key in weights), part
    assert all(tensor.any() for key, tensor in weights.items() if "lora_B" in key)

    pipe = MultimodalMultitaskPipeline.from_pretrained(str(base))
    trained = trainers[0].unet.eval()
    for key, tensor in pipe.unet.state_dict().items():
        layer, _, name = key.rpartition(".")
        module = trained.get_submodule(layer)
        assert torch.equal(getattr(getattr(module, "base_layer", module), name), tensor), key
    before = outputs(pipe.unet)
    pipe.unet.load_lora_adapter(str(tmp_path / "run"))
    assert_all_differ(outputs(pipe.unet), before)
    # what is saved is the mean, and that is what the trainer samples with
    with trainers[0].averaged_weights():
        assert_same(outputs(pipe.unet), outputs(trained))
    card = (tmp_path / "run" / "README.md").read_text()
    assert f'from_pretrained("{base}")\npipe.unet.load_lora_adapter("run")' in card


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, data, base, monkeypatch):
    arguments = lora_arguments(data, base, *EMA, "--max_train_steps", 5, "--checkpointing_steps", 2)
    run(*arguments, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 3)
        run(*arguments, "--output_dir", tmp_path / "killed")
    assert not (tmp_path / "killed" / ADAPTER).exists()
    resumed = [*arguments, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "latest"]
    with pytest.raises(ValueError, match="LoRA = rank 2, alpha 2, of all, this run has rank 2, alpha 1"):
        run(*resumed, "--lora_alpha", 1)
    run(*resumed)
    one, other = (load_file(tmp_path / name / ADAPTER) for name in ("whole", "killed"))
    assert_same(one, other)


def test_new_modalities_of_a_plain_unet_are_trained_whole_and_saved_around_it(tmp_path, data):
    plain = UNet2DModel(**TRUNK)
    plain.save_pretrained(tmp_path / "plain")
    run(
        "--train_data_dir", data, "--pretrained_unet", tmp_path / "plain", *MODALITIES, "--max_train_steps", 3,
        "--lora_rank", 2, "--lora_target_modules", "to_q", "conv1", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert {key.split(".lora_")[0].rpartition(".")[2] for key in load_file(tmp_path / "run" / ADAPTER)} == {
        "to_q",
        "conv1",
    }
    pipe = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path / "run"))
    started = MultimodalUNet2DModel.from_unet(plain, dict(pipe.unet.config.modalities))
    fixed = plain.state_dict().keys() | {
        key for key, parameter in started.named_parameters() if not parameter.requires_grad
    }
    for key, tensor in pipe.unet.state_dict().items():
        if key in fixed:
            assert torch.equal(tensor, started.state_dict()[key]), key
        elif not started.state_dict()[key].any():  # what started at zero has learned
            assert tensor.any(), key
    before = outputs(pipe.unet.eval())
    pipe.unet.load_lora_adapter(str(tmp_path / "run"))
    assert_all_differ(outputs(pipe.unet), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora_rank", "4"], "--pretrained_model_name_or_path or --pretrained_unet"),
        (["--lora_rank", "0", "--pretrained_unet", "x"], "--lora_rank is 0; accepted: 1 or more"),
        (["--lora_alpha", "4", "--pretrained_unet", "x"], "need --lora_rank"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--dataset_name", "user/data", *options])
    assert message in capsys.readouterr().err


def test_a_target_module_that_is_none_is_refused(tmp_path, data, base):
    with pytest.raises(ValueError, match="'norm1', which is no layer of the trunk; accepted: .*conv1, .*to_q"):
        run(*lora_arguments(data, base, "--lora_target_modules", "conv1", "norm1"), "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_much_is_trained(tmp_path, data, base, capsys):
    run(*lora_arguments(data, base, "--dry_run"), "--output_dir", tmp_path / "run")
    text = capsys.readouterr().out
    trained, total = (int(text.split(part)[0].split()[-1].replace(",", "")) for part in (" of them are tr", " in all"))
    assert 0 < trained < total / 3
