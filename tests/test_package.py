"""The package as a whole: imports run one way, checkpoints name the package, every file has its style."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from safetensors.torch import load_file, save_file

import mmdiff_pipelines
from mmdiff_pipelines import MultimodalDDPMScheduler, MultimodalMultitaskPipeline, MultimodalUNet2DModel

from .conftest import TRUNK, build_pipeline


PACKAGE = Path(mmdiff_pipelines.__file__).parent
# what each part may import of the others
LAYERS = {
    "configuration": set(),
    "loadable": set(),
    "process": set(),
    "modalities": set(),
    "schedulers": {"process", "configuration", "loadable"},
    "models": {"modalities", "configuration", "loadable"},
    "objective": {"modalities"},
    "pipelines": {"modalities", "models", "schedulers", "configuration"},
    "training": {"process", "modalities", "schedulers", "models", "objective", "pipelines"},
    "evaluation": {"training"},
}


def imported_parts(path):
    """The parts of the package that a file imports, by relative imports."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, (ast.ImportFrom, ast.Import)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any((name or "").startswith("mmdiff_pipelines") for name in names), path


@pytest.mark.parametrize("part", LAYERS)
def test_imports_run_one_way(part):
    files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).glob("*.py"))
    assert files
    for path in files:
        assert set(imported_parts(path)) - {part, "__version__"} <= LAYERS[part], path.name


def test_importing_the_package_needs_no_extra():
    script = (
        "import sys\n"
        "names = 'accelerate', 'datasets', 'peft', 'lpips', 'gradio', 'torchmetrics', 'torch_fidelity', 'sklearn'\n"
        "for name in names:\n"
        "    sys.modules[name] = None\n"
        "from mmdiff_pipelines import *\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_is_imported_when_it_is_first_used():
    script = (
        "import sys, mmdiff_pipelines\n"
        "heavy = 'diffusers.pipelines.pipeline_loading_utils'\n"
        "assert heavy not in sys.modules and 'MultimodalUNet2DModel' in dir(mmdiff_pipelines)\n"
        "mmdiff_pipelines.MultimodalDDPMScheduler\n"
        "assert 'mmdiff_pipelines' in sys.modules[heavy].LOADABLE_CLASSES\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    script = "import sys, diffusers.pipelines.pipeline_loading_utils as u, mmdiff_pipelines\nassert 'mmdiff_pipelines' in u.LOADABLE_CLASSES"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'MultimodalUnet'"):
        mmdiff_pipelines.MultimodalUnet  # noqa: B018


def test_everything_public_is_there_and_documented():
    for name in mmdiff_pipelines.__all__:
        assert getattr(mmdiff_pipelines, name).__doc__ or name == "MODALITY_TYPES", name


def test_checkpoints_name_the_package_not_a_module(tmp_path):
    """diffusers' table of loadable classes is what makes Hub repos load: see loadable.py."""
    assert "mmdiff_pipelines" in LOADABLE_CLASSES
    build_pipeline().save_pretrained(str(tmp_path))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["mmdiff_pipelines", "MultimodalUNet2DModel"]
    assert index["scheduler"] == ["mmdiff_pipelines", "MultimodalDDPMScheduler"]
    assert index["vae"] == [None, None]


def test_half_precision_variants_load(tmp_path):
    build_pipeline().save_pretrained(str(tmp_path), variant="fp16")
    assert (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").exists()
    MultimodalMultitaskPipeline.from_pretrained(str(tmp_path), variant="fp16")
    with pytest.raises((OSError, ValueError)):
        MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))


def test_components_make_another_pipeline():
    pipeline = build_pipeline()
    other = MultimodalMultitaskPipeline.from_pipe(pipeline)
    assert other.unet is pipeline.unet
    assert set(MultimodalMultitaskPipeline(**pipeline.components).components) == {"unet", "scheduler", "vae"}


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, damage):
    build_pipeline().save_pretrained(str(tmp_path))
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    if damage == "remove":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="diffusion_pytorch_model.safetensors"):
        MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "class_name"),
    [
        ("unet/config.json", "MultimodalUNet2DModel"),
        ("scheduler/scheduler_config.json", "MultimodalDDPMScheduler"),
        ("model_index.json", "MultimodalMultitaskPipeline"),
    ],
)
def test_what_a_newer_version_has_learnt_is_not_ignored(tmp_path, file, class_name):
    build_pipeline({}).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / file).read_text())
    value = ["mmdiff_pipelines", class_name] if file == "model_index.json" else 3
    (tmp_path / file).write_text(json.dumps(config | {"novelty": value}))
    with pytest.raises(ValueError, match=f"{class_name}.*novelty.*upgrade"):
        MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("trouble", ["missing keys", "unexpected keys"])
def test_weights_that_do_not_fit_are_refused(tmp_path, trouble):
    build_pipeline({}).save_pretrained(str(tmp_path))
    path = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.novelty"] = weights["conv_out.bias"].clone()
    if trouble == "missing keys":
        del weights["conv_out.bias"], weights["conv_out.novelty"]
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"unet' do not fit.*{trouble} conv_out"):
        MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))


def test_loading_can_tell_what_it_loaded(tmp_path):
    build_pipeline({}).unet.save_pretrained(tmp_path)
    unet, info = MultimodalUNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(unet, MultimodalUNet2DModel) and not info["missing_keys"]


def test_another_pipeline_is_refused_unless_its_components_are_replaced(tmp_path):
    DDPMPipeline(UNet2DModel(**TRUNK), DDPMScheduler()).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="DDPMPipeline.*UNet2DModel.*MultimodalUNet2DModel.from_unet"):
        MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))
    unet = MultimodalUNet2DModel.from_unet(UNet2DModel.from_pretrained(tmp_path, subfolder="unet"))
    scheduler = MultimodalDDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    loaded = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path), unet=unet, scheduler=scheduler)
    assert loaded.unet is unet


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_modality_loads_in_half_precision(tmp_path, dtype):
    build_pipeline().save_pretrained(str(tmp_path))
    unet = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path), dtype=dtype).unet
    tensors = [*unet.parameters(), *unet.buffers()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}


def test_components_of_diffusers_are_refused():
    pipeline = build_pipeline({})
    with pytest.raises(TypeError, match="`unet`.*UNet2DModel.*from_unet"):
        MultimodalMultitaskPipeline(UNet2DModel(**TRUNK), pipeline.scheduler)
    with pytest.raises(TypeError, match="DDPMScheduler.*MultimodalDDPMScheduler.from_config"):
        MultimodalMultitaskPipeline(pipeline.unet, DDPMScheduler())
