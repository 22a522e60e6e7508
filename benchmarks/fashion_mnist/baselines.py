"""Train the specialists that the joint model is held against: same trunk, steps, batches and data order.

    python benchmarks/fashion_mnist/baselines.py --arm ddpm --data_dir data/fashion_mnist --output_dir runs/ddpm

Arms: `ddpm` (plain), `class_conditional` (with 10 % of the labels dropped, for guidance), `classifier` (the trunk's
encoder, mean-pooled; also the independent classifier whose features give the Frechet distance) and `silhouette_unet`
(image -> mask). All of them are diffusers' own classes; the recipe is that of `examples/fashion_mnist/README.md`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_from_disk
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import nn

from mmdiff_pipelines.objective import min_snr_weights


TRUNK = {
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
    "norm_num_groups": 8,
    "attention_head_dim": 16,
}
NUM_CLASSES = 10
NULL_CLASS = NUM_CLASSES
LABEL_DROPOUT = 0.1


class Classifier(nn.Module):
    """The trunk's way down: images (B, 1, H, W) in [-1, 1] -> logits (B, 10), by way of 64 pooled features.

    Args:
        trunk_config: of the trunk.
        outputs: numbers that come out, the logits of ten classes by default.
    """

    def __init__(self, trunk_config: Mapping = TRUNK, outputs: int = NUM_CLASSES):
        super().__init__()
        trunk = UNet2DModel(**trunk_config)
        self.conv_in, self.down_blocks, self.mid_block = trunk.conv_in, trunk.down_blocks, trunk.mid_block
        # as wide as the time embedding that it stands for: nothing is noised here
        self.embedding = nn.Parameter(torch.zeros(1, trunk.time_embedding.linear_2.out_features))
        self.head = nn.Linear(trunk_config["block_out_channels"][-1], outputs)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 64)."""
        embedding = self.embedding.expand(len(images), -1)
        hidden = self.conv_in(images)
        for block in self.down_blocks:
            hidden, _ = block(hidden, embedding)
        return self.mid_block(hidden, embedding).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def load_arrays(data_dir: Path, split: str) -> dict[str, torch.Tensor]:
    """The whole split, decoded once: image and mask (n, 32, 32) uint8, label (n,) long."""
    rows = load_from_disk(str(data_dir))[split]
    return {
        "image": torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])),
        "mask": torch.from_numpy(np.stack([np.asarray(mask) for mask in rows["mask"]])),
        "label": torch.tensor(rows["label"]),
    }


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """(n, 32, 32) uint8 -> (n, 1, 32, 32) in [-1, 1]."""
    return images[:, None].float() / 127.5 - 1


def batch_indices(num_rows: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """The data order of the training entry: a permutation an epoch, seeded by seed + epoch; incomplete batches drop.

    Raises:
        ValueError: if there is no complete batch.
    """
    if num_rows < batch_size:
        raise ValueError(f"`batch_size` is {batch_size}; accepted: at most {num_rows}, the rows that there are.")
    epoch = 0
    while True:
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed + epoch))
        yield from order[: num_rows // batch_size * batch_size].view(-1, batch_size)
        epoch += 1


def noise_loss(
    noise_pred: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    scheduler: DDPMScheduler,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """The mean squared error of predicted noise, or of the scheduler's other target, with Min-SNR weights if asked for."""
    errors = (noise_pred.float() - noise).square().flatten(1).mean(1)
    if snr_gamma is not None:
        errors = min_snr_weights(scheduler, timesteps, snr_gamma) * errors
    return errors.mean()


def ddpm_loss(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    generator: torch.Generator,
    label_dropout: float = LABEL_DROPOUT,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """DDPM's; of a class-conditional model, with labels withheld from a share of the rows, and with Min-SNR weights."""
    images = to_pixels(batch["image"])
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (len(images),), generator=generator)
    labels, scheduler = None, DDPMScheduler()
    if model.config.num_class_embeds is not None:
        dropped = torch.rand(len(images), generator=generator) < label_dropout
        labels = torch.where(dropped, NULL_CLASS, batch["label"])
    noisy = scheduler.add_noise(images, noise, timesteps)
    noise_pred = model(noisy, timesteps, class_labels=labels).sample
    return noise_loss(noise_pred, noise, timesteps, scheduler, snr_gamma)


def classifier_loss(model: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    return F.cross_entropy(model(to_pixels(batch["image"])).float(), batch["label"])


def silhouette_loss(model: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    return F.cross_entropy(model(to_pixels(batch["image"]), 0).sample.float(), batch["mask"].long())


ARMS: dict[str, tuple[Callable[[], nn.Module], Callable]] = {
    "ddpm": (lambda: UNet2DModel(**TRUNK), ddpm_loss),
    "class_conditional": (lambda: UNet2DModel(**TRUNK, num_class_embeds=NUM_CLASSES + 1), ddpm_loss),
    "classifier": (Classifier, classifier_loss),
    "silhouette_unet": (lambda: UNet2DModel(**{**TRUNK, "out_channels": 2}), silhouette_loss),
}


class Run:
    """A training run that can be stopped and resumed.

    Args:
        args: of `parse_args`.
        build: makes the model.
        loss: (model, batch, generator) -> a scalar.
    """

    def __init__(self, args: argparse.Namespace, build: Callable[[], nn.Module], loss: Callable):
        self.args, self.loss = args, loss
        torch.manual_seed(args.seed)
        self.model = build()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.learning_rate, betas=(0.9, args.adam_beta2), weight_decay=0.0
        )
        self.lr_scheduler = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=args.warmup_steps, num_training_steps=args.steps
        )
        self.ema = EMAModel(self.model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
        self.step, self.seconds = 0, 0.0
        self.checkpoint = args.output_dir / "checkpoint.pt"

    def _identity(self) -> dict[str, int | float | str]:
        """What a resumed run must share with the one that it goes on with."""
        names = (
            "arm",
            "steps",
            "batch_size",
            "learning_rate",
            "adam_beta2",
            "warmup_steps",
            "mixed_precision",
            "seed",
        )
        return {name: getattr(self.args, name) for name in names}

    def save(self) -> None:
        names = ("model", "optimizer", "lr_scheduler", "ema")
        state = {name: getattr(self, name).state_dict() for name in names}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save({**state, "step": self.step, "seconds": self.seconds, "identity": self._identity()}, temporary)
        os.replace(temporary, self.checkpoint)

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            ValueError: if it is of another run: the learning rate would follow neither schedule.
        """
        state = torch.load(self.checkpoint, weights_only=False)
        if (found := state.pop("identity", None)) != self._identity():
            raise ValueError(f"{self.checkpoint} is of the run {found}, not {self._identity()}; use another folder.")
        self.step, self.seconds = state.pop("step"), state.pop("seconds")
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)

    def train(self, data: dict[str, torch.Tensor]) -> None:
        args = self.args
        batches = batch_indices(len(next(iter(data.values()))), args.batch_size, args.seed)
        for _ in range(self.step):
            next(batches)
        while self.step < args.steps:
            started = time.perf_counter()
            indices = next(batches)
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + self.step)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                loss = self.loss(self.model, {name: values[indices] for name, values in data.items()}, generator)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
            self.ema.step(self.model.parameters())
            self.step += 1
            self.seconds += time.perf_counter() - started
            if self.step % 100 == 0:
                rate = self.step * args.batch_size / self.seconds
                print(f"{args.arm} step {self.step} loss {loss.item():.4f} ({rate:.0f} images/s)", flush=True)
            if self.step % args.checkpointing_steps == 0:
                self.save()

    def finish(self) -> None:
        """The averaged weights, and what it took."""
        self.ema.copy_to(self.model.parameters())
        save_file(self.model.state_dict(), self.args.output_dir / "model.safetensors")
        record = {
            "arm": self.args.arm,
            "steps": self.step,
            "images_seen": self.step * self.args.batch_size,
            "training_seconds": round(self.seconds, 1),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "mixed_precision": self.args.mixed_precision,
            "seed": self.args.seed,
        }
        (self.args.output_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def load_baseline(arm: str, folder: Path) -> nn.Module:
    """A trained arm in evaluation mode."""
    from safetensors.torch import load_file

    model = ARMS[arm][0]()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().requires_grad_(False)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, required=True, help="which specialist to train")
    parser.add_argument("--data_dir", type=Path, required=True, help="what examples/fashion_mnist/prepare.py wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="weights, record and checkpoint go here")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--adam_beta2", type=float, default=0.999)
    parser.add_argument("--warmup_steps", type=int, default=250)
    parser.add_argument("--checkpointing_steps", type=int, default=1000)
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default="bf16", help="bf16 is slow on CPUs without it"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    run = Run(args, *ARMS[args.arm])
    if run.checkpoint.exists():
        run.resume()
        print(f"{args.arm}: resumed at step {run.step}", flush=True)
    run.train(load_arrays(args.data_dir, "train"))
    run.finish()


if __name__ == "__main__":
    main()
