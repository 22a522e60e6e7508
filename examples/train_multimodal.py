"""Train a diffusion model of images and any data aligned with them: labels, masks, depth, embeddings, inpainting.

    accelerate launch examples/train_multimodal.py --dataset_name zalando-datasets/fashion_mnist --resolution 32 \
        --modality label:categorical --output_dir fashion-mnist-joint

`--help` explains all options, `--dry_run` shows what would be trained.
"""

from mmdiff_pipelines.training import parse_args, train


def main(argv: list[str] | None = None) -> None:
    train(parse_args(argv))


if __name__ == "__main__":
    main()
