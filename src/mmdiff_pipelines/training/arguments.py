"""The command line of training: one for every task. Names are those of diffusers' own scripts where they have one."""

import argparse
import math
import os
from typing import Any

from diffusers.optimization import SchedulerType
from huggingface_hub.utils import validate_repo_id

from .. import process
from .modality_options import parse_modality
from .states import PresenceShares, parse_shares


DESCRIPTION = """\
Train a MultimodalMultitaskPipeline on images and any aligned data.

  accelerate launch train_multimodal.py --dataset_name user/data --resolution 32 --output_dir out \\
      --modality label:categorical --modality mask:segmentation:num_classes=2,column=silhouette

Add --dry_run to see what would be trained. Without a --modality it is plain DDPM.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a run, checked as far as they can be without the data.

    Raises:
        SystemExit: for options that do not exist or do not fit together, with a message, as argparse does.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s --train_data_dir DIR --output_dir DIR --modality NAME:TYPE [options; --help lists them]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for add_group in (
        _add_data, _add_modalities, _add_augmentation, _add_model, _add_lora, _add_diffusion, _add_optimization,
        _add_ema, _add_checkpoints, _add_validation, _add_tracking, _add_hub,
    ):  # fmt: skip
        add_group(parser)
    args = parser.parse_args(argv)
    try:
        _check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data", "one of --dataset_name, --train_data_dir, --data_files")
    group.add_argument("--dataset_name", help="a dataset on the Hub, or a local one that `load_dataset` reads")
    group.add_argument("--dataset_config_name", help="its configuration")
    group.add_argument("--train_data_dir", help="a local folder: written by `save_to_disk`, or an image folder")
    group.add_argument("--data_files", nargs="+", help="parquet, csv or json files; image columns may hold paths")
    group.add_argument("--split", default="train", help="the split to train on (default: train)")
    group.add_argument("--image_column", default="image", help="the column of images (default: image)")
    group.add_argument("--image_channels", type=int, help="channels of the images; by default those of the first one")
    group.add_argument("--cache_dir", help="where `datasets` keeps its cache")
    group.add_argument("--max_train_samples", type=int, help="train on so many rows, drawn with --seed")
    group.add_argument("--streaming", action="store_true", help="read rows as they come; needs --max_train_steps")
    group.add_argument("--shuffle_buffer_size", type=int, default=1000, help="rows shuffled at a time when streaming")
    group.add_argument("--cache_in_memory", action="store_true", help="decode all rows once, at the start")
    group.add_argument("--dataloader_num_workers", type=int, default=0)


def _add_modalities(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("modalities")
    group.add_argument(
        "--modality", dest="modalities", action="append", default=[], type=_argument(parse_modality),
        metavar="NAME:TYPE[:key=value,...]",
        help="may be repeated. Keys: column (default: NAME), the arguments of the type (num_classes, space, ...; "
        "lists as a|b|c), task_weight, and aggregation and weight (c) of the scheduler. num_classes and class_names "
        "are read from the dataset, where it has them. A vector may be made by a frozen encoder of transformers: "
        "encoder=a repo or folder, column=images or texts. A row whose value is missing counts as absent.",
    )  # fmt: skip
    group.add_argument(
        "--task_weights", type=_argument(parse_task_weights), default={},
        help="weights of the losses, label=0.1,mask=1 (1 where left out), or 'uncertainty' to learn them",
    )  # fmt: skip
    group.add_argument(
        "--perception_share", type=float, default=0.25, help="rows whose image is given and the rest is queried"
    )
    group.add_argument("--query_weight", type=float, default=1.0, help="a factor of the losses of what is queried")
    group.add_argument(
        "--state_shares", type=_argument(parse_shares), default=PresenceShares(),
        help="states of each modality in the other rows (default: joint=0.53,given=0.33,absent=0.14)",
    )  # fmt: skip


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation", "images and aligned maps move together")
    group.add_argument("--random_flip", action="store_true", help="flip half of the rows left to right")
    group.add_argument(
        "--no_flip_labels", help="never flip rows of these classes: 3,7 or names; with several labels, NAME=3,7"
    )
    group.add_argument(
        "--random_crop", type=int, default=0, metavar="PIXELS",
        help="scale to so many pixels more than the resolution and cut a random window (default: 0, the middle)",
    )  # fmt: skip


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model", "from the options of a UNet2DModel, a JSON file of them, or weights")
    group.add_argument("--resolution", type=int, nargs="+", help="one number or height and width (default: 64)")
    group.add_argument("--block_out_channels", type=int, nargs="+", default=[64, 128, 256, 256])
    group.add_argument("--layers_per_block", type=int, default=2)
    group.add_argument("--down_block_types", nargs="+", help="by default attention in the lower half of the levels")
    group.add_argument("--up_block_types", nargs="+", help="by default the mirror image of --down_block_types")
    group.add_argument("--norm_num_groups", type=int, default=32)
    group.add_argument("--attention_head_dim", type=int, default=8)
    group.add_argument("--dropout", type=float, default=0.0)
    group.add_argument("--model_config_name_or_path", help="a config.json of a UNet2DModel instead of the above")
    group.add_argument(
        "--vae", help="train on latents of this AutoencoderKL or AutoencoderTiny, a folder or a repo; they are computed "
        "once and cached in --cache_dir. --resolution stays that of the images; masks and maps get that of the latents",
    )  # fmt: skip
    group.add_argument("--vae_subfolder", help="its folder within --vae, as 'vae' in a pipeline")
    group.add_argument("--pretrained_unet", help="start from this UNet2DModel, a folder or a repo")
    group.add_argument(
        "--pretrained_model_name_or_path",
        help="fine-tune this MultimodalMultitaskPipeline: its modalities, its scheduler and its VAE are kept, and a "
        "--modality that it has not is added",
    )


def _add_lora(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("LoRA", "train adapters of a pretrained model, and what is new; save only these")
    group.add_argument("--lora_rank", type=int, help="the rank of the adapters; by default the whole model is trained")
    group.add_argument("--lora_alpha", type=int, help="their scale is alpha / rank (default: the rank)")
    group.add_argument(
        "--lora_target_modules", nargs="+",
        help="ends of the names of layers, as to_q conv1 (default: all of the trunk's attention and ResNet blocks)",
    )  # fmt: skip


def _add_diffusion(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("diffusion")
    group.add_argument("--prediction_type", default="total_noise", choices=process.PREDICTION_TYPES)
    group.add_argument("--num_train_timesteps", type=int, default=1000)
    group.add_argument("--beta_schedule", default="linear", help="a schedule of DDPMScheduler (default: linear)")
    group.add_argument("--rescale_betas_zero_snr", action="store_true", help="needs v_prediction or sample")
    group.add_argument(
        "--snr_gamma",
        type=float,
        help="Min-SNR weighting of the image loss, a number above 0 (5.0 is recommended); inf weights any target as the "
        "noise, with --prediction_type v_prediction the best on CIFAR-10; rows with a masked image given have none "
        "(default: no weighting)",
    )


def _add_optimization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--output_dir", default="multimodal-model", help="the pipeline, its card, samples, checkpoints")
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="say what would be trained, and stop (latents and embeddings are cached)",
    )
    group.add_argument("--seed", type=int, default=0, help="of the weights, the order of the data and all noise")
    group.add_argument("--train_batch_size", type=int, default=16, help="per device")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1)
    group.add_argument("--max_train_steps", type=int, help="optimizer steps; overrides --num_train_epochs")
    group.add_argument("--num_train_epochs", type=int, default=100)
    group.add_argument("--learning_rate", type=float, default=1e-4)
    group.add_argument("--scale_lr", action="store_true", help="multiply it by accumulation, batch and processes")
    group.add_argument("--lr_scheduler", default="cosine", choices=[t.value for t in _SCHEDULERS])
    group.add_argument("--lr_warmup_steps", type=int, default=500)
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.999)
    group.add_argument("--adam_weight_decay", type=float, default=0.0)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="by default as accelerate is set up")
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    group.add_argument("--allow_tf32", action="store_true", help="faster float32 on Ampere GPUs and later")


_SCHEDULERS = [kind for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT]


def _add_ema(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("EMA", "a running mean of the weights, which is what is sampled from and saved")
    group.add_argument("--use_ema", action="store_true")
    group.add_argument("--ema_max_decay", type=float, default=0.9999)
    group.add_argument("--ema_inv_gamma", type=float, default=1.0)
    group.add_argument(
        "--ema_power", type=float, default=0.75, help="warm-up: decay 1 - (1 + step / inv_gamma)^-power"
    )


def _add_checkpoints(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints", "a resumed run equals an uninterrupted one, bit for bit on CPU")
    group.add_argument("--checkpointing_steps", type=int, default=500)
    group.add_argument("--checkpoints_total_limit", type=int, help="keep only so many, the newest")
    group.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or 'latest' (of --output_dir, if any)")


def _add_validation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("validation samples", "in OUTPUT_DIR/samples, and sent to the tracker")
    group.add_argument("--validation_steps", type=int, help="sample every so many steps (default: never)")
    group.add_argument("--num_validation_images", type=int, default=8)
    group.add_argument("--num_inference_steps", type=int, default=50)


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tracking", "every loss term, its number of rows, and the learning rate")
    group.add_argument("--report_to", default="tensorboard", choices=["tensorboard", "wandb", "none"])
    group.add_argument("--tracker_project_name", default="train_multimodal")
    group.add_argument("--logging_dir", default="logs", help="within --output_dir")


def _add_hub(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help="upload the final pipeline, no checkpoints")
    group.add_argument("--hub_model_id", help="the repo (default: the name of --output_dir)")
    group.add_argument("--hub_token")
    group.add_argument("--hub_private_repo", action="store_true")
    group.add_argument("--license", help="of the weights, for the card: apache-2.0, cc-by-4.0, other, ...")
    group.add_argument("--data_license", help="of the data (default: what the dataset itself says)")


def parse_task_weights(text: str) -> dict[str, float] | str:
    """`label=0.1,mask=1` -> a dict, or "uncertainty"."""
    if text == "uncertainty":
        return text
    pairs = [pair.partition("=") for pair in text.split(",")]
    try:
        weights = {name: float(weight) for name, _, weight in pairs}
    except ValueError as error:
        raise ValueError(f"{text!r}: accepted: NAME=0.1,NAME=1 or 'uncertainty'") from error
    if not all(0 <= weight < math.inf for weight in weights.values()):
        raise ValueError(f"{text!r}: weights must be finite and at least 0")
    return weights


def _argument(parse: Any) -> Any:
    """Let argparse show the message of a ValueError."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together.

    Raises:
        ValueError: naming the option.
    """
    sources = [args.dataset_name, args.train_data_dir, args.data_files]
    if sum(source is not None for source in sources) != 1:
        raise ValueError("give exactly one of --dataset_name, --train_data_dir, --data_files")
    if args.streaming and args.max_train_steps is None:
        raise ValueError("--streaming needs --max_train_steps: the length of a stream is not known")
    if args.streaming and args.cache_in_memory:
        raise ValueError("--cache_in_memory reads all rows at the start; leave out --streaming")
    if args.report_to == "wandb" and args.hub_token is not None:
        raise ValueError("--hub_token would be logged by wandb; use `hf auth login` instead")
    if args.push_to_hub:
        validate_repo_id(default_model_id(args))
    if args.no_flip_labels and not args.random_flip:
        raise ValueError("--no_flip_labels needs --random_flip")
    if args.pretrained_unet and (args.pretrained_model_name_or_path or args.model_config_name_or_path):
        raise ValueError("--pretrained_unet brings its own configuration: give no other model")
    if args.lora_rank is not None and not (args.pretrained_unet or args.pretrained_model_name_or_path):
        raise ValueError("--lora_rank adapts a model: give --pretrained_model_name_or_path or --pretrained_unet")
    if args.lora_rank is None and (args.lora_alpha is not None or args.lora_target_modules):
        raise ValueError("--lora_alpha and --lora_target_modules need --lora_rank")
    if args.vae and args.pretrained_model_name_or_path:
        raise ValueError("--vae: the pretrained pipeline decides whether there is one, and which")
    if args.resolution is not None and len(args.resolution) > 2:
        raise ValueError(f"--resolution has {len(args.resolution)} numbers; accepted: one, or height and width")
    if args.streaming and args.dataloader_num_workers > 1:
        raise ValueError("--streaming takes at most one worker: more would change the order of the rows")
    pretrained = args.pretrained_model_name_or_path
    if args.validation_steps and not pretrained and args.num_inference_steps > args.num_train_timesteps:
        raise ValueError(f"--num_inference_steps is {args.num_inference_steps}; accepted: up to --num_train_timesteps")
    names = [option.name for option in args.modalities]
    if len(set(names)) < len(names):
        raise ValueError(f"--modality: a name occurs twice in {names}")
    _check_ranges(args)


def _check_ranges(args: argparse.Namespace) -> None:
    positive = (
        "train_batch_size", "gradient_accumulation_steps", "max_train_steps", "num_train_epochs", "max_train_samples",
        "checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images",
        "num_inference_steps", "image_channels", "num_train_timesteps", "shuffle_buffer_size",
        "lora_rank", "lora_alpha",
    )  # fmt: skip
    for name in positive:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; accepted: 1 or more")
    if not 0 <= args.perception_share <= 1:
        raise ValueError(f"--perception_share is {args.perception_share}; accepted: 0 to 1")
    if args.snr_gamma is not None and not args.snr_gamma > 0:
        raise ValueError(f"--snr_gamma is {args.snr_gamma}; accepted: a number above 0, or inf")
    if args.query_weight <= 0:
        raise ValueError(f"--query_weight is {args.query_weight}; accepted: a number above 0")
    if args.random_crop < 0:
        raise ValueError(f"--random_crop is {args.random_crop}; accepted: 0 or more")


def recordable(args: argparse.Namespace) -> dict[str, int | float | str | bool]:
    """The options as trackers take them, without the token."""
    plain = (bool, int, float, str)
    values = {name: value for name, value in vars(args).items() if name != "hub_token" and value is not None}
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}


def default_model_id(args: argparse.Namespace) -> str:
    return args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))
