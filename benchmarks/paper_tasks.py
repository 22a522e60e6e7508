"""Train and score the paper's four tasks, and print every table.

    python benchmarks/paper_tasks.py --data_dir data --runs runs/paper --train --seeds 0 1 2   # what is missing, then scores
    python benchmarks/paper_tasks.py --data_dir data --runs runs/paper --cards                 # from the checkpoints

What is done already is kept: trainings go on where they stopped, and a row of `results/` is not computed anew. `--tasks`
and `--arms` take a part, so that two processes can share the work. `--quick` takes two steps of everything, for a test.
"""

import argparse
import json
import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parent / "fashion_mnist"))

from baselines import load_baseline  # noqa: E402
from evaluate import CLASSIFIER  # noqa: E402
from paper import cards, labels, masked, pictures, representation, segmentation, training  # noqa: E402
from paper.arms import TASKS, Baseline, Joint, make_arms  # noqa: E402
from paper.data import PROJECTION, SIZES, embedding_dim, load_arrays  # noqa: E402
from paper.report import report  # noqa: E402
from paper.scores import Judge, Rows  # noqa: E402

from mmdiff_pipelines.evaluation import (  # noqa: E402
    ClassifierFeatures,
    LearnedSimilarity,
    Projection,
    feature_network,
)
from mmdiff_pipelines.training.embeddings import FrozenEncoder  # noqa: E402
from mmdiff_pipelines.training.precompute import weights_fingerprint  # noqa: E402


NUM_SCENES = 404  # four for each held-out mask
QUICK_SAMPLES, QUICK_STEPS = 8, 2
SCENE_JUDGE = "segmenter_judge"


class Benchmark:
    """What the arms of a run share, made when it is first needed."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.arms = make_arms(args.lpips_weights, embedding_dim(args.data_dir / "cifar10"))
        self.shared: dict[str, object] = {}
        self.pictures = args.runs / "pictures"  # of the data too, so they are not published

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
            return Judge(network, self.args.data_dir, data, self.num_samples(data), steps, cache)

        return self.once(f"judge of {data}", make)

    def classifier(self):
        return self.once("classifier", lambda: load_baseline("classifier", CLASSIFIER))

    def train_arrays(self, data: str):
        return self.once(f"{data}, train", lambda: load_arrays(self.args.data_dir / data, "train", SIZES[data]))

    def projection(self) -> Projection:
        """Of the embeddings of CIFAR-10.

        Raises:
            ValueError: if there are none, or they are of another encoder than the features.
        """
        folder = self.args.data_dir / "cifar10"
        if not (folder / PROJECTION).is_file():
            raise ValueError(f"{folder} has no embeddings; prepare it with --encoder.")
        projection = Projection.load(folder / PROJECTION)
        encoder = json.loads((folder / "encoder.json").read_text())["encoder"]
        if encoder != self.args.features:
            raise ValueError(f"{folder} has embeddings of {encoder!r}; give --features {encoder}.")
        return projection

    def captions(self) -> representation.Captions:
        def make() -> representation.Captions:
            return representation.Captions(self.text_encoder(), self.classifier())

        return self.once("captions", make)

    def text_encoder(self) -> FrozenEncoder:
        return self.once("text encoder", lambda: FrozenEncoder(self.args.text_encoder, images=False))

    def similarity(self) -> LearnedSimilarity:
        return self.once("LPIPS", lambda: LearnedSimilarity(self.args.lpips_weights))

    def scene_judge_folder(self) -> Path:
        """Of the judge of masks.

        Raises:
            FileNotFoundError: if it is not there.
        """
        folder = training.folder_of(SCENE_JUDGE, 0, self.args)
        if not training.is_trained(self.arms[SCENE_JUDGE], folder):
            raise FileNotFoundError(f"the judge of masks is not there, in {folder}; train {SCENE_JUDGE}, seed 0.")
        return folder

    def scene_judge(self) -> segmentation.SceneJudge:
        def make() -> segmentation.SceneJudge:
            segmenter = training.load_arm(self.arms[SCENE_JUDGE], self.scene_judge_folder())
            images = self.train_arrays("camvid")["image"].float() / 255
            return segmentation.SceneJudge(self.judge("camvid"), segmenter, images, self.pictures)

        return self.once("judge of scenes", make)

    def find_networks(self, chosen: list[tuple[str, str]]) -> None:
        """See that what must be downloaded is there, before anything is trained for hours."""
        if any(task == "masked" for task, _ in chosen):
            self.similarity()
        for data in {self.arms[name].data for _, name in chosen}:
            self.judge(data)
        if any(name == "fashion-mnist-caption" for _, name in chosen):
            self.text_encoder()

    def score(self, task: str, name: str, seed: int) -> None:
        """All rows of an arm in a task, unless it has not been trained."""
        arm, folder = self.arms[name], training.folder_of(name, seed, self.args)
        generates = isinstance(arm, Baseline) or arm.generates
        if not training.is_trained(arm, folder):
            print(f"{name}, seed {seed}: not trained, nothing in {folder}", flush=True)
            return
        settings = {
            "weights": training.weights_digest(arm, folder),
            "num_samples": self.num_samples(arm.data),
            "features": "the independent classifier" if arm.data == "fashion_mnist" else Path(self.args.features).name,
        }
        if task == "segmentation":
            settings["judge"] = training.weights_digest(self.arms[SCENE_JUDGE], self.scene_judge_folder())
        if name == "fashion-mnist-caption":
            encoder = self.text_encoder()
            settings["text_encoder"] = weights_fingerprint(encoder.model, without=encoder.random)[:16]
        path = self.args.results / task / f"{name}-{seed}.json"
        rows = Rows(path, training.training_record(folder), settings)
        model = training.load_arm(arm, folder)
        if task == "masked":
            masked.score(name, model, rows, self.judge("cifar10"), self.similarity(), self.pictures, generates)
        elif task == "label":
            read = self.once("reader", lambda: labels.LabelReader(self.train_arrays("cifar10"), self.projection()))
            labels.score(name, model, rows, self.judge("cifar10"), read)
        elif task == "segmentation":
            segmentation.score(name, model, rows, self.scene_judge())
        elif name == "cifar10-embedding":
            train = self.train_arrays("cifar10")
            representation.score_embedding(model, rows, self.judge("cifar10"), train, self.projection())
        elif name == "embedding_regression":
            train = self.train_arrays("cifar10")
            representation.score_embedding_regression(model, rows, self.judge("cifar10"), train)
        elif name == "fashion-mnist-caption":
            representation.score_caption(model, rows, self.judge("fashion_mnist"), self.captions())
        elif name == "fashion_classifier":
            labels.score_classifier(model, rows, self.judge("fashion_mnist"))
        else:
            representation.score_ddpm(model, rows, self.judge(arm.data))
        if seed == 0 and generates:
            pictures.draw(name, model, self.judge(arm.data), self.args.results.parent / "pictures" / f"{name}.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    names = list(make_arms())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="the folder of the prepared data")
    parser.add_argument(
        "--runs", type=Path, help="weights and checkpoints (default: runs/paper; quick: runs/paper_quick)"
    )
    parser.add_argument("--results", type=Path, help="the rows (default: benchmarks/paper/results; quick: in --runs)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=", ".join(names))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", action="store_true", help="train what is missing first")
    parser.add_argument("--train_only", action="store_true", help="train what is missing, and score nothing")
    parser.add_argument(
        "--cards",
        action="store_true",
        help="take the joint models from model_cards/, where they are, and renew their cards",
    )
    parser.add_argument("--features", default="efficientnet_lite0", help="or inception, or a repo of transformers")
    parser.add_argument("--feature_weights", type=Path, help="a file of weights of --features")
    parser.add_argument("--lpips_weights", type=Path, help="AlexNet's, as safetensors; downloaded by default")
    parser.add_argument("--text_encoder", default=training.TEXT_ENCODER, help="of captions; a repo or a folder")
    parser.add_argument("--num_samples", type=int, default=1000, help="images a row")
    parser.add_argument("--quick", action="store_true", help="two steps of everything")
    args = parser.parse_args(argv)
    if args.quick and args.cards:
        parser.error("--quick scores a few samples, which no card should show; take --cards or --quick")
    if args.runs is None:
        args.runs = Path("runs/paper_quick" if args.quick else "runs/paper")
    if args.results is None:
        args.results = args.runs / "results" if args.quick else Path(__file__).parent / "paper/results"
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
    for _, name in chosen if args.cards else []:
        folder = training.folder_of(name, 0, args)
        if isinstance(benchmark.arms[name], Joint) and folder == training.card_of(name) and folder.is_dir():
            cards.write(folder, benchmark.arms[name].data, args.results)
    text = report(args.results)
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results.parent / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
