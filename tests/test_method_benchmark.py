"""The controlled comparison: two steps of one arm of each kind, on a few pictures, and the tables of what is committed."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .test_prepare_fashion_mnist import IDX_DIR
from .test_prepare_tasks import load_script


ROOT = Path(__file__).parent.parent
JOINT_ROWS = {"image given", "leak", "joint", "mask given"}


@pytest.fixture(scope="module")
def scripts():
    """`run`, `rows`, `inference` and `report` by name."""
    folders = [str(ROOT / "benchmarks" / name) for name in ("method", "fashion_mnist")]
    sys.path[:0] = folders
    try:
        return {name: importlib.import_module(name) for name in ("run", "rows", "inference", "report")}
    finally:
        for folder in folders:
            sys.path.remove(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("method")
    load_script("examples/fashion_mnist/prepare.py").main(
        ["--idx_dir", str(IDX_DIR), "--output_dir", f"{folder}/data"]
    )
    return ["--data_dir", f"{folder}/data", "--runs", f"{folder}/runs", "--num_samples", "8"], folder


def run_arms(scripts, folders, monkeypatch, *arms):
    """Train two steps, score, and read the JSONs."""
    monkeypatch.setattr(scripts["run"], "BATCH", 8)
    monkeypatch.setattr(scripts["rows"], "BOUND_TIMESTEPS", 2)
    monkeypatch.setattr(scripts["rows"], "CHAIN_IMAGES", 8)
    options, folder = folders
    results = folder / "results"
    scripts["run"].main([*options, "--results", str(results), "--steps", "2", "--arms", *arms])
    return {arm: json.loads((results / f"{arm}-0.json").read_text()) for arm in arms}


@pytest.mark.parametrize("arm", ["own_decay_1", "shared_bridge_0.25", "double_duty"])
def test_joint_arms(scripts, folders, monkeypatch, arm):
    scores = run_arms(scripts, folders, monkeypatch, arm)[arm]["scores"]
    assert set(scores) > JOINT_ROWS and scores["joint"]["frechet_distance"] > 0
    if arm in scripts["rows"].MAIN_ARMS:
        assert 0 < scores["likelihood"]["bits_per_dim"] < 100
    else:
        assert "likelihood" not in scores


def test_the_paper_s_scaling(scripts, folders, monkeypatch):
    scores = run_arms(scripts, folders, monkeypatch, "paper_literal_50")["paper_literal_50"]["scores"]
    assert all(np.isfinite(value) for row in scores.values() for value in row.values())


@pytest.mark.parametrize("script", ["inference", "report"])
def test_scripts_start_by_themselves(script):
    command = [sys.executable, str(ROOT / "benchmarks/method" / f"{script}.py"), "--help"]
    assert "usage" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_specialists(scripts, folders, monkeypatch):
    arms = ["classifier", "ddpm", "class_conditional", "silhouette_unet", "mask_conditioned", "concatenated_tuned"]
    arms += ["class_conditional_min_snr", "mask_conditioned_min_snr", "mask_conditioned_dropout"]
    done = run_arms(scripts, folders, monkeypatch, *arms)
    assert all(record["training"]["images_seen"] == 16 for record in done.values())
    parameters = {arm: record["training"]["parameters"] for arm, record in done.items() if arm != "classifier"}
    assert max(parameters.values()) / min(parameters.values()) < 1.02
    assert done["mask_conditioned"]["scores"]["mask given"]["mask_iou"] > 0


def test_what_is_done_is_kept(scripts, folders, monkeypatch):
    before = run_arms(scripts, folders, monkeypatch, "recovery_only")
    assert set(before["recovery_only"]["scores"]) == {"image given"}
    monkeypatch.setattr(scripts["run"], "train", pytest.fail)
    assert run_arms(scripts, folders, monkeypatch, "recovery_only") == before


def test_only_the_rows_that_are_missing_are_computed(scripts, folders, monkeypatch):
    before = run_arms(scripts, folders, monkeypatch, "mask_conditioned_dropout")["mask_conditioned_dropout"]
    path = folders[1] / "results" / "mask_conditioned_dropout-0.json"
    partly = before | {"scores": {"mask given": {"frechet_distance": -1.0}}}
    path.write_text(json.dumps(partly))
    after = run_arms(scripts, folders, monkeypatch, "mask_conditioned_dropout")["mask_conditioned_dropout"]
    row = "mask given, guidance 1.5"
    assert after["scores"] == partly["scores"] | {row: before["scores"][row]}


def test_scores_of_other_settings_are_not_mixed(scripts, folders, monkeypatch):
    run_arms(scripts, folders, monkeypatch, "recovery_only")
    options, folder = folders
    with pytest.raises(ValueError, match="real_images-0.json.*'steps': 2.*'steps': 3.*--results"):
        scripts["run"].main([*options, "--results", f"{folder}/results", "--steps", "3", "--arms", "recovery_only"])


def test_verdicts(scripts):
    verdict = scripts["report"].verdict
    assert verdict([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], True, 0.0)[1] == "better"
    assert verdict([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], False, 0.0)[1] == "worse"
    assert verdict([0.88, 0.881, 0.882], [0.885, 0.886, 0.887], True, 0.01)[1] == "met"
    assert verdict([1.0, 2.0, 3.0], [1.0, 1.1, 1.2], False, 0.0)[1] == "undecided"
    assert verdict([1.0], [2.0], False, 0.0) == ("-1.000", "undecided, one seed")
    # t at 4 degrees of freedom is 2.776, the standard error sqrt(2 * 0.01 ** 2 / 3)
    assert verdict([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], True, 0.0)[0] == "+0.100 (+0.077 to +0.123)"


def test_noise_is_pooled_over_arms(scripts):
    noise = scripts["report"].noise
    assert noise([[0.1, 0.3], [0.5], [0.2, 0.2]], "mask_iou", 3) == "0.1000"  # sqrt((0.02 + 0) / 2)
    assert noise([[1.0, 3.0]], "frechet_distance", 2) == "71%"
    assert noise([[0.1], []], "mask_iou", 3) == ""


def test_distance_at_an_agreement_lies_between_two_scales(scripts):
    report = scripts["report"]
    rows = {"1": (2.0, 0.8), "2": (4.0, 0.9)}
    scores = {
        report.GIVEN.format(scale): {"frechet_distance": distance, "label_accuracy": kept}
        for scale, (distance, kept) in rows.items()
    }
    assert report.distance_at({"scores": scores}, report.GIVEN, 0.85) == pytest.approx(3.0)
    assert report.distance_at({"scores": scores}, report.GIVEN, 0.95) is None
    assert report.distance_at({"scores": {}}, report.GIVEN, 0.85) is None


def test_rows_of_the_inference_study(scripts, folders, monkeypatch):
    run_arms(scripts, folders, monkeypatch, "own_decay_1")
    options, folder = folders
    inference = scripts["inference"]
    args = inference.parse_args(options)
    judge = scripts["run"].load_judge(args.data_dir, 8)
    study = inference.Study("own_decay_1", inference.load_unet("own_decay_1", 0, args.runs), judge)
    rows = dict(study.rows())
    committed = json.loads((ROOT / "benchmarks/method/results/inference_12000/own_decay_1-0.json").read_text())
    assert set(committed["scores"]) <= set(rows)
    for row in (
        "deterministic, 20, expected, churn 0.5",
        "DDIM eta 0 unclipped, 10, draw_first",
        "drawn encodings",
        "label given, guidance 2 against JOINT",
    ):
        assert 0 <= rows[row]()["frechet_distance"]
    assert 0 <= rows["read at t = 20, 4 draws"]()["label_accuracy"] <= 1


def test_the_committed_tables_are_those_of_the_jsons(scripts, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py"])
    scripts["report"].main()
    assert capsys.readouterr().out == (ROOT / "benchmarks/method/RESULTS.md").read_text(encoding="utf-8")
