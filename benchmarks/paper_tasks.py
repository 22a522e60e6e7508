"""Train and score the paper's four tasks, and print every table.

    python benchmarks/paper_tasks.py --cards                   # scores the checkpoints in model_cards/
    python benchmarks/paper_tasks.py --train --seeds 0 1 2     # trains all arms that are missing, and scores them

Scores are written to `results/`, sheets of samples to `pictures/` and the tables to `RESULTS.md` of `--output_dir`. What is
done already is kept: trainings go on where they stopped, and a row is not computed anew. `--tasks` and `--arms` take a
part, so that two processes can share the work. `--quick` takes two steps of everything and few images, for a test.
"""

import argparse
import json
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent / "fashion_mnist"))

from baselines import load_baseline  # noqa: E402
from evaluate import CLASSIFIER  # noqa: E402
from paper import cards, labels, masked, pictures, representation, segmentation, training  # noqa: E402
from paper.arms import TASKS, Baseline, Joint, make_arms  # noqa: E402
from paper.data import PROJECTION, SIZES, embedding_dim, load_arrays  # noqa: E402
from paper.report import report  # noqa: E402
from paper.scores import Embed, Judge, Rows  # noqa: E402

from mmdiff_pipelines.evaluation import (  # noqa: E402
    ClassifierFeatures,
    LearnedSimilarity,
    Projection,
    feature_network,
)
from mmdiff_pipelines.training.embeddings import FrozenEncoder  # noqa: E402
from mmdiff_pipelines.training.precompute import weights_fingerprint  # noqa: E402


LEAST_SAMPLES = 4
NUM_SCENES = 404  # four for each held-out mask
QUICK_SAMPLES, QUICK_STEPS = 8, 2
SHOWS_REAL_IMAGES = ("ddpm", "fashion_ddpm", training.SCENE_JUDGE)  # beside whose rows those of real images stand


class Benchmark:
    """What the arms of a run share, made when it is first needed."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.arms = make_arms(args.lpips_weights, embedding_dim(args.data_dir / "cifar10"))
        self.shared: dict[str, object] = {}
        self.pictures = args.runs / "pictures"  # of the data too, so they are not published
        self.limit = training.QUICK_ROWS if args.quick else None

    def once(self, name: str, make):
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    def num_samples(self, data: str) -> int:
        if self.args.quick:
            return QUICK_SAMPLES
        return NUM_SCENES if data == "camvid" else self.args.num_samples

    def judge(self, data: str) -> Judge:
        """Of CIFAR-10 and CamVid by the feature network, of Fashion-MNIST by the independent classifier."""

        def make() -> Judge:
            if data == "fashion_mnist":
                network, name = ClassifierFeatures(self.classifier()), "classifier"
            else:
                name = self.args.features
                network = self.once(name, lambda: feature_network(name, self.args.feature_weights))
            steps = QUICK_STEPS if self.args.quick else 20
            cache = self.args.runs / "features" / Path(name).name
            return Judge(network, self.args.data_dir, data, self.num_samples(data), steps, cache, self.limit)

        return self.once(f"judge of {data}", make)

    def classifier(self):
        return self.once("classifier", lambda: load_baseline("classifier", CLASSIFIER))

    def train_arrays(self, data: str):
        def make():
            return load_arrays(self.args.data_dir / data, "train", SIZES[data], self.limit)

        return self.once(f"{data}, train", make)

    def embed(self) -> Embed:
        """As CIFAR-10 was embedded when it was prepared.

        Raises:
            ValueError: if it was not.
        """
        folder = self.args.data_dir / "cifar10"
        if not (folder / PROJECTION).is_file():
            raise ValueError(f"{folder} has no embeddings; prepare it with --encoder.")
        encoder = json.loads((folder / "encoder.json").read_text())["encoder"]
        other = encoder != self.args.features
        network = self.once(encoder, lambda: feature_network(encoder, self.args.encoder_weights)) if other else None
        return Embed(Projection.load(folder / PROJECTION), network)

    def reader(self) -> labels.LabelReader:
        return self.once("reader", lambda: labels.LabelReader(self.train_arrays("cifar10"), self.embed()))

    def captions(self) -> representation.Captions:
        def make() -> representation.Captions:
            return representation.Captions(self.text_encoder(), self.classifier())

        return self.once("captions", make)

    def text_encoder(self) -> FrozenEncoder:
        return self.once("text encoder", lambda: FrozenEncoder(self.args.text_encoder, images=False))

    def similarity(self) -> LearnedSimilarity:
        return self.once("LPIPS", lambda: LearnedSimilarity(self.args.lpips_weights))

    def scene_judge(self) -> segmentation.SceneJudge:
        def make() -> segmentation.SceneJudge:
            segmenter = training.load_arm(self.arms[training.SCENE_JUDGE], training.SHIPPED_JUDGE)
            images = self.train_arrays("camvid")["image"].float() / 255
            return segmentation.SceneJudge(self.judge("camvid"), segmenter, images, self.pictures)

        return self.once("judge of scenes", make)

    def find_networks(self, chosen: list[tuple[str, str]]) -> None:
        """See that what must be downloaded is there, before anything is trained for hours."""
        if any(task == "masked" for task, _ in chosen):
            self.similarity()
        for data in {self.arms[name].data for _, name in chosen}:
            self.judge(data)
        if any(self.arms[name].data == "cifar10" for task, name in chosen if task in ("label", "representation")):
            self.embed()
        if any(name == "fashion-mnist-caption" for _, name in chosen):
            self.text_encoder()

    def score(self, task: str, name: str, seed: int) -> None:
        """All rows of an arm in a task, unless it has not been trained."""
        arm, folder = self.arms[name], training.folder_of(name, seed, self.args)
        generates = isinstance(arm, Baseline) or arm.generates
        if not training.is_trained(arm, folder):
            print(f"{name}, seed {seed}: not trained, nothing in {folder}", flush=True)
            return
        judge = self.judge(arm.data)
        settings = {
            "weights": training.weights_digest(arm, folder),
            "num_samples": self.num_samples(arm.data),
            "features": "the independent classifier" if arm.data == "fashion_mnist" else Path(self.args.features).name,
            "feature_weights": judge.network_digest,
        }
        if task == "masked":
            settings["lpips"] = weights_fingerprint(self.similarity().network)[:16]
        if task == "segmentation":
            settings["judge"] = training.weights_digest(self.arms[training.SCENE_JUDGE], training.SHIPPED_JUDGE)
        if name == "fashion-mnist-caption":
            encoder = self.text_encoder()
            settings["text_encoder"] = weights_fingerprint(encoder.model, without=encoder.random)[:16]
        path = self.args.output_dir / "results" / task / f"{name}-{seed}.json"
        rows = Rows(path, training.training_record(folder), settings)
        model = training.load_arm(arm, folder)
        if task == "masked":
            masked.score(name, model, rows, judge, self.similarity(), self.pictures, generates)
        elif task == "label":
            labels.score(name, model, rows, judge, self.reader())
        elif task == "segmentation":
            segmentation.score(name, model, rows, self.scene_judge())
        elif name == "cifar10-embedding":
            representation.score_embedding(model, rows, judge, self.train_arrays("cifar10"), self.embed())
        elif name == "embedding_regression":
            representation.score_embedding_regression(model, rows, judge, self.train_arrays("cifar10"))
        elif name == "fashion-mnist-caption":
            representation.score_caption(model, rows, judge, self.captions())
        elif name == "fashion_classifier":
            labels.score_classifier(model, rows, judge)
        else:
            representation.score_ddpm(model, rows, judge)
        if name in SHOWS_REAL_IMAGES:
            rows.add("real training images", lambda: self.of_real_images(judge))
        if seed == 0 and generates:
            pictures.draw(name, model, judge, self.args.output_dir / "pictures" / f"{name}.png")

    def of_real_images(self, judge: Judge) -> dict[str, float]:
        """What as many training images score, or all of them where there are fewer."""
        images = self.train_arrays(judge.data)["image"]
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: judge.num_samples]
        return judge.quality(judge.features(images[chosen].float() / 255))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    names = list(make_arms())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="the folder of the prepared data")
    parser.add_argument(
        "--runs", type=Path, help="weights and checkpoints (default: runs/paper; quick: runs/paper_quick)"
    )
    parser.add_argument("--output_dir", type=Path, help="scores, sheets and tables (default: --runs)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=", ".join(names))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", action="store_true", help="train what is missing first")
    parser.add_argument("--train_only", action="store_true", help="train what is missing, and score nothing")
    parser.add_argument("--cards", action="store_true", help="take the joint models of seed 0 from model_cards/")
    parser.add_argument("--renew_cards", action="store_true", help="--cards, and renew their cards by --output_dir")
    parser.add_argument("--features", default="efficientnet_lite0", help="or inception, or a repo of transformers")
    parser.add_argument("--feature_weights", type=Path, help="a file of weights of --features")
    parser.add_argument(
        "--encoder_weights", type=Path, help="the same of the encoder of CIFAR-10's embeddings, if it is another"
    )
    parser.add_argument("--lpips_weights", type=Path, help="AlexNet's, as safetensors; downloaded by default")
    parser.add_argument("--text_encoder", default=training.TEXT_ENCODER, help="of captions; a repo or a folder")
    parser.add_argument("--num_samples", type=int, default=1000, help="images a row (404 on CamVid)")
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "bf16"],
        default="bf16",
        help="of trainings; bf16 is slow on CPUs without it",
    )
    parser.add_argument("--quick", action="store_true", help="two steps of everything")
    args = parser.parse_args(argv)
    if args.quick and args.renew_cards:
        parser.error("--quick scores a few samples, which no card should show; leave --renew_cards out")
    if args.num_samples < LEAST_SAMPLES:
        parser.error(
            f"--num_samples is {args.num_samples}; accepted: {LEAST_SAMPLES} or more, for precision and recall"
        )
    if args.runs is None:
        args.runs = Path("runs/paper_quick" if args.quick else "runs/paper")
    args.output_dir, args.cards = args.output_dir or args.runs, args.cards or args.renew_cards
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    benchmark = Benchmark(args)
    chosen = [(task, name) for task in args.tasks for name in TASKS[task] if name in args.arms]
    if args.train and not args.train_only:
        benchmark.find_networks(chosen)
    for seed in args.seeds:
        for name in dict.fromkeys(name for _, name in chosen):
            if args.train or args.train_only:
                training.train_arm(benchmark.arms[name], name, seed, args)
    if args.train_only:
        return
    for seed in args.seeds:
        for task, name in chosen:
            benchmark.score(task, name, seed)
    for _, name in chosen if args.renew_cards else []:
        folder = training.folder_of(name, 0, args)
        if isinstance(benchmark.arms[name], Joint) and folder == training.card_of(name) and folder.is_dir():
            cards.write(folder, benchmark.arms[name].data, args.output_dir)
    text = report(args.output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
