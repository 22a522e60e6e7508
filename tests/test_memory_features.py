"""What diffusers offers to save memory: that our parts, which are not all in `forward`, take part in it rightly."""

import copy

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import AutoencoderTiny
from diffusers.hooks.group_offloading import ModuleGroup
from peft import LoraConfig

from mmdiff_pipelines import MultimodalDDPMScheduler, MultimodalMultitaskPipeline

from .conftest import MODALITIES, build_inputs, build_pipeline, build_unet


LATENT = {"label": MODALITIES["label"], "depth": MODALITIES["depth"]}


def build_latent_pipeline():
    """With a VAE, so that there are two models to take turns."""
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        in_channels=1, out_channels=1, encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip
    unet = build_unet(LATENT, sample_size=8, in_channels=4, out_channels=4)
    scheduler = MultimodalDDPMScheduler(
        aggregation={"label": "decay", "depth": "bridge"}, modality_weights=0.5, clip_sample=False
    )
    pipeline = MultimodalMultitaskPipeline(unet, scheduler, vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, **options):
    """A label given, the rest generated, by the way through all methods of the model."""
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        given={"label": [2, 0]}, num_inference_steps=2, generator=generator, output_type="pt", guidance_scale=2.0,
        **options,
    )  # fmt: skip


def assert_equal_outputs(a, b):
    assert torch.equal(a.images, b.images)
    assert a.modalities.keys() == b.modalities.keys() and len(a.modalities) >= 2
    for name, value in a.modalities.items():
        assert torch.equal(value, b.modalities[name]), name


class Elsewhere:
    """Parameters that are on another device, on a machine that has one: NaN until they are brought back."""

    def __init__(self):
        self.kept = {}

    def take(self, tensors):
        for tensor in tensors:
            if tensor.is_floating_point() and id(tensor) not in self.kept:
                self.kept[id(tensor)] = tensor.data.clone()
                tensor.data.fill_(float("nan"))

    def bring_back(self, tensors):
        for tensor in tensors:
            if id(tensor) in self.kept:
                tensor.data.copy_(self.kept.pop(id(tensor)))


@pytest.mark.parametrize("options", [{}, {"discrete": "draw_first"}, {"discrete": "commit", "commit_threshold": 0.1}])
def test_model_cpu_offload_has_every_model_in_place_when_it_works(monkeypatch, options):
    pipeline = build_latent_pipeline()
    expected = generate(pipeline, **options)

    elsewhere, order = Elsewhere(), []

    def leave(hook, module):
        elsewhere.take(module.parameters())
        return module

    def enter(hook, module, *args, **kwargs):
        if hook.prev_module_hook is not None:
            hook.prev_module_hook.offload()
        elsewhere.bring_back(module.parameters())
        order.append(type(module).__name__)
        return args, kwargs

    monkeypatch.setattr(CpuOffload, "init_hook", leave)
    monkeypatch.setattr(CpuOffload, "pre_forward", enter)
    pipeline.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # the hooks are there again after a call
        assert pipeline.unet.conv_in.weight.isnan().all() and pipeline.vae.decoder.layers[0].weight.isnan().all()
        assert_equal_outputs(generate(pipeline, **options), expected)
    assert set(order[: order.index("AutoencoderTiny")]) == {"MultimodalUNet2DModel"}
    pipeline.remove_all_hooks()


def test_the_offload_sequence_names_all_models():
    pipeline = build_latent_pipeline()
    models = {name for name, component in pipeline.components.items() if isinstance(component, torch.nn.Module)}
    assert pipeline.model_cpu_offload_seq.split("->") == ["unet", "vae"] and models == {"unet", "vae"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_model_cpu_offload_without_an_accelerator_says_so():
    with pytest.raises(RuntimeError, match="requires accelerator"):
        build_pipeline().enable_model_cpu_offload()


@pytest.mark.parametrize("kind", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}], ids=["leaf", "block"])
@pytest.mark.parametrize("of", ["unet", "pipeline"])
def test_group_offload_has_every_parameter_in_place_when_it_works(monkeypatch, kind, of):
    pipeline = build_pipeline()
    expected = generate(pipeline)
    elsewhere = Elsewhere()

    def tensors(group):
        return [*(p for module in group.modules for p in module.parameters()), *group.parameters]

    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: elsewhere.take(tensors(group)))
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: elsewhere.bring_back(tensors(group)))
    (pipeline.unet if of == "unet" else pipeline).enable_group_offload(onload_device="cpu", **kind)
    assert list(pipeline.unet.state_dict()) == list(build_unet().state_dict())
    for _ in range(2):
        assert pipeline.unet.down_blocks[0].resnets[0].conv1.weight.isnan().all()
        assert pipeline.unet.conv_in.weight.isnan().all()
        assert_equal_outputs(generate(pipeline), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_layerwise_casting_stores_the_trunk_small_and_leaves_our_parts(dtype):
    unet = build_unet()
    inputs, sample = build_inputs(unet, 2), torch.randn(2, unet.total_channels, 16, 16)
    with torch.no_grad():
        expected = unet(sample, 5, encodings=unet.encode(inputs))
        unet.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
        output = unet(sample, 5, encodings=unet.encode(inputs))
    assert unet.dtype == torch.float32
    for key, parameter in unet.named_parameters():
        ours = key.startswith(("modality_modules", "conv_condition", "conv_reserved", "presence_embedding"))
        assert parameter.dtype == (torch.float32 if ours or "norm" in key else dtype), key
    tolerance = 0.1 if dtype == torch.float8_e4m3fn else 0.01
    for name, value in {"image": expected.sample, **expected.predictions}.items():
        got = output.sample if name == "image" else output.predictions[name]
        assert 0 < (got - value).norm() / value.norm() < tolerance, name


def test_a_cast_trunk_samples_and_takes_an_adapter(tmp_path):
    adapted = build_unet()
    adapted.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))
    adapted.save_lora_adapter(tmp_path)
    pipeline = build_pipeline()
    pipeline.unet.load_lora_adapter(tmp_path)
    expected = generate(pipeline)
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert (generate(pipeline).images - expected.images).abs().mean() < 0.02
    pipeline.unet.disable_lora()
    assert (generate(pipeline).images - expected.images).abs().mean() > 0.02


def test_the_native_attention_backend_is_what_the_trunk_uses():
    unet = build_unet()
    sample = torch.randn(2, unet.total_channels, 16, 16)
    expected = copy.deepcopy(unet)(sample, 5).sample
    try:
        unet.set_attention_backend("native")
        assert torch.equal(unet(sample, 5).sample, expected)
    finally:
        unet.reset_attention_backend()
    with pytest.raises(ValueError, match="must be one of"):
        unet.set_attention_backend("mine")
