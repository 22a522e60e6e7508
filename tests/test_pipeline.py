"""The pipeline: any subset given, what users of diffusers expect, and clear errors."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMPipeline, DDIMScheduler, UNet2DModel

from mmdiff_pipelines import (
    MultimodalDDIMScheduler,
    MultimodalDDPMScheduler,
    MultimodalDPMSolverMultistepScheduler,
    MultimodalMultitaskPipeline,
    MultimodalUNet2DModel,
)

from .conftest import ANIMALS, MODALITIES, TRUNK, build_pipeline, tiny_vae


STEPS = 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipeline, seed=0, **arguments):
    arguments = {"num_inference_steps": STEPS, "generator": generator(seed), "output_type": "pt"} | arguments
    return pipeline(**arguments)


def test_everything_is_generated_jointly(pipeline):
    output = run(pipeline, batch_size=2, output_type="pil")
    assert [image.size for image in output.images] == [(16, 16)] * 2 and output.images[0].mode == "L"
    assert set(output.modalities) == {"label", "mask", "depth", "caption"}
    assert set(output.modalities["label"]) <= set(ANIMALS)
    assert output.modalities["mask"][0].mode == "P" and output.modalities["depth"][0].size == (16, 16)
    assert output.confidences["label"].shape == (2, 3) and output.confidences["mask"].shape == (2, 2, 16, 16)
    torch.testing.assert_close(output.confidences["label"].sum(1), torch.ones(2))


@pytest.mark.parametrize(("output_type", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), ("pil", list)])
def test_output_types(pipeline, output_type, kind):
    output = run(pipeline, batch_size=2, output_type=output_type)
    assert isinstance(output.images, kind)
    if output_type == "pt":
        assert output.images.shape == (2, 1, 16, 16) and output.modalities["label"].dtype == torch.long
    if output_type == "np":
        assert output.images.shape == (2, 16, 16, 1) and output.modalities["mask"].shape == (2, 16, 16)
    if kind is not list:
        assert 0 <= output.images.min() and output.images.max() <= 1


def test_latent_output_is_what_the_callback_sees(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"]))
        return tensors

    output = run(pipeline, output_type="latent", callback_on_step_end=callback)
    assert [step for step, _, _ in seen] == list(range(STEPS)) and pipeline.num_timesteps == STEPS
    assert output.images.shape == (1, pipeline.unet.total_channels, 16, 16)
    assert torch.equal(output.images, seen[-1][2])


def test_the_callback_can_replace_the_latents(pipeline):
    def callback(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else tensors

    output = run(pipeline, callback_on_step_end=callback)
    assert torch.equal(output.images, torch.full_like(output.images, 0.5))


@pytest.mark.parametrize("discrete", ["expected", "commit", "draw_first"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_one_row_is_the_same_alone_and_in_a_batch(pipeline, discrete, guidance_scale):
    arguments = {"discrete": discrete, "guidance_scale": guidance_scale, "commit_threshold": 0.35}
    batch = run(pipeline, batch_size=3, generator=[generator(seed) for seed in range(3)], **arguments)
    alone = run(pipeline, generator=[generator(1)], **arguments)
    torch.testing.assert_close(batch.images[1:2], alone.images, atol=1e-4, rtol=0)
    assert batch.modalities["label"][1] == alone.modalities["label"][0]


@pytest.mark.parametrize(
    "given",
    [
        {"label": "dog"},
        {"label": 2, "mask": np.eye(16, dtype=int)},
        {"depth": np.zeros((16, 16), np.uint8), "caption": np.ones(12)},
        {"hole": (np.zeros((16, 16), np.uint8), np.eye(16)), "label": "cat"},
        {"image": np.zeros((16, 16), np.uint8)},
        {"image": PIL.Image.new("L", (16, 16), 90), "label": "owl", "depth": torch.zeros(1, 16, 16)},
    ],
)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_what_is_given_comes_back_and_the_rest_is_generated(pipeline, given, guidance_scale):
    output = run(pipeline, given=given, guidance_scale=guidance_scale, batch_size=2)
    assert output.images.shape == (2, 1, 16, 16) and output.images.isfinite().all()
    for name, value in given.items():
        if name == "image":
            expected = pipeline._read_values("image", value)[0] / 2 + 0.5
            torch.testing.assert_close(output.images[0], expected)
        else:
            modality = pipeline.unet.modality_modules[name]
            expected = modality.to_values(modality.to_tensor([value]), "pt")
            torch.testing.assert_close(output.modalities[name][:1], expected)
            assert name not in output.confidences
    assert set(output.modalities) >= {"label", "mask", "depth", "caption"}


def test_perception_is_one_call_and_depends_on_the_image(pipeline):
    images = [PIL.Image.new("L", (16, 16), level) for level in (0, 255)]
    calls = []
    handle = pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    output = run(pipeline, given={"image": images}, outputs=["label", "mask"], num_inference_steps=50)
    handle.remove()
    assert len(calls) == 1 and set(output.modalities) == {"label", "mask"}
    assert not torch.allclose(output.confidences["label"][0], output.confidences["label"][1])


def test_known_pixels_are_kept_in_inpainting(pipeline):
    image = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    visible = np.zeros((16, 16), bool)
    visible[:, :9] = True
    output = run(pipeline, given={"hole": (image, visible)}, guidance_scale=2.0)
    torch.testing.assert_close(
        output.images[0, 0, :, :9], torch.from_numpy(image[:, :9] / 255).float(), atol=1e-5, rtol=0
    )
    assert not torch.equal(
        output.images[0, 0, :, 9:], run(pipeline, seed=1, given={"hole": (image, visible)}).images[0, 0, :, 9:]
    )


def test_several_samples_for_each_given_row(pipeline):
    output = run(pipeline, given={"label": ["cat", 2]}, batch_size=6, output_type="pil")
    assert output.modalities["label"] == ["cat"] * 3 + ["owl"] * 3
    assert len(output.images) == 6 and output.images[0].tobytes() != output.images[1].tobytes()
    output = run(pipeline, given={"label": [0, 1, 2], "depth": torch.zeros(1, 16, 16)})
    assert output.modalities["label"].tolist() == [0, 1, 2]
    assert run(pipeline, given={"label": torch.tensor([2, 0])}).modalities["label"].tolist() == [2, 0]


def test_guidance_moves_away_from_not_knowing(pipeline):
    """o_0 + s (o_1 - o_0), in z_0, by hand for one step."""
    denoised = {}
    for scale in (0.0, 1.0, 3.0):
        output = run(pipeline, given={"label": "dog"}, guidance_scale={"label": scale}, num_inference_steps=1,
                     output_type="latent")  # fmt: skip
        denoised[scale] = output.images[:, :1]
    scheduler = pipeline.scheduler
    assert scheduler.config.clip_sample
    unclipped = MultimodalDDPMScheduler.from_config(scheduler.config, clip_sample=False)
    pipeline.scheduler = unclipped
    free = {
        scale: run(
            pipeline, given={"label": "dog"}, guidance_scale=scale, num_inference_steps=1, output_type="latent"
        ).images
        for scale in (0.0, 1.0, 3.0)
    }
    torch.testing.assert_close(free[3.0], free[0.0] + 3 * (free[1.0] - free[0.0]), atol=2e-2, rtol=1e-3)
    assert not torch.allclose(free[0.0], free[1.0])


def test_scales_by_name_agree_with_one_scale(pipeline):
    given = {"label": "dog", "mask": np.eye(16, dtype=int)}
    together = run(pipeline, given=given, guidance_scale=2.5).images
    by_name = run(pipeline, given=given, guidance_scale={"label": 2.5, "mask": 2.5}).images
    torch.testing.assert_close(by_name, together)
    assert not torch.allclose(run(pipeline, given=given, guidance_scale={"label": 2.5}).images, together)
    assert run(pipeline, given=given, guidance_scale={"label": 2.5, "mask": 1.5}).images.isfinite().all()


def test_guidance_withholds_what_shared_space_carries(pipeline):
    """Where a shared modality is withheld, the network sees z_t without it: the unguided pass ignores its value."""
    outputs = []
    for level in (0, 255):
        given = {"depth": np.full((16, 16), level, np.uint8)}
        pipeline.scheduler = MultimodalDDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        outputs.append(run(pipeline, given=given, guidance_scale=0.0, num_inference_steps=1).images)
    torch.testing.assert_close(*outputs, atol=1e-3, rtol=0)


def test_drawn_labels_differ_between_rows_and_are_generated_for(pipeline):
    output = run(pipeline, batch_size=24, discrete="draw_first", num_inference_steps=2)
    assert len(set(output.modalities["label"].tolist())) > 1
    assert (
        run(pipeline, batch_size=24, discrete="draw_first", num_inference_steps=2, seed=1).modalities["label"].tolist()
        != output.modalities["label"].tolist()
    )


def test_commit_makes_sure_values_given(pipeline):
    head = pipeline.unet.modality_modules["label"].head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    states = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: states.append(kwargs["states"]["label"].clone()), with_kwargs=True
    )
    output = run(pipeline, batch_size=2, discrete="commit", commit_threshold=0.9)
    assert [state.tolist() for state in states] == [[0, 0], [1, 1], [1, 1]]
    assert output.modalities["label"].tolist() == [1, 1]


@pytest.mark.parametrize("cls", [MultimodalDDIMScheduler, MultimodalDPMSolverMultistepScheduler])
def test_schedulers_can_be_swapped(pipeline, cls):
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config)
    output = run(pipeline, given={"label": "dog"}, guidance_scale=2.0, batch_size=2)
    assert output.images.isfinite().all()
    again = run(pipeline, given={"label": "dog"}, guidance_scale=2.0, batch_size=2)
    assert torch.equal(output.images, again.images)


def test_eta_reaches_ddim(pipeline):
    pipeline.scheduler = MultimodalDDIMScheduler.from_config(pipeline.scheduler.config)
    assert not torch.equal(run(pipeline, eta=0.0).images, run(pipeline, eta=1.0).images)


def test_ddim_keeps_to_the_clipped_image(pipeline):
    """Without modalities and with z_0 clipped to 0, all that is left of z_t is its noise, which stays the same."""
    pipeline.scheduler = MultimodalDDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample_range=1e-6, timestep_spacing="trailing"
    )
    noisy = []

    def keep(pipe, step, timestep, tensors):
        noisy.append(tensors["latents"] / tensors["latents"].norm())
        return {}

    for clipped in (True, False):
        noisy.clear()
        run(pipeline, outputs=["image"], use_clipped_model_output=clipped, callback_on_step_end=keep)
        assert torch.allclose(noisy[0], noisy[-2], atol=1e-4) == clipped
    default, clipped = (run(pipeline, **arguments).images for arguments in ({}, {"use_clipped_model_output": True}))
    assert torch.equal(default, clipped)


def test_without_modalities_it_is_the_pipeline_of_diffusers():
    unet = UNet2DModel(**TRUNK).eval()
    theirs = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    ours = MultimodalMultitaskPipeline(MultimodalUNet2DModel.from_unet(unet), MultimodalDDIMScheduler())
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    arguments = {"batch_size": 2, "num_inference_steps": 5, "eta": 0.3, "output_type": "np"}
    for clipped in (False, True):
        arguments["use_clipped_model_output"] = clipped
        expected = theirs(generator=generator(), **arguments).images
        assert np.array_equal(ours(generator=generator(), **arguments).images, expected)


def test_latents_and_tuples(pipeline):
    latents = torch.randn(2, pipeline.unet.total_channels, 16, 16)
    first, second = (run(pipeline, batch_size=2, latents=latents) for _ in range(2))
    assert torch.equal(first.images, second.images)
    images, modalities, confidences = run(pipeline, batch_size=2, latents=latents, return_dict=False)
    assert torch.equal(images, first.images) and torch.equal(images, first[0])
    assert set(modalities) == set(first.modalities) and set(confidences) == set(first.confidences)


def test_numbers_of_numpy_and_no_callback_tensors(pipeline):
    numbers = {"batch_size": np.int64(2), "num_inference_steps": np.int64(2), "guidance_scale": np.float32(2.0)}
    output = run(pipeline, given={"label": "dog"}, callback_on_step_end_tensor_inputs=None, **numbers)
    assert len(output.images) == 2 and pipeline.num_timesteps == 2


def test_unwanted_modalities_are_absent(pipeline):
    output = run(pipeline, outputs=["label"])
    assert set(output.modalities) == {"label"} and set(output.confidences) == {"label"}


def test_saved_and_loaded_it_puts_out_the_same(pipeline, tmp_path):
    expected = run(pipeline, given={"label": "dog"}, guidance_scale=2.0)
    pipeline.save_pretrained(str(tmp_path))
    loaded = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    actual = run(loaded, given={"label": "dog"}, guidance_scale=2.0)
    # weights read from a file are aligned otherwise in memory, which may change the last bit of a convolution
    torch.testing.assert_close(actual.images, expected.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.modalities["caption"], expected.modalities["caption"], atol=1e-4, rtol=0)


def test_non_square_color_images():
    pipeline = build_pipeline(sample_size=(16, 24), in_channels=3, out_channels=3)
    output = run(pipeline, output_type="pil", given={"label": "dog"})
    assert output.images[0].size == (24, 16) and output.images[0].mode == "RGB"
    assert run(pipeline, given={"image": output.images}, outputs=["mask"]).modalities["mask"].shape == (1, 16, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipeline, dtype):
    pipeline.to(dtype)
    output = run(pipeline, given={"label": "dog"}, guidance_scale=2.0)
    assert output.images.dtype == dtype and output.images.isfinite().all()


@pytest.mark.parametrize("cls", [AutoencoderKL, AutoencoderTiny])
def test_the_anchor_can_be_the_latent_of_a_vae(cls, tmp_path):
    modalities = {name: MODALITIES[name] for name in ("label", "mask")}
    pipeline = build_pipeline(modalities, in_channels=4, out_channels=4)
    pipeline.register_modules(vae=tiny_vae(cls).eval())
    with pytest.raises(ValueError, match="clip_sample=True.*must be False"):
        run(pipeline)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, clip_sample=False)
    output = run(pipeline, output_type="pil", batch_size=2)
    assert output.images[0].size == (32, 32)
    perceived = run(pipeline, given={"image": output.images}, outputs=["label"])
    assert perceived.modalities["label"].shape == (2,) and perceived.images.shape == (2, 3, 32, 32)
    pipeline.save_pretrained(str(tmp_path))
    loaded = MultimodalMultitaskPipeline.from_pretrained(str(tmp_path))
    assert isinstance(loaded.vae, cls)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"given": {"lable": 1}}, ValueError, "`given`.*'lable'.*'label'"),
        ({"given": {"label": "cow"}}, ValueError, r"given\['label'\].*'cow'.*'owl'"),
        ({"given": {"label": 3}}, ValueError, r"given\['label'\].*3.*0 to 2"),
        ({"given": {"label": []}}, ValueError, r"given\['label'\].*empty"),
        ({"given": {"mask": np.zeros((8, 8), int)}}, ValueError, r"given\['mask'\].*\(8, 8\).*\(16, 16\)"),
        ({"given": {"image": np.zeros((16, 16))- 1}}, ValueError, r"given\['image'\].*-1.*\[0, 1\]"),
        ({"given": {"image": np.zeros((16, 16), int)}}, TypeError, r"given\['image'\].*int64.*uint8"),
        ({"given": {"label": [0, 1], "depth": torch.zeros(3, 1, 16, 16)}}, ValueError, "2 rows.*1 or 3"),
        ({"given": {"label": [0, 1]}, "batch_size": 3}, ValueError, "batch_size.*3.*2 given rows"),
        ({"batch_size": 0}, ValueError, "batch_size.*0.*positive"),
        ({"batch_size": 1.5}, ValueError, "batch_size.*1.5"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps.*0.*positive"),
        ({"num_inference_steps": 2000}, ValueError, "num_inference_steps.*2000.*1 to 1000"),
        ({"given": ["label"]}, TypeError, "given.*list.*dict"),
        ({"latents": np.zeros(3)}, TypeError, "latents.*ndarray.*tensor"),
        ({"commit_threshold": "high"}, ValueError, "commit_threshold.*'high'"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale.*nan"),
        ({"guidance_scale": {"lable": 2.0}}, ValueError, "guidance_scale.*'lable'.*'label'"),
        ({"guidance_scale": "2"}, ValueError, "guidance_scale.*'2'"),
        ({"outputs": ["labels"]}, ValueError, "outputs.*'labels'.*'label'"),
        ({"outputs": "label"}, TypeError, "outputs.*'label'.*list"),
        ({"output_type": "jpg"}, ValueError, "output_type.*'jpg'.*'pil'"),
        ({"discrete": "argmax"}, ValueError, "discrete.*'argmax'.*'commit'"),
        ({"commit_threshold": 1.2}, ValueError, "commit_threshold.*1.2"),
        ({"generator": [torch.Generator()], "batch_size": 2}, ValueError, "generator.*1 for a batch of 2"),
        ({"latents": torch.zeros(1, 1, 16, 16)}, ValueError, r"latents.*\(1, 1, 16, 16\).*accepted"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "'noise'.*'latents'"),
        ({"prompt": "a cat"}, TypeError, "prompt"),
    ],
)  # fmt: skip
def test_bad_input_is_named(pipeline, arguments, error, message):
    with pytest.raises(error, match=message):
        pipeline(**arguments)


def test_scheduler_and_model_must_fit():
    with pytest.raises(ValueError, match="'decay'.*'depth'.*shared"):
        build_pipeline(scheduler=MultimodalDDPMScheduler(aggregation="decay"))
    with pytest.raises(ValueError, match="modality_weights.*'caption'"):
        build_pipeline(scheduler=MultimodalDDPMScheduler(modality_weights={"label": 1.0}))
    noise_only = MultimodalDDPMScheduler(aggregation="none", modality_weights={"caption": 1.0})
    with pytest.raises(ValueError, match="'none'.*'caption'.*condition_on_noisy"):
        build_pipeline({"caption": MODALITIES["caption"]}, noise_only)
