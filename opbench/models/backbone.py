"""What all backbones share: stages, the head's end, and the interface that users of timm expect."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from opbench.models.layers import Stage, to_nchw

__all__ = ["Backbone"]

GLOBAL_POOLS = ("avg", "")
FIRST_REDUCTION = 4
"""Pixels of the image per pixel of the first stage, in each direction; every later stage halves again."""


class Backbone(nn.Module, ABC):
    """A network of stages, each of them after a downsampling layer, with a classifier; interface as timm's models.

    `forward_features` gives the last stage's feature map in the layout of `channels_last`; `forward_head` the logits;
    `forward_intermediates` the maps of chosen stages as NCHW.

    Attributes:
        num_classes: of the classifier; 0 for none.
        num_features: channels of forward_features.
        head_hidden_size: channels that the classifier reads.
        feature_info: of each stage, channels (num_chs), reduction in pixels, and the name of its module.
        drop_rate: of the dropout before the classifier.
        global_pool: "avg", or "" for a feature map in place of logits.
    """

    channels_last: ClassVar[bool] = False
    """Whether stages work on NHWC; else on NCHW."""
    stages_name: ClassVar[str] = "stages"
    classifier_name: ClassVar[str] = "head"
    first_conv: ClassVar[str]
    """Name of the convolution that reads the image."""
    in_chans_name: ClassVar[str] = "in_chans"
    """The constructor's argument for the image's channels."""
    has_fixed_size: ClassVar[bool] = False
    """Whether the constructor takes img_size, and the model no other size."""
    has_head_dropout: ClassVar[bool] = True
    """Whether drop_rate is the dropout before the classifier; else it is an argument of the constructor."""
    stem_names: ClassVar[str]
    """Pattern of the parameters before the first stage."""
    block_names: ClassVar[str]
    """Pattern of the blocks' parameters, with the numbers of stage and block."""
    downsampling_names: ClassVar[str]
    """Pattern of the parameters between two stages, with a number."""
    stage_after_downsampling: ClassVar[int] = 1
    """To be added to this number for that of the later stage."""

    def __init__(
        self, *, num_classes: int | None, channels: Sequence[int], head_hidden_size: int | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes or 0
        self.num_features = channels[-1]
        self.head_hidden_size = head_hidden_size or channels[-1]
        self.global_pool = "avg"
        self.drop_rate = 0.0
        self.feature_info = [
            {"num_chs": count, "reduction": FIRST_REDUCTION * 2**index, "module": f"{self.stages_name}.{index}"}
            for index, count in enumerate(channels)
        ]

    @abstractmethod
    def _downsample(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What stage `index` reads: of the image for the first, else of the stage before."""

    @abstractmethod
    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        """From forward_features' map to what the classifier reads, (N, head_hidden_size); by `global_pool` a map."""

    @abstractmethod
    def _drop_after(self, last: int) -> None:
        """Remove the downsampling layers after stage `last`, and what the head has beside the classifier."""

    def _join(self, before_last: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """What forward_features gives, from the last two stages' maps."""
        return last

    def check_size(self, height: int, width: int) -> None:
        """ValueError where an image of this size cannot be computed; models that take any size have nothing to say."""

    def stage_modules(self) -> list[Stage]:
        """The stages, without the downsampling between them."""
        return list(getattr(self, self.stages_name))

    def _feature(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What forward_intermediates gives of stage `index`, NCHW."""
        return to_nchw(x) if self.channels_last else x

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last stage's feature map, for images (N, C, H, W)."""
        return self._run(x, (), len(self.stage_modules()))[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits (N, num_classes) of forward_features' map, or with `pre_logits` what the classifier reads."""
        x = self._pool(x)
        if self.drop_rate and self.has_head_dropout:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Feature maps of several stages.

        Args:
            x: images, (N, C, H, W).
            indices: of the stages; a number n for the last n, None for all.
            norm: of no effect, the stages end in their own normalisation where they have one.
            stop_early: compute no stage after the last one asked for.
            output_fmt: "NCHW".
            intermediates_only: give the list alone, without the last stage's map.

        Raises:
            ValueError: another output_fmt.
        """
        if str(output_fmt) not in ("NCHW", "Format.NCHW"):
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken = self._taken(indices)
        last, features = self._run(x, taken, max(taken) + 1 if stop_early else len(self.stage_modules()))
        return features if intermediates_only else (last, features)

    def _run(self, x: torch.Tensor, taken: Sequence[int], stages: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What the first stages give, as forward_features, and the maps of those that are taken."""
        self.check_size(x.shape[-2], x.shape[-1])
        before, features = x, []
        for index, stage in enumerate(self.stage_modules()[:stages]):
            before, x = x, stage(self._downsample(index, x))
            if index in taken:
                features.append(self._feature(index, x))
        return self._join(before, x), features

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """Stages by number from the first: all for None, the last n for a number n."""
        stages = len(self.stage_modules())
        wanted = range(stages) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if not wanted or any(not -stages <= index < stages for index in wanted):
            raise ValueError(f"indices must be of the {stages} stages, got {indices!r}")
        return [index % stages for index in wanted]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what forward_intermediates does not need for these stages; their indices, counted from the first."""
        taken = self._taken(indices)
        last = max(taken)
        if prune_head or last < len(self.stage_modules()) - 1:
            setattr(self, self.stages_name, nn.ModuleList(self.stage_modules()[: last + 1]))
            self._drop_after(last)
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last Linear, or Identity without classes."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for another number of classes; 0 removes it.

        Raises:
            ValueError: an unknown global_pool, or "" with a classifier.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in GLOBAL_POOLS:
            raise ValueError(f"global_pool must be 'avg' or '', got {pool!r}")
        if not pool and num_classes:
            raise ValueError(f"global_pool '' needs num_classes 0, got {num_classes}")
        self.global_pool, self.num_classes = pool, num_classes
        classifier: nn.Module = nn.Identity()
        if num_classes:
            like = next(self.parameters())
            classifier = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
        setattr(self, self.classifier_name, classifier)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the residual blocks for the backward pass, but compute them again."""
        for stage in self.stage_modules():
            stage.grad_checkpointing = enable

    def block(self, stage: int, index: int = 0) -> nn.Module:
        """A residual block of a stage; it maps stage_shape's tensor to one of the same shape.

        Raises:
            ValueError: there is no such stage or block.
        """
        stages = self.stage_modules()
        if not 0 <= stage < len(stages):
            raise ValueError(f"stage must be 0 to {len(stages) - 1}, got {stage}")
        blocks = stages[stage].residual_blocks()
        if not 0 <= index < len(blocks):
            raise ValueError(f"index must be 0 to {len(blocks) - 1} in stage {stage}, got {index}")
        return blocks[index]

    def stage_shape(self, stage: int, *, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape of the tensors inside a stage for images of this size, in the layout of `channels_last`.

        Raises:
            ValueError: a size that the model, or the stage's reduction, does not divide.
        """
        self.check_size(height, width)
        channels, reduction = self.feature_info[stage]["num_chs"], self.feature_info[stage]["reduction"]
        for name, size in (("height", height), ("width", width)):
            if size % reduction:
                raise ValueError(f"{name} must be a multiple of {reduction} for stage {stage}, got {size}")
        pixels = height // reduction, width // reduction
        return (batch, *pixels, channels) if self.channels_last else (batch, channels, *pixels)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, ...]]:
        """For timm's layer-wise learning rates: from a parameter's name to its place in the network.

        What lies between two stages goes with the first block of the later one, as the authors of InternImage have it.

        Args:
            coarse: tell stages apart, not blocks.
        """
        return partial(self._place, coarse)

    def _place(self, coarse: bool, name: str) -> tuple[int, ...]:
        if re.match(self.stem_names, name):
            return (0,)
        if found := re.match(self.downsampling_names, name):
            stage, block = int(found[1]) + self.stage_after_downsampling, 0
        elif found := re.match(self.block_names, name):
            stage, block = int(found[1]), int(found[2])
        else:
            return (2,)
        return (1, stage) if coarse else (1, stage, block)

    def adapt_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint made for another image size, made to fit where the model can; names with tensors."""
        return dict(state)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are trained without weight decay, beside biases and vectors."""
        return set()
