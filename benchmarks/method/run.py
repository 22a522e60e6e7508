"""Train and score arms of the controlled comparison, one JSON for each arm and seed; what is done already is kept.

    python benchmarks/method/run.py --data_dir data/fashion_mnist --runs runs/method --arms ddpm own_decay_1 --seeds 0 1 2

Fashion-MNIST at 16x16, 3,000 steps of batch 64, about 5 minutes an arm and seed on one core that has bfloat16
instructions. All images are sampled with 20 calls of SDE-DPM-Solver++, which suits specialists and joint models alike
(`inference.py` has the other solvers). The judge of all images is the arm `classifier`, seed 0, which is committed in
`classifier/`. For the scaling study, with results in a folder of their own:

    python benchmarks/method/run.py --data_dir data/fashion_mnist --runs runs/method_750 --steps 750 \\
        --results benchmarks/method/results/steps_750 --arms ddpm own_decay_1
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from unittest import mock

import torch
from arms import ARMS, SIZE, TRUNK  # first: it finds the next ones
from baselines import Classifier, Run, load_arrays
from evaluate import Judge
from metrics import silhouettes
from rows import Row, real_images_rows, rows_of
from safetensors.torch import load_file
from torch import nn

from mmdiff_pipelines import Presence
from mmdiff_pipelines.pipelines.denoiser import SubsetDenoiser


HERE = Path(__file__).parent
BATCH = 64
CHANNELS = TRUNK["block_out_channels"]


def small_arrays(data_dir: Path, split: str) -> dict[str, torch.Tensor]:
    """The data at 16x16: means of 2x2 pixels, and the silhouettes of these."""
    arrays = load_arrays(data_dir, split)
    pixels = nn.functional.avg_pool2d(arrays["image"][:, None].float(), 32 // SIZE).round()
    return {
        "image": pixels[:, 0].to(torch.uint8),
        "mask": silhouettes(pixels / 255).to(torch.uint8),
        "label": arrays["label"],
    }


def train(arm: str, seed: int, args: argparse.Namespace, data: Mapping[str, torch.Tensor]) -> nn.Module:
    """The averaged model of an arm; trained, gone on with, or read."""
    folder = args.runs / f"{arm}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = argparse.Namespace(
        arm=arm, seed=seed, output_dir=folder, steps=args.steps, batch_size=BATCH, learning_rate=1e-3, warmup_steps=250,
        adam_beta2=0.999, checkpointing_steps=500, mixed_precision=args.mixed_precision,
    )  # fmt: skip
    run = Run(settings, ARMS[arm].build, ARMS[arm].loss)
    if run.checkpoint.exists():
        run.resume()
    run.train(data)
    run.finish()
    return run.model.eval().requires_grad_(False)


def load_judge(data_dir: Path, num_samples: int) -> Judge:
    """The committed classifier, and the test images at 16x16."""
    classifier = Classifier(TRUNK)
    classifier.load_state_dict(load_file(HERE / "classifier" / "model.safetensors"))
    return Judge(classifier.eval().requires_grad_(False), small_arrays(data_dir, "test"), num_samples)


def score(path: Path, train: Callable[[], dict], rows: Iterable[Row], args: argparse.Namespace) -> None:
    """Add the rows that a JSON has not yet, one by one; what `train` returns goes beside them.

    Raises:
        ValueError: if the JSON is of another number of steps or images, or of another width.
    """
    record = json.loads(path.read_text()) if path.exists() else {"scores": {}}
    settings = {name: getattr(args, name) for name in ("steps", "width", "num_samples") if name in args}
    if record.setdefault("settings", settings) != settings:
        raise ValueError(
            f"{path} has scores of {record['settings']}, not {settings}; give another folder by --results."
        )
    missing = [(name, compute) for name, compute in rows if name not in record["scores"]]
    if not missing:
        return
    record |= train()
    print(path.stem, flush=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
        for name, compute in missing:
            record["scores"][name] = {key: round(value, 4) for key, value in compute().items()}
            path.write_text(json.dumps(record, indent=2) + "\n")
            print(f"  {name}", record["scores"][name], flush=True)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that training and the inference study share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="what examples/fashion_mnist/prepare.py wrote")
    parser.add_argument("--runs", type=Path, required=True, help="weights and checkpoints of the arms")
    parser.add_argument("--num_samples", type=int, default=1000, help="images a row")
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default="bf16", help="bf16 is slow on CPUs without it"
    )
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=1, help="a factor of the trunk's channels")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="the folder of the JSONs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    data, judge = small_arrays(args.data_dir, "train"), load_judge(args.data_dir, args.num_samples)
    TRUNK["block_out_channels"] = tuple(args.width * channels for channels in CHANNELS)
    args.results.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        path = args.results / f"real_images-{seed}.json"
        score(path, lambda: {}, real_images_rows(data, judge, seed), args)
        for arm in args.arms:
            model = cache(partial(train, arm, seed, args, data))

            def trained(model: Callable = model, folder: Path = args.runs / f"{arm}-{seed}") -> dict:
                model()
                return {"training": json.loads((folder / "training.json").read_text())}

            withheld = getattr(ARMS[arm], "withheld_state", Presence.ABSENT)
            with mock.patch.object(SubsetDenoiser, "withheld_state", withheld):
                score(args.results / f"{arm}-{seed}.json", trained, rows_of(arm, model, judge, seed), args)


if __name__ == "__main__":
    main()
