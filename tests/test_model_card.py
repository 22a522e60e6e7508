"""The card of a pipeline is made of the files beside it."""

import json
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from huggingface_hub import ModelCard

from mmdiff_pipelines import MultimodalMultitaskPipeline
from mmdiff_pipelines.pipelines.model_card import MARK, build_card, main, write_card
from mmdiff_pipelines.pipelines.sharing import copy_records

from .conftest import build_pipeline


CARDS = sorted(path for path in (Path(__file__).parents[1] / "model_cards").iterdir() if path.is_dir())
TRAINING = {
    "repo_id": "user/animals", "license": "apache-2.0", "data": "user/pets, split 'train'", "dataset": "user/pets",
    "data_license": "cc-by-4.0", "initial_weights": "user/ddpm", "base_model": "user/ddpm", "rows": 60000,
    "parameters": 1234567, "steps": 4000, "batch_size": 64, "images_seen": 256000, "minutes": 29.25,
    "device": "1 x cpu", "precision": "bf16", "ema_decay": 0.999, "command": "accelerate launch --cpu train.py",
    "losses": {"image": 0.0324, "label": 0.3882}, "losses_over": 100,
}  # fmt: skip
DISTANCE = {
    "name": "Frechet distance", "type": "frechet_distance", "value": 3.2, "higher_is_better": False,
    "baselines": {"plain DDPM": 3.5, "guided": 3.25}, "note": "of 1,000 samples",
}  # fmt: skip
ACCURACY = {
    "name": "label of an image", "type": "accuracy", "value": 0.88, "higher_is_better": True,
    "baselines": {"classifier": 0.913}, "references": {"real labels": 1.0}, "task": "image-classification",
}  # fmt: skip
EVALUATION = {
    "dataset": {"name": "Pets", "type": "user/pets", "split": "test"}, "command": "python evaluate.py",
    "method": "Samples of 50 ancestral steps.", "metrics": [DISTANCE, ACCURACY], "limits": ["No owls at night."],
    "data": "Pictures of pets, CC BY 4.0.",
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "animals"
    build_pipeline().save_pretrained(str(folder))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A saved pipeline with both records and a picture."""
    shutil.copytree(saved, tmp_path / "animals")
    write_record(tmp_path / "animals", training=TRAINING, evaluation=EVALUATION)
    draw(tmp_path / "animals" / "samples" / "step-000002.png")
    return tmp_path / "animals"


def write_record(folder, **records):
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


def draw(path):
    path.parent.mkdir(exist_ok=True)
    PIL.Image.new("L", (2, 2)).save(path)


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_the_committed_cards_are_made_of_what_lies_beside_them(folder):
    """To mend: python -m mmdiff_pipelines.pipelines.model_card <the folder>."""
    assert (folder / "training.json").exists()
    assert (folder / "README.md").read_text(encoding="utf-8") == build_card(folder)


def test_there_are_committed_cards():
    assert "fashion-mnist-joint" in [path.name for path in CARDS]


def test_the_hub_reads_the_metadata(folder):
    card = ModelCard(build_card(folder))
    data = card.data.to_dict()
    assert data["library_name"] == "mmdiff_pipelines"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["user/pets"]
    assert data["base_model"] == "user/ddpm"
    assert {"multimodal-diffusion", "label", "mask", "depth", "hole", "caption"} < set(data["tags"])
    index = data["model-index"][0]
    assert index["name"] == "animals"
    results = {result["task"]["type"]: result for result in index["results"]}
    assert results["unconditional-image-generation"]["metrics"] == [
        {"type": "frechet_distance", "value": 3.2, "name": "Frechet distance"}
    ]
    assert results["image-classification"]["metrics"][0]["value"] == 0.88
    assert results["image-classification"]["dataset"] == {"name": "Pets", "type": "user/pets", "split": "test"}
    assert [result.metric_value for result in card.data.eval_results] == [3.2, 0.88]


def test_the_card_says_what_was_trained_and_measured(folder):
    text = build_card(folder)
    for part in (
        "| label | categorical | num_classes=3: cat, dog, owl |", "| image | pixels | 1 x 16 x 16",
        "| Fine-tuned from | user/ddpm |", "| Parameters | 1,234,567 |", "| Steps | 4,000 |", "| label | 0.3882 |",
        "```bash\naccelerate launch --cpu train.py\n```", "```bash\npython evaluate.py\n```",
        "Samples of 50 ancestral steps.", "- Frechet distance: of 1,000 samples", "- No owls at night.",
        "The weights: apache-2.0. The data: cc-by-4.0.", "Pictures of pets, CC BY 4.0.",
        "![Samples](samples/step-000002.png)", 'filled = pipe(given={"hole": (output.images[0], visible)}).images',
    ):  # fmt: skip
        assert part in text, part


def test_the_scores_stand_beside_those_of_the_baselines(folder):
    """One table; the best of a row in bold, also where it is a baseline's, and never where it is a reference."""
    lines = build_card(folder).splitlines()
    start = lines.index("|  | This model | plain DDPM | guided | classifier | real labels |")
    assert lines[start + 2] == "| Frechet distance ↓ | **3.2** | 3.5 | 3.25 | – | – |"
    assert lines[start + 3] == "| label of an image ↑ | 0.88 | – | – | **0.913** | 1 |"


def test_the_same_folder_gives_the_same_text(folder, tmp_path):
    text = build_card(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert build_card(tmp_path / "elsewhere") == text
    write_card(folder)
    assert (folder / "README.md").read_bytes() == text.encode() and build_card(folder) == text
    assert str(ModelCard(text)) == text


def test_what_is_not_there_is_said(saved):
    text = build_card(saved)
    for part in ("No record of it lies", "Nothing was measured", "None were written down", "The weights: not stated"):
        assert part in text, part
    assert "model-index" not in text and "![" not in text
    assert build_card(saved, "user/other").count("user/other") == 1


def test_the_lines_of_the_card_run(folder):
    text = build_card(folder, repo_id=str(folder))
    assert "standalone" not in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {}
    exec(re.sub("(batch_size|guidance_scale)=", r"num_inference_steps=2, \1=", snippet), names)
    assert isinstance(names["pipe"], MultimodalMultitaskPipeline)
    assert names["rest"].modalities["label"] == ["cat", "dog"]
    assert set(names["seen"].modalities) == {"label", "mask", "depth", "caption"}


def test_the_standalone_branch_is_named_where_it_is_there(folder):
    line = 'DiffusionPipeline.from_pretrained("user/animals", revision="standalone", trust_remote_code=True)'
    assert line in build_card(folder, standalone=True)
    assert line not in build_card(folder)


def test_a_pipeline_without_modalities_has_a_card(tmp_path):
    build_pipeline({}, sample_size=[16, 32]).save_pretrained(str(tmp_path))
    text = build_card(tmp_path)
    assert "It generates images." in text and "1 x 16 x 32" in text and "given=" not in text


def test_pictures_may_be_named(folder):
    draw(folder / "samples" / "joint.png")
    write_record(folder, evaluation={"samples": {"samples/joint.png": "Drawn jointly"}})
    text = build_card(folder)
    assert "![Drawn jointly](samples/joint.png)" in text and "step-000002" not in text


def test_names_do_not_break_the_tables(tmp_path):
    modalities = {"label": {"type": "categorical", "num_classes": 30, "class_names": [f"a|{i}" for i in range(30)]}}
    build_pipeline(modalities).save_pretrained(str(tmp_path))
    (row,) = [line for line in build_card(tmp_path).splitlines() if line.startswith("| label |")]
    assert r"a\|0, a\|1" in row and row.endswith("and 10 more |")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"metrics": [DISTANCE | {"value": "low"}]}, r"metrics\[0\]: 'value' is 'low'; accepted: a finite number"),
        ({"metrics": [DISTANCE | {"value": float("nan")}]}, r"metrics\[0\]: 'value' is nan"),
        ({"metrics": [DISTANCE, {"name": "x", "value": 1}]}, r"metrics\[1\]: 'type' is missing"),
        ({"metrics": [DISTANCE | {"baselines": {"plain": "?"}}]}, r"metrics\[0\]: 'baselines' is .* accepted: finite numbers"),
        ({"metrics": {"fid": 3}}, "'metrics' is .* accepted: a list of objects"),
        ({"metric": []}, "'metric' is unknown; accepted: dataset, method"),
        ({"dataset": {"name": "Pets"}}, "dataset: 'type' is missing"),
        ({"dataset": {"name": "Pets", "type": "my pets"}}, "dataset: 'type' is 'my pets'; accepted: an id such as"),
        ({"limits": "many"}, "'limits' is 'many'; accepted: a list of texts"),
        ({"samples": {"samples/no.png": ""}}, "samples: 'samples/no.png' is not there"),
        ({"samples": {"samples/../a.png": ""}}, "'samples' is .* within samples/"),
        ({"samples": {"": ""}}, "'samples' is .* within samples/"),
    ],
)  # fmt: skip
def test_a_bad_evaluation_is_refused_by_the_name_of_the_key(folder, change, message):
    write_record(folder, evaluation=EVALUATION | change)
    with pytest.raises(ValueError, match=f"evaluation.json: {message}"):
        write_card(folder)
    assert not (folder / "README.md").exists()


def test_scores_need_a_dataset(folder):
    write_record(folder, evaluation={"metrics": [DISTANCE]})
    with pytest.raises(ValueError, match="evaluation.json: 'dataset' is missing"):
        build_card(folder)


def test_a_bad_training_record_is_refused(folder):
    write_record(folder, training=TRAINING | {"steps": -1})
    with pytest.raises(ValueError, match="training.json: 'steps' is -1; accepted: a whole number, 0 or more"):
        build_card(folder)
    (folder / "training.json").write_text('{"steps": 1,')
    with pytest.raises(ValueError, match="training.json is no JSON: .*line 1"):
        build_card(folder)
    (folder / "training.json").write_text("[]")
    with pytest.raises(ValueError, match="training.json holds a list; accepted: an object"):
        build_card(folder)


def test_a_readme_that_its_owner_wrote_stays(folder, capsys):
    write_card(folder)
    write_record(folder, evaluation={})
    assert write_card(folder) and "Nothing was measured" in (folder / "README.md").read_text()
    own = (folder / "README.md").read_text().replace(MARK, "") + "My words."
    (folder / "README.md").write_text(own)
    assert not write_card(folder)
    assert (folder / "README.md").read_text() == own
    assert write_card(folder, overwrite=True)
    assert (folder / "README.md").read_text() == build_card(folder)


def test_the_command(folder, tmp_path, capsys):
    main([str(folder), "--repo_id", "user/else", "--standalone"])
    assert (folder / "README.md").read_text() == build_card(folder, "user/else", standalone=True)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "lacks model_index.json" in capsys.readouterr().err
    (folder / "README.md").write_text("mine")
    with pytest.raises(SystemExit, match="1"):
        main([str(folder)])
    assert (folder / "README.md").read_text() == "mine"


def test_records_come_along_with_the_weights_that_they_are_of(folder, tmp_path):
    pipeline = MultimodalMultitaskPipeline.from_pretrained(str(folder))
    pipeline.save_pretrained(str(tmp_path / "same"))
    copy_records(pipeline.name_or_path, tmp_path / "same")
    write_card(tmp_path / "same")
    assert (tmp_path / "same" / "README.md").read_text() == build_card(folder)

    with torch.no_grad():
        pipeline.unet.conv_in.weight[0, 0, 0, 0] += 1
    pipeline.save_pretrained(str(tmp_path / "changed"))
    copy_records(pipeline.name_or_path, tmp_path / "changed")
    assert not (tmp_path / "changed" / "training.json").exists()
    assert not (tmp_path / "changed" / "samples").exists()
