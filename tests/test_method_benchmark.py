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
    """`run`, `inference` and `report` by name."""
    folders = [str(ROOT / "benchmarks" / name) for name in ("method", "fashion_mnist")]
    sys.path[:0] = folders
    try:
        return {name: importlib.import_module(name) for name in ("run", "inference", "report")}
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
    monkeypatch.setattr(scripts["run"], "BOUND_TIMESTEPS", 2)
    monkeypatch.setattr(scripts["run"], "CHAIN_IMAGES", 8)
    options, folder = folders
    results = folder / "results"
    scripts["run"].main([*options, "--results", str(results), "--steps", "2", "--arms", *arms])
    return {arm: json.loads((results / f"{arm}-0.json").read_text()) for arm in arms}


@pytest.mark.parametrize("arm", ["own_decay_1", "shared_bridge_0.25", "double_duty"])
def test_joint_arms(scripts, folders, monkeypatch, arm):
    scores = run_arms(scripts, folders, monkeypatch, arm)[arm]["scores"]
    assert set(scores) > JOINT_ROWS and scores["joint"]["frechet_distance"] > 0
    if arm in scripts["run"].MAIN_ARMS:
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
    done = run_arms(scripts, folders, monkeypatch, *arms)
    assert all(record["training"]["images_seen"] == 16 for record in done.values())
    parameters = {arm: record["training"]["parameters"] for arm, record in done.items() if arm != "classifier"}
    assert max(parameters.values()) / min(parameters.values()) < 1.02
    assert done["mask_conditioned"]["scores"]["mask given"]["mask_iou"] > 0


def test_what_is_done_is_kept(scripts, folders, monkeypatch):
    before = run_arms(scripts, folders, monkeypatch, "recovery_only")
    assert set(before["recovery_only"]["scores"]) == {"image given"}
    monkeypatch.setattr(scripts["run"], "train", None)
    assert run_arms(scripts, folders, monkeypatch, "recovery_only") == before


def test_rows_of_the_inference_study(scripts, folders, monkeypatch):
    run_arms(scripts, folders, monkeypatch, "own_decay_1")
    options, folder = folders
    inference = scripts["inference"]
    args = inference.parse_args(options)
    judge = scripts["run"].load_judge(args.data_dir, 8)
    study = inference.Study("own_decay_1", inference.load_unet("own_decay_1", 0, args.runs), judge)
    rows = dict(study.rows())
    for row in ("deterministic, 20, expected, churn 0.5", "drawn encodings", "label given, guidance 2 against JOINT"):
        assert 0 <= rows[row]()["frechet_distance"]
    assert 0 <= rows["read at t = 20, 4 draws"]()["label_accuracy"] <= 1


def test_the_committed_tables_are_those_of_the_jsons(scripts, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py"])
    scripts["report"].main()
    assert capsys.readouterr().out == (ROOT / "benchmarks/method/RESULTS.md").read_text(encoding="utf-8")
