"""Tables of all scores: the mean over seeds, and the standard deviation behind it where there are several."""

from pathlib import Path

from tables import Runs, cell, markdown, read_runs

from .arms import make_arms


TITLES = {
    "masked": "1. Masked pretraining, CIFAR-10",
    "label": "2. Image and label, CIFAR-10",
    "segmentation": "3. Image and segmentation mask, CamVid",
    "representation": "4. Image and representation, CIFAR-10 and Fashion-MNIST",
}
COLUMNS = {
    "lpips": ("LPIPS ↓", 4),
    "psnr": ("PSNR ↑", 2),
    "fd": ("Fréchet distance ↓", 2),
    "precision": ("precision ↑", 3),
    "recall": ("recall ↑", 3),
    "label_agreement": ("label agreement ↑", 3),
    "label_accuracy": ("label accuracy ↑", 3),
    "calibration_error": ("calibration error ↓", 3),
    "miou": ("mIoU ↑", 3),
    "mask_agreement": ("mIoU of mask and reading ↑", 3),
    "memorisation": ("distance to training scenes", 3),
    "cosine": ("cosine ↑", 3),
    "cosine_shuffled": ("cosine, shuffled", 3),
    "retrieval": ("retrieval@1 ↑", 3),
    "probe_accuracy": ("probe accuracy ↑", 3),
}


def score_table(runs: Runs) -> str:
    """A line for each way of using each arm; the columns that it has."""
    rows = dict.fromkeys((arm, how) for arm, records in runs.items() for r in records for how in r["scores"])
    found = {name for records in runs.values() for r in records for row in r["scores"].values() for name in row}
    columns = {name: COLUMNS[name] for name in COLUMNS if name in found}
    table = []
    for arm, how in rows:
        scores = [record["scores"][how] for record in runs[arm] if how in record["scores"]]
        values = [cell([s[name] for s in scores if name in s], digits) for name, (_, digits) in columns.items()]
        table.append([arm, how, str(len(scores)), *values])
    return markdown(["arm", "how", "seeds", *(title for title, _ in columns.values())], table)


def check_settings(runs: Runs) -> None:
    """Scores of one dataset stand in one table if they are of as many samples and the same features.

    Raises:
        ValueError: naming two arms that differ, or one that there is no more.
    """
    arms, first = make_arms(), {}
    for arm, records in runs.items():
        if arm not in arms:
            raise ValueError(f"there are scores of {arm}, which is no arm; move {arm}-*.json away.")
        for record in records:
            settings = {name: record["settings"][name] for name in ("num_samples", "features", "feature_weights")}
            other, expected = first.setdefault(arms[arm].data, (arm, settings))
            if settings != expected:
                raise ValueError(
                    f"{arm} has been scored with {settings} and {other} with {expected}; move one away, or give "
                    "--output_dir another folder."
                )


def cost_table(runs: Runs) -> str:
    names = {"images seen": "images_seen", "minutes": "minutes", "parameters": "parameters"}
    rows = [
        [arm, *(cell([record["training"][key] for record in records], 0) for key in names.values())]
        for arm, records in runs.items()
    ]
    return markdown(["arm", *names], rows)


def sheets(runs: Runs, folder: Path) -> list[str]:
    """The pictures of arms that generate something."""
    return [f"{arm}:\n\n![samples of {arm}](pictures/{arm}.png)" for arm in runs if (folder / f"{arm}.png").exists()]


def report(folder: Path) -> str:
    """Everything in `results/` and `pictures/` of a folder, as Markdown."""
    parts = ["# The paper's four tasks"]
    for task, title in TITLES.items():
        if runs := read_runs(folder / "results" / task):
            check_settings(runs)
            parts += [f"## {title}", score_table(runs), cost_table(runs), *sheets(runs, folder / "pictures")]
    return "\n\n".join(parts) + "\n"
