"""The card of a pipeline, README.md, made of the files that lie in its folder.

Those are `model_index.json` and the configuration of the UNet, the records `training.json` and `evaluation.json` (their
form is in `records.py`; either may be missing, and the card says so) and pictures in `samples/`. The same folder gives
the same text.

    python -m mmdiff_pipelines.pipelines.model_card FOLDER [--repo_id user/model] [--standalone] [--overwrite]

A README.md that was not made here is its owner's and stays: it lacks the line `MARK`. Take that line out of a card that
was made here to keep it as you edit it.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from huggingface_hub import EvalResult, ModelCardData

from ..modalities import ANCHOR, MODALITY_TYPES, Modality
from .records import CARD_NAME, read_evaluation, read_training


logger = logging.get_logger(__name__)

MARK = "<!-- Made by mmdiff_pipelines of training.json and evaluation.json; take this line out to edit by hand. -->"
STANDALONE_BRANCH = "standalone"
DEFAULT_TASK = "unconditional-image-generation"
MAX_CLASS_NAMES = 20
BLANK = "–"

ROWS = {  # key of training.json -> its label in the table, and how it is shown
    "data": ("Data", "{}"),
    "rows": ("Rows", "{:,}"),
    "initial_weights": ("Fine-tuned from", "{}"),
    "parameters": ("Parameters", "{:,}"),
    "steps": ("Steps", "{:,}"),
    "batch_size": ("Images a step", "{:,}"),
    "images_seen": ("Images seen", "{:,}"),
    "minutes": ("Time", "{:.1f} minutes"),
    "device": ("Device", "{}"),
    "precision": ("Mixed precision", "{}"),
    "ema_decay": ("Weights", "EMA, decay {}"),
    "versions": ("Versions", "{}"),
}


def build_card(folder: str | Path, repo_id: str | None = None, standalone: bool = False) -> str:
    """The text of the card.

    Args:
        folder: of a saved [`MultimodalMultitaskPipeline`].
        repo_id: what people load; by default `repo_id` of training.json, or the name of the folder.
        standalone: the repo has a branch `standalone` that carries its own code: say how it is loaded.

    Raises:
        ValueError: if there is no such pipeline in the folder, or a record is not of its form, naming the key.
    """
    folder = Path(folder)
    training, evaluation = read_training(folder), read_evaluation(folder)
    adapter = training.get("adapter", {})
    config, has_vae = (adapter["unet"], False) if "base" in adapter else _read_pipeline(folder)
    repo_id = repo_id or training.get("repo_id") or folder.resolve().name
    modalities = config.get("modalities") or {}
    sections = [
        f"---\n{_metadata(repo_id, modalities, training, evaluation).to_yaml()}\n---\n{MARK}",
        f"# {repo_id.split('/')[-1]}",
        _summary(modalities),
        *_pictures(folder, evaluation.get("samples", {})),
        "## What it generates",
        table(["Name", "Kind", "Values"], _contents(config, modalities, has_vae)),
        "## Use",
        *_loading(repo_id, adapter, modalities, standalone),
        "## Training",
        *_training(training),
        "## Evaluation",
        *_evaluation(evaluation),
        "## Limits",
        "\n".join(f"- {limit}" for limit in evaluation.get("limits", [])) or "None were written down.",
        "## Licence",
        *_licence(training, evaluation),
    ]
    return "\n\n".join(sections) + "\n"


def write_card(
    folder: str | Path, repo_id: str | None = None, standalone: bool = False, overwrite: bool = False
) -> bool:
    """Write the card of a folder; its arguments are those of [`build_card`].

    A README.md that was not made here stays, with a warning, unless `overwrite`; returns whether it was written.
    """
    path, text = Path(folder, CARD_NAME), build_card(folder, repo_id, standalone)
    if path.exists() and not overwrite and not is_generated(path.read_text(encoding="utf-8")):
        logger.warning(f"{path} was not made by mmdiff_pipelines, and stays as it is.")
        return False
    path.write_text(text, encoding="utf-8", newline="\n")
    return True


def is_generated(card: str) -> bool:
    """Whether the text of a card was made here."""
    return MARK in card


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown, whatever the cells hold."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _read_pipeline(folder: Path) -> tuple[dict[str, Any], bool]:
    """The configuration of the UNet, and whether there is a VAE."""
    paths = folder / "model_index.json", folder / "unet" / "config.json"
    if not all(path.is_file() for path in paths):
        raise ValueError(f"`folder` {folder} holds no saved pipeline: it lacks {' or '.join(p.name for p in paths)}.")
    index, config = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    return config, any(index.get("vae") or ())


def _metadata(
    repo_id: str, modalities: Mapping[str, Any], training: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> ModelCardData:
    results = list(_eval_results(evaluation))
    return ModelCardData(
        library_name="mmdiff_pipelines",
        pipeline_tag=DEFAULT_TASK,
        license=training.get("license"),
        datasets=[training["dataset"]] if "dataset" in training else None,
        base_model=training.get("base_model"),
        tags=["mmdiff_pipelines", "diffusers", "multimodal-diffusion", *modalities],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _eval_results(evaluation: Mapping[str, Any]) -> Iterator[EvalResult]:
    for metric in evaluation.get("metrics", []):
        dataset = evaluation["dataset"]
        yield EvalResult(
            task_type=metric.get("task", DEFAULT_TASK),
            dataset_type=dataset["type"],
            dataset_name=dataset["name"],
            dataset_split=dataset.get("split"),
            metric_type=metric["type"],
            metric_name=metric["name"],
            metric_value=metric["value"],
        )


def _summary(modalities: Mapping[str, Any]) -> str:
    what = f", together with or given any of: {', '.join(modalities)}" if modalities else ""
    return f"A `MultimodalMultitaskPipeline` of `mmdiff_pipelines`. It generates images{what}."


def _pictures(folder: Path, captions: Mapping[str, str]) -> list[str]:
    """Those that the evaluation names; else the last one that training drew."""
    drawn = sorted(folder.glob("samples/*.png"))
    captions = captions or {f"samples/{path.name}": "Samples" for path in drawn[-1:]}
    return [f"![{caption}]({path})" for path, caption in captions.items()]


def _contents(config: Mapping[str, Any], modalities: Mapping[str, Any], has_vae: bool) -> Iterator[list[str]]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    kind = "latents of the VAE" if has_vae else "pixels"
    yield [ANCHOR, kind, f"{config['in_channels']} x {height} x {width} (channels, height, width)"]
    for name, spec in modalities.items():
        yield [name, spec["type"], _describe({key: value for key, value in spec.items() if key != "type"})]


def _describe(spec: dict[str, Any]) -> str:
    """Class names in full, as far as they can be read; other arguments as they are."""
    names = spec.pop("class_names", None) or []
    more = f" and {len(names) - MAX_CLASS_NAMES} more" if len(names) > MAX_CLASS_NAMES else ""
    classes = [", ".join(map(str, names[:MAX_CLASS_NAMES])) + more] if names else []
    return ": ".join([", ".join(f"{key}={value}" for key, value in spec.items()) or BLANK, *classes])


def _trait(spec: Mapping[str, Any], name: str) -> bool:
    """What the class of a modality says of it; a class that is not imported counts as the base class."""
    return getattr(MODALITY_TYPES.get(spec["type"], Modality), name)


def _loading(
    repo_id: str, adapter: Mapping[str, Any], modalities: Mapping[str, Any], standalone: bool
) -> Iterator[str]:
    joint = [name for name, spec in modalities.items() if _trait(spec, "joint")]
    holes = [name for name, spec in modalities.items() if _trait(spec, "constrains_anchor")]
    lines = [
        "import torch",
        "from mmdiff_pipelines import MultimodalMultitaskPipeline",
        "",
        f"pipe = MultimodalMultitaskPipeline.from_pretrained({json.dumps(adapter.get('base', repo_id))})",
        *([f"pipe.unet.load_lora_adapter({json.dumps(repo_id)})"] if adapter else []),
        "output = pipe(batch_size=2, generator=torch.Generator().manual_seed(0))  # everything, jointly",
        ", ".join(["output.images", *(f"output.modalities[{json.dumps(name)}]" for name in joint)]),
    ]
    if joint:
        lines += [
            f"rest = pipe(given={_example(joint, modalities)}, guidance_scale=2.0)  # others, and several, likewise",
            f'seen = pipe(given={{"image": output.images}}, outputs={json.dumps(joint)})  # perception: one call',
        ]
    for name in holes:
        lines += [
            "visible = torch.ones(output.images[0].size[::-1])  # 0 where pixels are hidden",
            "visible[: len(visible) // 2] = 0",
            f"filled = pipe(given={{{json.dumps(name)}: (output.images[0], visible)}}).images",
        ]
    yield _code("python", "\n".join(lines))
    if standalone:
        yield "Without the package, from the branch that carries its own code:"
        yield _code("python", STANDALONE.format(repo_id=json.dumps(repo_id), branch=json.dumps(STANDALONE_BRANCH)))


STANDALONE = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({repo_id}, revision={branch}, trust_remote_code=True)"""


def _example(joint: Sequence[str], modalities: Mapping[str, Any]) -> str:
    """What may be given, in Python: class names where a value is one, else what was generated before."""
    for name in joint:
        if modalities[name].get("class_names") and not _trait(modalities[name], "spatial"):
            return json.dumps({name: modalities[name]["class_names"][:2]}, ensure_ascii=False)
    return f"{{{json.dumps(joint[0])}: output.modalities[{json.dumps(joint[0])}]}}"


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _training(training: Mapping[str, Any]) -> Iterator[str]:
    if not training:
        yield "No record of it lies beside these weights."
        return
    rows = [[label, form.format(training[key])] for key, (label, form) in ROWS.items() if key in training]
    yield table(["", ""], rows)
    if "command" in training:
        yield _code("bash", training["command"])
    if training.get("losses"):
        over = f", the mean of the last {training['losses_over']} steps" if training.get("losses_over") else ""
        yield f"Training losses{over}:"
        yield table(["Term", "Loss"], [[name, f"{value:.4g}"] for name, value in training["losses"].items()])


def _evaluation(evaluation: Mapping[str, Any]) -> Iterator[str]:
    metrics = evaluation.get("metrics")
    if not metrics:
        yield "Nothing was measured: neither the quality of images nor the accuracy of what comes with them."
        return
    dataset = evaluation["dataset"]
    yield f"On {dataset['name']}" + (f", split {dataset['split']!r}." if "split" in dataset else ".")
    if "method" in evaluation:
        yield evaluation["method"]
    yield _scores(metrics)
    if notes := [f"- {metric['name']}: {metric['note']}" for metric in metrics if "note" in metric]:
        yield "\n".join(notes)
    if "command" in evaluation:
        yield _code("bash", evaluation["command"])


def _scores(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A row a metric, a column a baseline or reference; the best but for references in bold, whoever's it is."""
    kinds = ("baselines", "references")
    others = list(dict.fromkeys(name for kind in kinds for metric in metrics for name in metric.get(kind, {})))
    rows = []
    for metric in metrics:
        higher, baselines = metric.get("higher_is_better"), metric.get("baselines", {})
        arrow = {True: " ↑", False: " ↓", None: ""}[higher]
        best = (max if higher else min)([metric["value"], *baselines.values()])
        bold = bool(baselines) and higher is not None
        beside = metric.get("references", {}) | baselines
        ours = _score(metric["value"], bold and metric["value"] == best)
        theirs = [_score(beside.get(name), bold and name in baselines and beside[name] == best) for name in others]
        rows.append([metric["name"] + arrow, ours, *theirs])
    return table(["", "This model", *others], rows)


def _score(value: float | None, bold: bool) -> str:
    if value is None:
        return BLANK
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"**{text}**" if bold else text


def _licence(training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield f"The weights: {training.get('license', 'not stated')}. The data: {training.get('data_license', 'not stated')}."
    if "data" in evaluation:
        yield evaluation["data"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a saved pipeline")
    parser.add_argument("--repo_id", help="what people load (default: that of training.json, or the folder's name)")
    parser.add_argument("--standalone", action="store_true", help="the repo has a branch that carries its code")
    parser.add_argument("--overwrite", action="store_true", help="also a README.md that was not made here")
    args = parser.parse_args(argv)
    try:
        written = write_card(args.folder, args.repo_id, args.standalone, args.overwrite)
    except ValueError as error:
        parser.error(str(error))
    if not written:
        parser.exit(1, "Nothing was written; --overwrite replaces it.\n")


if __name__ == "__main__":
    main()
