"""The benchmark of the paper's four tasks, two steps of everything, on a few made pictures."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from .conftest import MODALITIES, build_pipeline
from .test_embeddings import save_text_encoder, save_vision_encoder
from .test_evaluation import alexnet
from .test_prepare_fashion_mnist import IDX_DIR
from .test_prepare_tasks import camvid_arrays, cifar10_arrays, load_script


ROOT = Path(__file__).parent.parent
BASELINES = [
    "ddpm",
    "ddpm_epsilon",
    "mask_conditioned",
    "reconstruction_mse",
    "reconstruction_lpips",
    "class_conditional",
    "classifier",
    "embedding_regression",
    "fashion_ddpm",
    "fashion_classifier",
]
SCENES = ["segmenter_judge", "segmenter", "mask_to_image", "concatenated"]


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import paper_tasks

        return paper_tasks
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Tiny data, and tiny random networks that judge, as command-line options."""
    folder = tmp_path_factory.mktemp("paper")
    torch.manual_seed(0)
    (folder / "vision").mkdir()
    save_vision_encoder(folder / "vision")
    save_text_encoder(folder / "text")
    save_file(alexnet(), folder / "lpips.safetensors")
    np.savez(folder / "cifar10.npz", **cifar10_arrays())
    np.savez(folder / "camvid.npz", **camvid_arrays(train=10))

    def prepare(name, *arguments):
        load_script(f"examples/{name}/prepare.py").main([*arguments, "--output_dir", f"{folder}/data/{name}"])

    encoder = ["--encoder", f"{folder}/vision", "--embedding_dim", "4"]
    prepare("cifar10", "--npz", f"{folder}/cifar10.npz", *encoder)
    prepare("camvid", "--npz", f"{folder}/camvid.npz")
    prepare("fashion_mnist", "--idx_dir", str(IDX_DIR), "--captions")
    return [
        "--data_dir", f"{folder}/data", "--runs", f"{folder}/runs", "--features", f"{folder}/vision",
        "--text_encoder", f"{folder}/text", "--lpips_weights", f"{folder}/lpips.safetensors", "--quick",
    ]  # fmt: skip


def runs_of(options):
    return Path(options[options.index("--runs") + 1])


def read_scores(folder):
    return {path.stem: json.loads(path.read_text())["scores"] for path in sorted(folder.rglob("*.json"))}


def train_joint(benchmark, options, name):
    """The README's line, in a process of its own that spares the launcher."""
    args = benchmark.parse_args(options)
    command = benchmark.training.joint_command(benchmark.make_arms()[name], name, 0, args)
    script = next(i for i, word in enumerate(command) if word.endswith("train_multimodal.py"))
    more = ["--report_to", "none", "--cache_dir", str(args.runs / "cache")]
    if not (args.runs / f"{name}-0" / "model_index.json").exists():
        subprocess.run([sys.executable, *command[script:], *more], check=True, cwd=ROOT)


def test_baselines_are_trained_and_scored_and_the_scores_are_the_same_twice(benchmark, options, tmp_path):
    arguments = [*options, "--arms", *BASELINES, *SCENES]
    benchmark.main([*arguments, "--train", "--output_dir", str(tmp_path / "one")])
    first = read_scores(tmp_path / "one")
    benchmark.main([*arguments, "--output_dir", str(tmp_path / "two")])
    assert first and read_scores(tmp_path / "two") == first
    assert set(first["mask_conditioned-0"]) == {
        f"{how}, {level} hidden, {protocol}"
        for how in ("one call", "2 steps", "3 steps", "2 steps, mean of 4")
        for level in ("10%", "25%", "50%", "75%")
        for protocol in (("pasted",) if "3" in how or "mean" in how else ("raw", "pasted"))
    }
    assert set(first["concatenated-0"]["joint"]) >= {"fd", "mask_agreement", "memorisation"}
    assert set(first["embedding_regression-0"]["image given"]) == {"cosine", "cosine_shuffled", "probe_accuracy"}
    generating = {
        "ddpm",
        "ddpm_epsilon",
        "mask_to_image",
        "concatenated",
        "class_conditional",
        "fashion_ddpm",
    }
    assert {path.stem for path in (tmp_path / "one/pictures").iterdir()} == generating
    private = {path.name for path in (runs_of(options) / "pictures").iterdir()}
    assert private >= {"concatenated-0, nearest training scenes.png", "reconstruction_mse-0, 50% hidden.png"}
    text = (tmp_path / "one" / "RESULTS.md").read_text()
    assert "| ddpm | RePaint, 75% hidden, pasted | 1 |" in text and "parameters" in text


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("cifar10-masked", "masked"),
        ("cifar10-label", "label"),
        ("camvid-segmentation", "segmentation"),
        ("cifar10-embedding", "representation"),
        ("fashion-mnist-caption", "representation"),
    ],
)
def test_joint_models_are_trained_by_the_lines_of_the_readmes(benchmark, options, tmp_path, name, task):
    train_joint(benchmark, options, name)
    benchmark.main([*options, "--tasks", task, "--arms", name])
    scores = read_scores(runs_of(options) / "results" / task)[f"{name}-0"]
    assert len(scores) >= 4 and all(np.isfinite(value) for row in scores.values() for value in row.values())
    data = benchmark.make_arms()[name].data
    evaluation = benchmark.cards.evaluation(name, data, runs_of(options))
    lines = [line.name for line in benchmark.cards.LINES[name] if "20 steps" not in line.how]
    assert [metric["name"] for metric in evaluation["metrics"]] == lines  # two steps have no rows of 20
    assert evaluation["method"].startswith("Seed 0; 8 generated samples a row")
    card = Path(shutil.copytree(runs_of(options) / f"{name}-0", tmp_path / name))
    benchmark.cards.write(card, data, runs_of(options))
    assert "license: apache-2.0" in (card / "README.md").read_text() and (card / "samples/samples.png").exists()


def test_shipped_checkpoints_are_scored(benchmark, options, tmp_path):
    names = ["cifar10-label", "camvid-segmentation"]
    benchmark.main([*options, "--cards", "--arms", *names, "--output_dir", str(tmp_path)])
    assert set(read_scores(tmp_path)) == {f"{name}-0" for name in names}
    assert "| camvid-segmentation | joint | 1 |" in (tmp_path / "RESULTS.md").read_text()


def test_the_rows_beside_ours_on_cards_are_those_that_arms_have(benchmark, options, tmp_path):
    """Of two steps, not of 20."""
    benchmark.main([*options, "--arms", *BASELINES, *SCENES, "--train", "--output_dir", str(tmp_path)])
    scores = {path.stem[:-2]: json.loads(path.read_text())["scores"] for path in tmp_path.rglob("*.json")}
    lines = [line for lines in benchmark.cards.LINES.values() for line in lines]
    places = [place for line in lines for beside in (line.baselines, line.references) for place in beside.values()]
    for arm, how, score in places:
        if arm in scores and "20 steps" not in how:
            assert score in scores[arm][how]
    joint = {"cifar10-label-heads", "cifar10-label", "cifar10-embedding", "fashion-mnist-caption"}
    assert {arm for arm, *_ in places} - scores.keys() == joint


def test_the_gradient_of_a_task_is_as_heavy_as_its_weight(benchmark, options, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import task_weights

    train_joint(benchmark, options, "camvid-segmentation")
    heavy = Path(shutil.copytree(runs_of(options) / "camvid-segmentation-0", tmp_path / "heavy"))
    training = (heavy / "training.json").read_text()
    assert "mask=0.03" in training
    (heavy / "training.json").write_text(training.replace("mask=0.03", "mask=0.3"))
    folders = [str(runs_of(options) / "camvid-segmentation-0"), str(heavy)]
    data_dir = Path(options[options.index("--data_dir") + 1]) / "camvid"
    task_weights.main([*folders, "--data_dir", str(data_dir), "--num_images", "3"])
    light, heavy = (
        [cell.strip() for cell in line.split("|")[2:-1]] for line in capsys.readouterr().out.splitlines()[2:]
    )
    assert (light[0], heavy[0]) == ("0.03", "0.3") and light[2:] == heavy[2:]
    assert float(heavy[1]) == pytest.approx(10 * float(light[1]), rel=0.2)
    with pytest.raises(SystemExit):
        task_weights.main([str(tmp_path), "--data_dir", str(data_dir)])
    assert "no training.json" in capsys.readouterr().err


def test_a_given_caption_is_compared_with_a_wrong_one(benchmark, options, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import task_weights

    pipe = build_pipeline({"caption": MODALITIES["caption"]})
    data = {"image": torch.randint(256, (6, 1, 16, 16), dtype=torch.uint8), "caption": torch.randn(6, 12)}
    given, wrong, joint = task_weights.held_out_losses(pipe, "caption", data)[-4:-1]
    assert len({given, wrong, joint}) == 3
    given, wrong, _ = task_weights.held_out_losses(pipe, "caption", data | {"caption": torch.ones(6, 12)})[-4:-1]
    assert given == wrong

    train_joint(benchmark, options, "fashion-mnist-caption")
    run = runs_of(options) / "fashion-mnist-caption-0"
    data_dir = Path(options[options.index("--data_dir") + 1])
    task_weights.main([str(run), "--data_dir", str(data_dir / "fashion_mnist"), "--num_images", "4"])
    header, _, row = ([c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines())
    assert len(header) == len(row) and row[0] == run.name
    with pytest.raises(ValueError, match="accepted for 'caption'"):
        task_weights.main([str(run), "--data_dir", str(data_dir / "cifar10"), "--num_images", "4"])


def test_fewer_rows_than_a_batch_are_refused(benchmark):
    with pytest.raises(ValueError, match="`batch_size` is 8; accepted: at most 7"):
        next(sys.modules["baselines"].batch_indices(7, batch_size=8, seed=0))


def test_rows_of_other_weights_are_not_mixed(benchmark, options):
    arguments = [*options, "--arms", "fashion_classifier", "--tasks", "representation"]
    benchmark.main([*arguments, "--train"])
    path = runs_of(options) / "fashion_classifier-0" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    with pytest.raises(ValueError, match="fashion_classifier-0.json has scores of .*weights.*move it away"):
        benchmark.main(arguments)


def test_a_table_is_of_one_number_of_samples(benchmark, tmp_path):
    for arm, num_samples in (("cifar10-label", 1000), ("ddpm", 200)):
        record = {
            "training": {"images_seen": 1, "minutes": 1, "parameters": 1},
            "settings": {"num_samples": num_samples, "features": "efficientnet_lite0", "feature_weights": "1"},
            "scores": {"joint": {"fd": 1.0}},
        }
        (tmp_path / "results/label").mkdir(exist_ok=True, parents=True)
        (tmp_path / "results/label" / f"{arm}-0.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="ddpm has been scored with .*200.* and cifar10-label with .*1000"):
        benchmark.report(tmp_path)
    (tmp_path / "results/label/ddpm-0.json").rename(tmp_path / "results/label/ddpm_of_old-0.json")
    with pytest.raises(ValueError, match="scores of ddpm_of_old, which is no arm; move ddpm_of_old-.*away"):
        benchmark.report(tmp_path)


def test_a_model_that_was_never_shown_nothing_is_not_asked_for_it(benchmark):
    arms = benchmark.make_arms()
    assert [name for name, arm in arms.items() if not getattr(arm, "generates", True)] == ["cifar10-masked-always"]


def test_a_card_does_not_show_quick_scores(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--quick", "--renew_cards"])
    assert "leave --renew_cards out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--num_samples", "0"])
    assert "--num_samples is 0; accepted: 4 or more" in capsys.readouterr().err


def test_what_is_not_there_is_said(benchmark, options, tmp_path, capsys):
    elsewhere = [*options, "--runs", str(tmp_path / "runs")]
    benchmark.main([*elsewhere, "--arms", "classifier"])
    assert "classifier, seed 0: not trained" in capsys.readouterr().out
    nothing = [*elsewhere, "--data_dir", str(tmp_path / "nothing")]
    with pytest.raises(FileNotFoundError, match="no prepared data in .*nothing.*prepare.py"):
        benchmark.main([*nothing, "--arms", "ddpm", "--train"])
    with pytest.raises(ValueError, match="nothing/cifar10 has no embeddings; prepare it with --encoder"):
        benchmark.Benchmark(benchmark.parse_args(nothing)).embed()


def test_sizes_that_do_not_fit_are_said(benchmark):
    unet = argparse.Namespace(config=argparse.Namespace(sample_size=[48, 64], in_channels=3))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*checkpoint makes \(3, 48, 64\)"):
        benchmark.masked.check_size(argparse.Namespace(unet=unet), torch.zeros(1, 3, 32, 32))


def test_every_joint_arm_has_its_line(benchmark):
    for name, arm in benchmark.make_arms().items():
        if isinstance(arm, benchmark.Joint):
            assert "--resume_from_checkpoint" in benchmark.training.launch_line(arm, name)
    arm = benchmark.make_arms()["cifar10-label-heads"]
    command = benchmark.training.joint_command(arm, "cifar10-label-heads", 0, benchmark.parse_args([]))
    assert command[command.index("--modality") + 1] == "label:categorical:space=shared,aggregation=none"


def test_held_out_images_are_not_sorted_by_class(benchmark, options):
    judge = benchmark.Benchmark(benchmark.parse_args(options)).judge("cifar10")
    assert sorted(judge.test["label"].tolist()) == list(range(10)) != judge.test["label"].tolist()
