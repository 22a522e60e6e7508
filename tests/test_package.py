"""The package as a whole: imports run one way, checkpoints name the package, every file has its style."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DDPMScheduler
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

import mmdiff_pipelines
from mmdiff_pipelines import MultimodalMultitaskPipeline

from .conftest import build_pipeline


PACKAGE = Path(mmdiff_pipelines.__file__).parent
# what each part may import of the others
LAYERS = {
    "configuration": set(),
    "process": set(),
    "modalities": set(),
    "schedulers": {"process", "configuration"},
    "models": {"modalities", "configuration"},
    "objective": {"modalities"},
    "pipelines": {"modalities", "models", "schedulers"},
    "training": {"process", "modalities", "schedulers", "models", "objective", "pipelines"},
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
        "for name in ('accelerate', 'datasets', 'peft', 'lpips', 'gradio', 'torchmetrics', 'torch_fidelity', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import mmdiff_pipelines\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_everything_public_is_there_and_documented():
    for name in mmdiff_pipelines.__all__:
        assert getattr(mmdiff_pipelines, name).__doc__ or name == "MODALITY_TYPES", name


def test_checkpoints_name_the_package_not_a_module(tmp_path):
    """diffusers' table of loadable classes is what makes Hub repos load: see __init__.py."""
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
    with pytest.raises(OSError, match="diffusion_pytorch_model|checkpoint file|safetensors"):
        MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))


def test_a_scheduler_of_diffusers_is_refused():
    pipeline = build_pipeline({})
    with pytest.raises(TypeError, match="DDPMScheduler.*MultimodalDDPMScheduler.from_config"):
        MultimodalMultitaskPipeline(pipeline.unet, DDPMScheduler())
