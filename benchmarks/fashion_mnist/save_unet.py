"""Save a trained baseline as diffusers saves a model, to be fine-tuned with `--pretrained_unet`.

python benchmarks/fashion_mnist/save_unet.py --run runs/ddpm-6500 --output_dir runs/ddpm-6500/unet
"""

import argparse
from pathlib import Path

from baselines import load_baseline


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the output folder of `baselines.py --arm ddpm`")
    parser.add_argument("--output_dir", type=Path, required=True, help="config.json and weights go here")
    args = parser.parse_args(argv)
    load_baseline("ddpm", args.run).save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
