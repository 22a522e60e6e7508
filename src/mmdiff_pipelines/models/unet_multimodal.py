"""One UNet for all modalities: diffusers' UNet2D trunk, an encoder and a head for each modality, presence states.

The network sees z_t (the anchor's channels, then the reserved ones), is told per row and modality whether it is joint,
given, queried or absent, and returns its prediction for the anchor together with one for each modality. Whatever is
added to the trunk starts at zero, so a pretrained UNet is reproduced exactly before training.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..configuration import KnownArgumentsMixin, inherit_config
from ..modalities import ANCHOR, MODALITY_TYPES, Features, Geometry, Modality, Presence
from .lora import check_lora_fits, fetch_lora


@dataclass
class MultimodalUNet2DOutput(BaseOutput):
    """The outputs of one call.

    Args:
        sample: (B, C, H, W), the prediction for the anchor, of the scheduler's `prediction_type`.
        predictions: name -> what the modality's head says: logits or a mean.
    """

    sample: torch.Tensor
    predictions: dict[str, torch.Tensor]


def zeros(module: nn.Module) -> nn.Module:
    """`module` with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _public_config(model: UNet2DModel) -> dict:
    """The arguments that a model was made with."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


class MultimodalUNet2DModel(KnownArgumentsMixin, PeftAdapterMixin, AttentionMixin, UNet2DModel):
    """A [`UNet2DModel`] that denoises an image together with further modalities.

    Args:
        modalities: name -> {"type": a key of `MODALITY_TYPES`, and the arguments of that class}, for example
            `{"label": {"type": "categorical", "num_classes": 10, "space": "own", "channels": 1}}`.
        sample_size, in_channels, ...: those of [`UNet2DModel`]. `sample_size` is required; `in_channels` and
            `out_channels` are the anchor's C. Reserved channels come on top: C_z = `total_channels`.

    Raises:
        TypeError: a modality that is no dict.
        ValueError: an unknown modality type, a name that is reserved, or arguments that a modality does not take.
    """

    # what is added to the trunk is small, and part of every prediction
    _skip_layerwise_casting_patterns = [
        "norm", "^conv_reserved", "^conv_condition", "^presence_embedding", "^modality_modules",
    ]  # fmt: skip

    @inherit_config(UNet2DModel)
    def __init__(self, *, modalities: dict[str, dict] | None = None, **parent_arguments):
        if parent_arguments["class_embed_type"] is not None or parent_arguments["num_class_embeds"] is not None:
            raise ValueError("`num_class_embeds`, `class_embed_type`: describe the class as a categorical modality.")
        if parent_arguments["in_channels"] != parent_arguments["out_channels"]:
            raise ValueError("`in_channels` and `out_channels` must be equal: the anchor's channels.")
        super().__init__(**parent_arguments)
        width = self.conv_in.out_channels
        embedding_dim = self.time_embedding.linear_2.out_features
        self.modality_modules = nn.ModuleDict(self._build_modalities(modalities or {}, embedding_dim))

        self.channel_slices: dict[str, slice] = {ANCHOR: slice(0, self.config.in_channels)}
        self.total_channels = self.config.in_channels
        self.conv_condition = nn.ModuleDict()
        for name, modality in self.modality_modules.items():
            if modality.space == "shared":
                self.channel_slices[name] = self.channel_slices[ANCHOR]
                self.conv_condition[name] = zeros(nn.Conv2d(modality.channels, width, 3, padding=1, bias=False))
            else:
                self.channel_slices[name] = slice(self.total_channels, self.total_channels + modality.channels)
                self.total_channels += modality.channels
        reserved = self.total_channels - self.config.in_channels
        self.conv_reserved = zeros(nn.Conv2d(reserved, width, 3, padding=1, bias=False)) if reserved else None
        names = [ANCHOR, *self.modality_modules] if self.modality_modules else []
        self.presence_embedding = nn.ModuleDict(
            {name: zeros(nn.Embedding(len(Presence), embedding_dim)) for name in names}
        )

    def _build_modalities(self, specs: Mapping[str, dict], embedding_dim: int) -> dict[str, Modality]:
        size = self.config.sample_size
        if specs and size is None:
            raise ValueError("`sample_size` is None; with modalities it must be the height and width of the samples.")
        height, width = (size, size) if isinstance(size, int) else size or (None, None)
        features, bottleneck = self.config.block_out_channels[0], self.config.block_out_channels[-1]
        geometry = Geometry(self.config.in_channels, height, width, features, bottleneck + features, embedding_dim)
        modules = {}
        # saved configs have sorted keys: the order of channels must not depend on any other
        for name, spec in sorted(specs.items()):
            if name == ANCHOR or not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"`modalities` has the name {name!r}, which is reserved or no identifier.")
            if not isinstance(spec, Mapping):
                raise TypeError(f"`modalities[{name!r}]` is {spec!r}; accepted: a dict, {{'type': ..., ...}}.")
            arguments = dict(spec)
            modality_type = arguments.pop("type", None)
            if modality_type not in MODALITY_TYPES:
                raise ValueError(
                    f"`modalities[{name!r}]` has the type {modality_type!r}; known: {', '.join(MODALITY_TYPES)}. "
                    "A type of your own must be put into `mmdiff_pipelines.MODALITY_TYPES` before loading."
                )
            try:
                modules[name] = MODALITY_TYPES[modality_type](geometry, **arguments)
            except (TypeError, ValueError) as error:
                raise ValueError(f"`modalities[{name!r}]` of type {modality_type!r}: {error}") from error
        return modules

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "MultimodalUNet2DModel":
        """[`ModelMixin.from_pretrained`], which refuses weights that do not fit the config; diffusers would warn, and
        leave the rest at random.

        Raises:
            ValueError: naming weights that are missing, or too many.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        for trouble in ("missing_keys", "unexpected_keys"):
            if info.get(trouble):
                raise ValueError(
                    f"The weights in {str(pretrained_model_name_or_path)!r} do not fit their config.json: "
                    f"{trouble.replace('_', ' ')} {', '.join(sorted(info[trouble])[:5])} ({len(info[trouble])} in all)."
                )
        return (model, info) if wants_info else model

    @classmethod
    def from_unet(cls, unet: UNet2DModel, modalities: dict[str, dict] | None = None) -> "MultimodalUNet2DModel":
        """Start from a pretrained [`UNet2DModel`]: its weights, and new parts that change nothing until trained.

        Raises:
            ValueError: if `unet` is class-conditional, or its input and output channels differ.
        """
        model = cls(**_public_config(unet), modalities=modalities)
        model.load_state_dict(unet.state_dict(), strict=False)
        return model.to(unet.device, unet.dtype)

    def add_modality(self, name: str, spec: dict) -> "MultimodalUNet2DModel":
        """A copy of this model with one modality more, whose old outputs do not change until it is trained.

        A new model rather than a change in place, for the modalities are part of the config, which is frozen. As
        channels follow the order of names, those of the new one may stand between old ones (`channel_slices` tells);
        whatever these hold, the old outputs are what they were, in all states of the old modalities. In shared space
        that is so for the same z_t: what the scheduler puts there is the image's too.

        The scheduler must know the weight of the new name; if its settings are dicts, for example:

            aggregation = {**scheduler.config.aggregation, "depth": "decay"}
            modality_weights = {**scheduler.config.modality_weights, "depth": 1.0}
            scheduler = type(scheduler).from_config(
                scheduler.config, aggregation=aggregation, modality_weights=modality_weights
            )

        Args:
            name: of the new modality.
            spec: as an entry of `modalities`.

        Raises:
            ValueError: if the name is taken or reserved, the type or its arguments are wrong, or the model carries
                parameters that are not its own (adapters).
        """
        old = self.config.modalities or {}
        if name in old:
            raise ValueError(f"`name` is {name!r}, which the model has already; it has {sorted(old)}.")
        model = type(self)(**_public_config(self) | {"modalities": {**old, name: spec}})
        weights = self.state_dict()
        if unknown := weights.keys() - model.state_dict().keys():
            raise ValueError(f"the model has parameters of adapters, as {min(unknown)!r}: fuse or unload them first.")
        if "conv_reserved.weight" in weights:
            weights["conv_reserved.weight"] = self._spread_reserved(model)
        model.load_state_dict(weights, strict=False)
        return model.to(self.device, self.dtype).train(self.training)

    def _spread_reserved(self, larger: "MultimodalUNet2DModel") -> torch.Tensor:
        """The weight of `conv_reserved` for a model that has these modalities and more: zero for the others."""
        image = self.config.in_channels
        weight = torch.zeros_like(larger.conv_reserved.weight, device=self.device, dtype=self.dtype)
        for name, old in self.channel_slices.items():
            if name != ANCHOR and name not in self.conv_condition:
                new = larger.channel_slices[name]
                weight[:, new.start - image : new.stop - image] = self.conv_reserved.weight[
                    :, old.start - image : old.stop - image
                ].detach()
        return weight

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor],
        prefix: str | None = None,
        **kwargs,
    ) -> None:
        """[`PeftAdapterMixin.load_lora_adapter`] of what `save_lora_adapter` and training save. Needs PEFT.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, a repo, or a state dict.
            prefix: take only the keys under it, as "unet".
            kwargs: of the parent, `adapter_name` and `weight_name` among them.

        Raises:
            ValueError: for LoRA weights of another trunk, before anything is changed.
        """
        weights, metadata, options = fetch_lora(pretrained_model_name_or_path_or_dict, prefix, kwargs)
        check_lora_fits(self, weights)
        super().load_lora_adapter(weights, prefix=None, metadata=metadata, **options)

    def enable_group_offload(self, onload_device: torch.device | str, *args, **kwargs) -> None:
        """[`ModelMixin.enable_group_offload`]; encoders and heads, which work outside of `forward` too, stay onloaded."""
        modality_modules, self.modality_modules = self.modality_modules, nn.ModuleDict()
        super().enable_group_offload(torch.device(onload_device), *args, **kwargs)
        self.modality_modules = modality_modules.to(onload_device)

    @apply_forward_hook  # enable_model_cpu_offload
    def encode(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """E_i of every modality in `inputs`: name -> (B, C_z, H, W), zero outside the modality's channels.

        Args:
            inputs: name -> input tensor; the anchor, "image" (B, C, H, W), is its own encoding.

        Raises:
            ValueError: if a name is unknown.
        """
        for name in inputs:
            if name not in self.channel_slices:
                raise ValueError(f"{name!r} in `inputs` is no modality; known: {', '.join(self.channel_slices)}.")
        return {
            name: self._place(name, tensor if name == ANCHOR else self.modality_modules[name].encode(tensor))
            for name, tensor in inputs.items()
        }

    @apply_forward_hook
    def expected_encodings(self, predictions: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """E[e_i | z_t] of every prediction, which the posterior mean (4) needs: name -> (B, C_z, H, W)."""
        return {
            name: self._place(name, self.modality_modules[name].expected_encoding(prediction))
            for name, prediction in predictions.items()
        }

    def _place(self, name: str, encoding: torch.Tensor) -> torch.Tensor:
        channels = self.channel_slices[name]
        return F.pad(encoding, (0, 0, 0, 0, channels.start, self.total_channels - channels.stop))

    def impose_given(
        self, sample: torch.Tensor, encodings: Mapping[str, torch.Tensor], states: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Overwrite the own channels of what is given with its clean encoding; arguments as `forward`."""
        own = [name for name in encodings if name in states and name not in self.conv_condition]
        if not own:
            return sample
        sample = sample.clone()
        for name in own:
            channels = self.channel_slices[name]
            given = (states[name] == Presence.GIVEN.value).view(-1, 1, 1, 1)
            clean = encodings[name][:, channels].to(sample.dtype)
            sample[:, channels] = torch.where(given, clean, sample[:, channels])
        return sample

    def _embed(self, timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
        """Time embedding, as UNet2DModel makes it: (B, embedding_dim)."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        return self.time_embedding(self.time_proj(timesteps).to(self.dtype))

    def _condition(
        self,
        hidden: torch.Tensor,
        embedding: torch.Tensor,
        sample: torch.Tensor,
        encodings: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tell the network the state of every modality, what is given, and what is joint where it is to condition, too."""
        for name, presence_embedding in self.presence_embedding.items():
            embedding = embedding + presence_embedding(states[name])
        for name, modality in self.modality_modules.items():
            told, code = states[name] == Presence.GIVEN.value, None
            if name in encodings:
                code = encodings[name][:, self.channel_slices[name]].to(hidden.dtype) * told.view(-1, 1, 1, 1)
                if name in self.conv_condition:
                    hidden = hidden + self.conv_condition[name](code)
            if modality.condition_on_noisy:  # where it is given, its channels are clean
                told = told | (states[name] == Presence.JOINT.value)
                code = sample[:, self.channel_slices[name]].to(hidden.dtype)
            condition = modality.condition(code) if code is not None else None
            if condition is not None:
                embedding = embedding + condition * told.view(-1, 1)
        return hidden, embedding

    def _complete_states(
        self,
        states: Mapping[str, torch.Tensor] | None,
        encodings: Mapping[str, torch.Tensor],
        sample: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        joint = torch.full((sample.shape[0],), int(Presence.JOINT), dtype=torch.long, device=sample.device)
        known = {ANCHOR: joint} | dict.fromkeys(self.modality_modules, joint)
        for name in [*(states or {}), *encodings]:
            if name not in known:
                raise ValueError(f"{name!r} in `states` or `encodings` is no modality; known: {', '.join(known)}.")
        return known | {name: state.to(sample.device) for name, state in (states or {}).items()}

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encodings: Mapping[str, torch.Tensor] | None = None,
        states: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> MultimodalUNet2DOutput | tuple:
        """One pass of the trunk and all heads.

        Args:
            sample: (B, C_z, H, W), z_t.
            timestep: scalar or (B,).
            encodings: name -> (B, C_z, H, W), the clean encodings of what is given; "image" is the clean anchor. Rows
                whose state is not GIVEN are ignored.
            states: name -> (B,) long of [`Presence`]; names left out are JOINT.
            return_dict: else a tuple (sample, predictions).

        Returns:
            [`MultimodalUNet2DOutput`].

        Raises:
            ValueError: if `sample` has not C_z channels, or a name is unknown.
        """
        if sample.shape[1] != self.total_channels:
            raise ValueError(f"`sample` has {sample.shape[1]} channels; this model takes {self.total_channels}.")
        encodings = encodings or {}
        states = self._complete_states(states, encodings, sample)
        sample = self.impose_given(sample, encodings, states)
        anchor, reserved = sample.split(
            [self.config.in_channels, self.total_channels - self.config.in_channels], dim=1
        )
        if self.config.center_input_sample:
            anchor = 2 * anchor - 1.0

        embedding = self._embed(timestep, sample)
        hidden = self.conv_in(anchor)
        if self.conv_reserved is not None:
            hidden = hidden + self.conv_reserved(reserved)
        hidden, embedding = self._condition(hidden, embedding, sample, encodings, states)

        features, skip_sample = self._trunk(hidden, embedding, anchor)
        output = self.conv_out(features.map)
        if skip_sample is not None:
            output = output + skip_sample
        if self.config.time_embedding_type == "fourier":
            output = output / torch.as_tensor(timestep, device=output.device).expand(len(output)).view(-1, 1, 1, 1)

        predictions = {name: modality.predict(features) for name, modality in self.modality_modules.items()}
        if not return_dict:
            return output, predictions
        return MultimodalUNet2DOutput(sample=output, predictions=predictions)

    def _trunk(
        self, hidden: torch.Tensor, embedding: torch.Tensor, skip_sample: torch.Tensor
    ) -> tuple[Features, torch.Tensor | None]:
        """UNet2DModel's own blocks, from after `conv_in` to before `conv_out`; also the skip output of skip blocks."""
        residuals = (hidden,)
        for block in self.down_blocks:
            if hasattr(block, "skip_conv"):
                hidden, new_residuals, skip_sample = block(hidden, temb=embedding, skip_sample=skip_sample)
            else:
                hidden, new_residuals = block(hidden, temb=embedding)
            residuals += new_residuals
        if self.mid_block is not None:
            hidden = self.mid_block(hidden, embedding)
        bottleneck = hidden

        skip_sample = None
        for block in self.up_blocks:
            count = len(block.resnets)
            residuals, block_residuals = residuals[:-count], residuals[-count:]
            if hasattr(block, "skip_conv"):
                hidden, skip_sample = block(hidden, block_residuals, embedding, skip_sample)
            else:
                hidden = block(hidden, block_residuals, embedding)
        hidden = self.conv_act(self.conv_norm_out(hidden))
        pooled = torch.cat([bottleneck.mean((2, 3)), hidden.mean((2, 3))], dim=1)
        return Features(map=hidden, pooled=pooled), skip_sample
