"""Checkpoints that carry their code: generated from the package's sources, and equal to it where it is not installed."""

import ast
import builtins
import dis
import importlib
import inspect
import json
import os
import subprocess
import sys
import types

import pytest
import torch
from diffusers import AutoencoderTiny, DDPMPipeline, DDPMScheduler, DiffusionPipeline

from mmdiff_pipelines import (
    MODALITY_TYPES,
    MultimodalDDIMScheduler,
    MultimodalDDPMScheduler,
    MultimodalDPMSolverMultistepScheduler,
    MultimodalMultitaskPipeline,
    MultimodalUNet2DModel,
    __version__,
    export_standalone,
    push_standalone,
)
from mmdiff_pipelines.pipelines.standalone import standalone_source

from .conftest import MODALITIES, build_pipeline
from .test_custom_modality import AngleModality


VERSION = __version__.replace(".", "_")
SCHEDULERS = [MultimodalDDPMScheduler, MultimodalDDIMScheduler, MultimodalDPMSolverMultistepScheduler]
CLASSES = [MultimodalMultitaskPipeline, MultimodalUNet2DModel, *SCHEDULERS]
REQUIREMENTS = {"torch", "numpy", "PIL", "diffusers", "huggingface_hub"} | set(sys.stdlib_module_names)
OWN = {name: MODALITIES[name] for name in ("label", "mask", "hole", "caption")}
SHARED = OWN | {
    name: OWN[name] | {"space": "shared"} | ({"condition_on_noisy": False} if name == "caption" else {})
    for name in ("label", "mask", "caption")
}


def sample_in_all_ways(pipeline):
    """Joint sampling, a label given with guidance, perception and inpainting: name -> images, modalities, confidences.

    Its source runs without the package too.
    """
    pipeline.set_progress_bar_config(disable=True)
    image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1))
    calls = {
        "joint": {},
        "drawn first": {"discrete": "draw_first"},
        "committed": {"discrete": "commit", "commit_threshold": 0.4},
        "guided": {"given": {"label": ["owl", 0]}, "guidance_scale": 3.0},
        "perceived": {"given": {"image": image}},
        "inpainted": {"given": {"hole": (image, torch.arange(256).view(16, 16) % 3 > 0)}},
    }
    return {
        name: pipeline(
            **call,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            return_dict=False,
        )
        for name, call in calls.items()
    }


SCRIPT = f"""
import sys

sys.modules["mmdiff_pipelines"] = None  # as if it were not installed
try:
    import mmdiff_pipelines
except ImportError:
    pass
else:
    raise AssertionError("the package can be imported")

import torch
from diffusers import DiffusionPipeline

{inspect.getsource(sample_in_all_ways)}

own, shared, resaved, outputs = sys.argv[1:]
first = DiffusionPipeline.from_pretrained(own, trust_remote_code=True)
results = {{"own": sample_in_all_ways(first)}}
second = DiffusionPipeline.from_pretrained(shared, trust_remote_code=True)
results["shared"] = sample_in_all_ways(second)
again = DiffusionPipeline.from_pretrained(own, trust_remote_code=True)
results["own, loaded again"] = sample_in_all_ways(again)
results["own, after others were loaded"] = sample_in_all_ways(first)
torch.save(results, outputs)
again.save_pretrained(resaved)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Two pipelines, their standalone folders, and what came of them where the package is missing."""
    root = tmp_path_factory.mktemp("standalone")
    shared = build_pipeline(SHARED)
    shared.scheduler = MultimodalDPMSolverMultistepScheduler.from_config(shared.scheduler.config)
    pipelines = {"own": build_pipeline(OWN), "shared": shared}
    for name, pipeline in pipelines.items():
        export_standalone(pipeline, root / name)
        # the package's pipeline is loaded too: sums may depend on how loaded weights are aligned in memory
        pipeline.save_pretrained(str(root / "package" / name))
        pipelines[name] = MultimodalMultitaskPipeline.from_pretrained(str(root / "package" / name))
    environment = os.environ | {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(root / name) for name in ("own", "shared", "resaved", "outputs.pt")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr
    outputs = torch.load(root / "outputs.pt")
    return types.SimpleNamespace(root=root, pipelines=pipelines, outputs=outputs, stderr=result.stderr)


@pytest.mark.parametrize("case", ["own", "shared", "own, loaded again", "own, after others were loaded"])
def test_outputs_equal_those_of_the_package_to_the_last_bit(loaded, case):
    expected = sample_in_all_ways(loaded.pipelines[case.split(",")[0]])
    assert set(expected["joint"][1]) == {"label", "mask", "caption"}
    torch.testing.assert_close(loaded.outputs[case], expected, rtol=0, atol=0)


def test_it_loads_without_a_warning_about_types(loaded):
    assert "`trust_remote_code` is enabled" in loaded.stderr or "Loading pipeline components" in loaded.stderr
    assert "Expected types" not in loaded.stderr


def test_the_index_names_the_files_that_travel_along(loaded):
    index = json.loads((loaded.root / "shared/model_index.json").read_text())
    assert index["_class_name"] == [f"pipeline_multimodal_multitask_{VERSION}", "MultimodalMultitaskPipeline"]
    assert index["unet"] == [f"unet_multimodal_{VERSION}", "MultimodalUNet2DModel"]
    assert index["scheduler"][1] == "MultimodalDPMSolverMultistepScheduler"
    assert index["vae"] == [None, None]
    for name in ("unet", "scheduler"):
        assert (loaded.root / "shared" / name / f"{index[name][0]}.py").exists()


def test_exporting_again_gives_the_same_code(loaded, tmp_path):
    export_standalone(loaded.pipelines["own"], tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py"))
    assert len(files) == 3
    for path in files:
        assert (tmp_path / path).read_bytes() == (loaded.root / "own" / path).read_bytes(), path


def test_without_trust_the_error_says_what_to_pass(loaded):
    with pytest.raises(ValueError, match="(?s)custom code in pipeline_multimodal.*`trust_remote_code=True`"):
        DiffusionPipeline.from_pretrained(str(loaded.root / "own"))


def test_saving_a_loaded_pipeline_leaves_the_code_behind(loaded):
    assert not list((loaded.root / "resaved").rglob("*.py"))
    with pytest.raises((ValueError, AttributeError)):
        DiffusionPipeline.from_pretrained(str(loaded.root / "resaved"), trust_remote_code=True)
    unet = MultimodalUNet2DModel.from_pretrained(str(loaded.root / "resaved/unet"))
    torch.testing.assert_close(
        dict(unet.state_dict()), dict(loaded.pipelines["own"].unet.state_dict()), rtol=0, atol=0
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_has_the_very_code_of_the_package(cls):
    def definition(source):
        return next(node for node in ast.parse(source).body if getattr(node, "name", None) == cls.__name__)

    source = standalone_source(cls)
    package_source = inspect.getsource(importlib.import_module(cls.__module__))
    assert ast.dump(definition(source)) == ast.dump(definition(package_source))
    assert source.startswith(f"# Generated by mmdiff_pipelines {__version__} ")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_imports_only_what_users_of_diffusers_have(cls):
    for node in ast.walk(ast.parse(standalone_source(cls))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level and node.module.split(".")[0] in REQUIREMENTS
        elif isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= REQUIREMENTS


def code_objects(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_defines_each_name_it_uses_once(cls, monkeypatch):
    source = standalone_source(cls)
    defined = [node.name for node in ast.parse(source).body if hasattr(node, "name")]
    assert len(defined) == len(set(defined))
    module = types.ModuleType("standalone_code")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = compile(source, module.__name__, "exec")
    exec(code, vars(module))
    for inner in code_objects(code):
        for instruction in dis.get_instructions(inner):
            if instruction.opname == "LOAD_GLOBAL":
                assert hasattr(module, instruction.argval) or hasattr(builtins, instruction.argval)


def test_a_vae_of_diffusers_keeps_its_entry(tmp_path):
    pipeline = build_pipeline(OWN)
    tiny = {"encoder_block_out_channels": (4, 4), "num_encoder_blocks": (1, 1)}
    tiny |= {"decoder_block_out_channels": (4, 4), "num_decoder_blocks": (1, 1)}
    pipeline.register_modules(vae=AutoencoderTiny(latent_channels=1, **tiny))
    export_standalone(pipeline, tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderTiny"]


def test_code_from_elsewhere_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(MODALITY_TYPES, "angle", AngleModality)
    with pytest.raises(ValueError, match="modality 'turn' of the class AngleModality.*accepted: modalities of mmdiff"):
        export_standalone(build_pipeline({"turn": {"type": "angle"}}), tmp_path / "turn")

    class OwnScheduler(MultimodalDDPMScheduler):
        pass

    with pytest.raises(ValueError, match="component 'scheduler' of the class .*OwnScheduler; accepted"):
        export_standalone(build_pipeline({}, OwnScheduler()), tmp_path / "scheduler")
    with pytest.raises(ValueError, match="DDPMPipeline; accepted: a pipeline of mmdiff_pipelines"):
        export_standalone(DDPMPipeline(build_pipeline({}).unet, DDPMScheduler()), tmp_path / "ddpm")
    assert not list(tmp_path.iterdir())


def test_main_is_left_to_users_of_the_package():
    with pytest.raises(ValueError, match="`branch` is 'main'.*'standalone'"):
        push_standalone(build_pipeline({}), "user/model", branch="main")
