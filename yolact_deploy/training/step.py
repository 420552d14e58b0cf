"""One optimizer step: forward, losses, backward, clipping, update, average.

The device decides whether a step is made: if a loss or gradient is not finite, the fused optimizer leaves the weights
unchanged, and the host does not wait to know. The host counts such steps when it reads the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from yolact_deploy.config import YolactConfig
from yolact_deploy.model import YolactModel
from yolact_deploy.model.yolact import BATCH_NORM_IMAGES
from yolact_deploy.priors import make_priors
from yolact_deploy.training.data.batch import Batch, Normalizer
from yolact_deploy.training.distributed import World
from yolact_deploy.training.ema import WeightAverage
from yolact_deploy.training.losses import LossSettings, YolactLoss
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.schedule import learning_rate
from yolact_deploy.training.targets import GroundTruth

TERMS = ("box", "class", "mask", "semantic")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainStep:
    """A model with its optimizer, scaler and average, and the losses since they were last read.

    Args:
        model: is moved to the device of ``world`` and put in training mode
        recipe: how to train
        world: this process and the others, which all make the same calls
    """

    def __init__(self, model: YolactModel, recipe: Recipe, world: World) -> None:
        self.recipe, self.world = recipe, world
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.layout, self.dtype = layout, _DTYPES[recipe.amp]
        self.model = model.to(world.device, memory_format=layout)  # type: ignore[call-overload]
        #: whether batch normalizations keep their statistics and parameters
        self.frozen = freezes_batch_norm(recipe, world.share(recipe.batch))
        self.model.freeze_stages(recipe.freeze_stages)
        self.model.freeze_batch_norm(self.frozen)
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(recipe, self.parameters)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.amp == "fp16")
        self.average = WeightAverage(self.model, recipe.ema_decay) if recipe.ema_decay else None
        self.normalize = Normalizer(self.model.config).to(world.device)
        self.criterion = YolactLoss(LossSettings.of(self.model.config, class_loss=recipe.class_loss))
        self._sizes: dict[tuple[int, int], tuple[YolactConfig, Tensor]] = {}
        self._statistics = _moving_statistics(self.model)
        network: Any = torch.compile(self.model) if recipe.compile else self.model
        self.network = world.parallel(network)
        zero = torch.zeros((), device=world.device)
        #: sums of the loss terms over the steps since :meth:`read`, and counts of steps made and skipped
        self.sums = {name: zero.clone() for name in (*TERMS, "gradient", "made", "skipped")}
        #: consecutive skipped steps up to now
        self.in_a_row = zero.clone()

    def __call__(self, batch: Batch, step: int) -> None:
        """Make iteration ``step`` with the images and targets of this process."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step)
        kept = [value.clone() for value in self._statistics]
        losses = self._backward(batch.to(self.world.device), step)
        norm, fine = self._update()
        for value, before in zip(self._statistics, kept, strict=True):
            value.copy_(torch.where(fine, value, before))
        if self.average is not None:
            self.average.update(fine)
        self._count(losses, norm, fine)

    def _backward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Gradients of the sum of the losses; all of them are NaN if it is not finite."""
        images = self.normalize(batch.images).contiguous(memory_format=self.layout)
        with (
            self._at_size_of(batch),
            torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype is not torch.float32),
        ):
            outputs = self.network(images)
        truth = GroundTruth.of_batch(batch, self.model.config.num_classes)
        losses: dict[str, Tensor] = self.criterion(outputs, truth, step=step)
        total = torch.stack(list(losses.values())).sum()
        gate = total.detach() * 0 + 1  # 1 or NaN; a term has no gradient from values it does not use
        self.optimizer.zero_grad()
        self.scaler.scale(total * gate).backward()  # type: ignore[no-untyped-call]
        return losses

    def _at_size_of(self, batch: Batch) -> AbstractContextManager[None]:
        """The network at the input of a batch, where sizes vary; its priors keep their pixels, since objects do."""
        height, width = batch.images.shape[1:3]
        if (height, width) == self.model.config.input_shape:
            return nullcontext()
        if (height, width) not in self._sizes:
            config = _with_same_priors(self.model.config, height, width)
            self._sizes[height, width] = config, torch.from_numpy(make_priors(config).copy()).to(self.world.device)
        resized: AbstractContextManager[None] = self.model.resized(*self._sizes[height, width])
        return resized

    def _update(self) -> tuple[Tensor, Tensor]:
        """Update the weights; the norm of the gradient, and whether it was finite (else nothing changed)."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        if self.recipe.clip:
            clip_grads_with_norm_(self.parameters, self.recipe.clip, norm)
        fine = torch.isfinite(norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # What a scaler passes to a fused optimizer.
            self.optimizer.found_inf, self.optimizer.grad_scale = (~fine).to(torch.float32), None  # type: ignore[attr-defined]
            self.optimizer.step()
        return norm, fine

    @torch.no_grad()
    def _count(self, losses: dict[str, Tensor], norm: Tensor, fine: Tensor) -> None:
        zero = norm.new_zeros(())
        for name, value in {**losses, "gradient": norm}.items():
            self.sums.setdefault(name, zero.clone()).add_(torch.where(fine, value.detach(), zero))
        self.sums["made"].add_(fine)
        self.sums["skipped"].add_(~fine)
        self.in_a_row.add_(1).mul_(~fine)

    def read(self) -> tuple[dict[str, float], int]:
        """Means of the losses and of the gradient norm since the last call, and skipped steps; all processes must call.

        Waits for the device.
        """
        names = list(self.sums)
        values = dict(zip(names, self.world.mean(torch.stack(list(self.sums.values()))).tolist(), strict=True))
        for value in self.sums.values():
            value.zero_()
        made, skipped = values.pop("made"), int(values.pop("skipped"))
        return ({name: value / made for name, value in values.items()} if made else {}), skipped

    def weights(self) -> dict[str, Tensor]:
        """State dict to evaluate and export: the average if there is one."""
        return self.model.state_dict() if self.average is None else self.average.model_state()

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "sums": dict(self.sums),
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.sums = {name: value.to(self.world.device) for name, value in state["sums"].items()}
        self.in_a_row = state["in_a_row"].to(self.world.device)


def make_optimizer(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The fused optimizer over all parameters."""
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, 0.999)
        return torch.optim.AdamW(parameters, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    if recipe.momentum:
        # If the first step is skipped, a fused SGD would continue from uninitialized memory.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _with_same_priors(config: YolactConfig, height: int, width: int) -> YolactConfig:
    """The configuration at another input, with priors of as many pixels."""
    size = (height, width)
    if config.prior_size is None:
        return config.with_size(size, priors="pixels")
    sides = zip(config.prior_shape, size, config.input_shape, strict=True)
    rows, columns = (round(side * new / old) for side, new, old in sides)
    return replace(config, image_size=size, prior_size=(rows, columns))


def freezes_batch_norm(recipe: Recipe, images: int) -> bool:
    """Whether batch normalizations are frozen with so many images per step on each device."""
    if recipe.freeze_batch_norm == "auto":
        return images < BATCH_NORM_IMAGES
    return recipe.freeze_batch_norm == "always"


def _moving_statistics(model: nn.Module) -> list[Tensor]:
    """Buffers that a forward pass in training mode changes; a skipped step must not leave its NaN there."""
    moving = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    return [value for module in moving for value in module.buffers()]
