"""The training loop: batches -> draws -> loss -> step, with checkpoints from which it goes on exactly."""

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    set_seed,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..models import MultimodalUNet2DModel
from ..pipelines import MultimodalMultitaskPipeline
from .arguments import recordable
from .checkpoints import Progress, find_checkpoint, load_checkpoint, save_checkpoint
from .components import Components, build_components, task_weights
from .data import MemoryDataset, build_dataloader, example_rows
from .dry_run import describe
from .lora import describe_lora, save_lora
from .model_card import push_to_hub, refuse_old_scores, write_model_card
from .objective import MultitaskObjective
from .sharding import prepare_sharding, whole_unet
from .step_inputs import StepInputs
from .term_logs import check_finite, term_logs, term_sums
from .validation import sample_grid, write_grid


def train(args: argparse.Namespace) -> None:
    """Train as `args` of `parse_args` say, and save the pipeline in `args.output_dir`.

    Raises:
        ValueError: for data or options that do not fit; nothing has been written then.
        FloatingPointError: naming the loss term and the step, if one is not finite.
    """
    accelerator = build_accelerator(args)
    prepare_sharding(args, accelerator)
    set_seed(args.seed)
    with accelerator.main_process_first():
        components = build_components(args, accelerator.device)
    if args.dry_run:
        accelerator.print(describe(components, components.reader(example_rows(components.dataset))))
        return
    Trainer(args, accelerator, components).run()


def build_accelerator(args: argparse.Namespace) -> Accelerator:
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return Accelerator(
        # windows of accumulation go on over the end of an epoch, so every optimizer step is equally large
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=os.path.join(args.output_dir, args.logging_dir)
        ),
        # the global batch is what counts; each process takes its rows of it
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=args.seed),
    )


class Trainer:
    """One run.

    Args:
        args: of `parse_args`.
        accelerator: of `build_accelerator`.
        components: of `build_components`.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, components: Components):
        self.args, self.accelerator, self.components = args, accelerator, components
        self.unet, self.scheduler, self.options = components.unet, components.scheduler, components.options
        self.output_dir = Path(args.output_dir)
        self.global_batch_size = args.train_batch_size * accelerator.num_processes
        self.step_inputs = StepInputs(args, components, accelerator)
        if args.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._build_dataloader()
        self._build_optimizer()
        # with LoRA, what is frozen needs no mean
        self.averaged = [p for p in self.unet.parameters() if p.requires_grad or args.lora_rank is None]
        self.ema = self._build_ema()
        self.progress = Progress(self._identity())
        accelerator.register_for_checkpointing(*([self.ema] if self.ema else []), self.progress)

    def _build_dataloader(self) -> None:
        args, dataset, reader = self.args, self.components.dataset, self.components.reader
        if args.cache_in_memory:
            dataset = MemoryDataset(dataset, reader, args.dataloader_num_workers)
        dataloader = build_dataloader(dataset, reader, self.global_batch_size, args.dataloader_num_workers)
        if not isinstance(dataset, datasets.IterableDataset) and args.max_train_steps is None:
            batches = len(dataloader) * args.num_train_epochs
            args.max_train_steps = batches // args.gradient_accumulation_steps
            if args.max_train_steps == 0:
                raise ValueError(
                    f"--num_train_epochs {args.num_train_epochs} has {batches} batches, fewer than one step accumulates "
                    f"(--gradient_accumulation_steps {args.gradient_accumulation_steps})."
                )
        self.dataloader = self.accelerator.prepare(dataloader)

    def _build_optimizer(self) -> None:
        args = self.args
        scale = args.gradient_accumulation_steps * self.global_batch_size if args.scale_lr else 1
        objective = MultitaskObjective(
            self.unet, self.scheduler, task_weights(args, self.options), args.snr_gamma, args.query_weight
        )
        optimizer = torch.optim.AdamW(
            (parameter for parameter in objective.parameters() if parameter.requires_grad),
            lr=args.learning_rate * scale,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        lr_scheduler = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )  # fmt: skip
        self.tasks = objective.tasks
        self.objective, self.optimizer, self.lr_scheduler = self.accelerator.prepare(
            objective, optimizer, lr_scheduler
        )

    def _build_ema(self) -> EMAModel | None:
        if not self.args.use_ema:
            return None
        ema = EMAModel(
            self.averaged,
            decay=self.args.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=self.args.ema_inv_gamma,
            power=self.args.ema_power,
            foreach=True,
        )
        ema.to(self.accelerator.device)
        return ema

    def _identity(self) -> dict[str, int | str]:
        """What a resumed run must share with the one that it goes on with."""
        args, dataset = self.args, self.components.dataset
        return {
            "seed": args.seed,
            "global batch size": self.global_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "max_train_steps": args.max_train_steps,
            "rows": len(dataset) if hasattr(dataset, "__len__") else "stream",
            "LoRA": describe_lora(args),
            "scheduler": str({k: v for k, v in self.scheduler.config.items() if not k.startswith("_")}),
            "modalities": str({option.name: option.spec for option in self.options}),
        }

    def run(self) -> None:
        """Train to the end, and save the pipeline."""
        self.resume()
        args, batches = self.args, self.batches()
        if self.progress.step < args.max_train_steps:
            refuse_old_scores(self.output_dir)
        self._start_tracking()
        bar = tqdm(
            initial=self.progress.step, total=args.max_train_steps, desc="Steps",
            disable=not self.accelerator.is_local_main_process,
        )  # fmt: skip
        while self.progress.step < args.max_train_steps:
            started = time.perf_counter()
            logs = self.optimization_step(batches)
            self.progress.step += 1
            self.progress.record(logs, time.perf_counter() - started)
            bar.set_postfix({name: f"{value:.3g}" for name, value in logs.items() if name.endswith("loss")})
            bar.update()
            self.accelerator.log(logs, step=self.progress.step)
            if args.validation_steps and self.progress.step % args.validation_steps == 0:
                self.validate()
            if self.progress.step % args.checkpointing_steps == 0:
                save_checkpoint(self.accelerator, self.output_dir, self.progress.step, args.checkpoints_total_limit)
        bar.close()
        self.finish()

    def resume(self) -> None:
        """Load the checkpoint that --resume_from_checkpoint means, if any."""
        path = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        if path is not None:
            load_checkpoint(self.accelerator, path)
            if self.ema is not None:
                self.ema.to(self.accelerator.device)
            self.accelerator.print(f"Resumed from {path}, after step {self.progress.step}.")
        elif self.args.resume_from_checkpoint:
            self.accelerator.print(f"{self.output_dir} has no checkpoint; starting from the beginning.")

    def _start_tracking(self) -> None:
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.args.report_to != "none":
            self.accelerator.init_trackers(self.args.tracker_project_name, config=recordable(self.args))

    def batches(self) -> Iterator[dict[str, dict[str, torch.Tensor]]]:
        """This process's rows of every batch from where the run stands, epoch after epoch.

        Raises:
            ValueError: naming the step, for a row that cannot be read, or if there is no batch in an epoch.
        """
        progress = self.progress
        while True:
            self.dataloader.set_epoch(progress.epoch)
            dataloader = self.dataloader
            if progress.batch:
                dataloader = self.accelerator.skip_first_batches(dataloader, progress.batch)
            try:
                for batch in dataloader:
                    progress.batch += 1
                    yield batch
            except (OSError, ValueError) as error:  # pictures that are missing or damaged, among others
                raise ValueError(f"reading data at about step {progress.step + 1}: {error}") from error
            if progress.batch == 0:
                raise ValueError(f"the data have fewer rows than one batch of {self.global_batch_size}.")
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def optimization_step(self, batches: Iterator) -> dict[str, float]:
        """Accumulate gradients and step once; returns what is logged."""
        accumulation = self.args.gradient_accumulation_steps
        sums = 0
        for i in range(accumulation):
            arguments = self.step_inputs(next(batches), self.progress.step * accumulation + i)
            with self.accelerator.accumulate(self.objective):
                loss, terms = self.objective(**arguments)
                micro_sums = self.accelerator.reduce(term_sums(loss, terms, arguments["states"]), reduction="sum")
                check_finite(micro_sums, self.tasks, self.progress.step + 1)
                sums = sums + micro_sums
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self._clip_gradients()
                self.optimizer.step()
                self.lr_scheduler.step()
                self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.averaged)
        return term_logs(sums, self.tasks) | self._more_logs()

    def _clip_gradients(self) -> None:
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.args.max_grad_norm)
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm is {float(norm)} at step {self.progress.step + 1}; the last checkpoint stays."
            )

    def _more_logs(self) -> dict[str, float]:
        logs = {"lr": self.lr_scheduler.get_last_lr()[0]}
        uncertainty = self.accelerator.unwrap_model(self.objective).uncertainty
        if uncertainty is not None:
            logs |= {f"{name}_log_variance": s.item() for name, s in uncertainty.log_variances.items()}
        return logs

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The EMA weights in the model, for the time of the block."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.averaged)
        self.ema.copy_to(self.averaged)
        try:
            yield
        finally:
            self.ema.restore(self.averaged)

    def pipeline(self, unet: MultimodalUNet2DModel | None = None) -> MultimodalMultitaskPipeline:
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        return MultimodalMultitaskPipeline(unet or self.unet, scheduler, self.components.vae)

    def validate(self) -> None:
        """Sample with the weights that would be saved now."""
        if self.accelerator.is_main_process:
            self.unet.eval()
            with self.averaged_weights(), self.accelerator.autocast():
                grid = sample_grid(
                    self.pipeline(), self.args.num_validation_images, self.args.num_inference_steps, self.args.seed
                )
            self.unet.train()
            write_grid(grid, self.output_dir, self.progress.step, self.accelerator)
        self.accelerator.wait_for_everyone()

    def save(self, pipeline: MultimodalMultitaskPipeline) -> None:
        """Save what was trained: the pipeline, or the adapter of one."""
        if self.args.lora_rank is None:
            pipeline.save_pretrained(str(self.output_dir))
        else:
            save_lora(pipeline, self.args)

    def finish(self) -> None:
        """Save the pipeline and its card; upload them if asked."""
        unet = whole_unet(self.accelerator, self.objective, self.unet)
        if self.accelerator.is_main_process:
            with self.averaged_weights():
                self.save(self.pipeline(unet))
            write_model_card(self.args, self.components, self.progress, self.accelerator)
            if self.args.push_to_hub:
                self.accelerator.print(f"Uploaded: {push_to_hub(self.args)}")
        self.accelerator.end_training()
