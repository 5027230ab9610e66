"""Image classifiers of a backbone and a head, trained as `cifar10` and `finetune` do it."""

# mypy: allow-untyped-calls
# (torch does not annotate `Tensor.split`)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.examples.checkpoint import load_checkpoint, save_checkpoint
from orchestrator.examples.images import Batches, Images, Normalised, memory_format
from orchestrator.examples.optimizers import make_optimizer, make_schedule, step
from orchestrator.runner import Trial, TrialPruned
from orchestrator.training import Backbone, Parts, backbone, mlp_head

if TYPE_CHECKING:
    from omegaconf import DictConfig

EVALUATED_AT_ONCE = 1000  # images


class Classifier(nn.Module):
    """A backbone and a head: from images (N, 3, H, W) to logits (N, classes)."""

    def __init__(self, trunk: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits


def classifier(
    cfg: Mapping[str, Any], n_classes: int, trial: Trial, *, cifar_stem: bool
) -> Classifier:
    """Returns the model that ``params.model`` describes, on the trial's device.

    Its weights are drawn by the trial's seed.

    Args:
        cfg: ``backbone``, perhaps ``frozen``, ``weights`` and ``download`` (as `backbone` has
            them), and the arguments of `mlp_head`.
        n_classes: Number of classes.
        trial: The running trial.
        cifar_stem: As of `backbone`.
    """
    options = dict(cfg)
    torch.manual_seed(trial.seed)
    trunk = backbone(
        options.pop("backbone"),
        cifar_stem=cifar_stem,
        **{
            name: options.pop(name) for name in ("frozen", "weights", "download") if name in options
        },
    )
    model = Classifier(trunk, mlp_head(trunk.out_features, n_classes, **options))
    model.to(trial.device)
    for kernels in (parameter for parameter in model.parameters() if parameter.dim() == 4):
        kernels.data = kernels.data.contiguous(memory_format=memory_format(kernels))
    return model


class Precision:
    """Mixed precision on a GPU; on a CPU everything is computed in 32 bits.

    The 16 bits are bfloat16 where the GPU computes with them. Else they are float16, but only
    with a scaler of the loss, without which small gradients vanish.
    """

    def __init__(self, trial: Trial, *, mixed: bool, scaled: bool) -> None:
        self._kind = torch.device(trial.device).type
        self._dtype: torch.dtype | None = None
        if mixed and self._kind == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                self._dtype = torch.bfloat16
            elif scaled:
                self._dtype = torch.float16
        self.scaler = torch.amp.GradScaler(self._kind, enabled=self._dtype is torch.float16)

    def autocast(self) -> torch.autocast:
        """Within it, forward passes are computed in mixed precision."""
        return torch.autocast(self._kind, dtype=self._dtype, enabled=self._dtype is not None)


def parts(cfg: DictConfig, images: Images, model: Classifier, precision: Precision) -> Parts:
    """The parts that a training and a probe of it have in common."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        with precision.autocast():
            return F.cross_entropy(model(inputs), labels)

    return Parts(
        model=model,
        optimizer=make_optimizer(model=model, **cfg.optim),
        loss_fn=F.cross_entropy,
        batches=Batches(images, cfg.data.batch_size, cfg.data.augmentation),
        step=loss,
    )


def fit(
    cfg: DictConfig, trial: Trial, images: Images, model: Classifier
) -> dict[str, float] | None:
    """Trains a classifier and returns its validation accuracy and loss after the last epoch.

    None if stopped earlier.

    As in `digits`, every epoch draws its random numbers from the trial's seed and the epoch's
    number, so that a trial that continues from a checkpoint ends as if it had never been
    interrupted.

    Args:
        cfg: ``data.batch_size``, ``data.augmentation``; ``optim`` and ``schedule``, as
            `make_optimizer` and `make_schedule` have them; ``train.epochs``,
            ``train.mixed_precision``, and ``train.checkpoint_every``, in epochs.
        trial: The running trial.
        images: What to train on, and to judge by.
        model: What to train.

    Raises:
        TrialPruned: The study's pruner stopped the trial.
    """
    # The fastest algorithms of cuDNN add in another order each time.
    torch.backends.cudnn.deterministic = True
    precision = Precision(trial, mixed=cfg.train.mixed_precision, scaled=True)
    training = parts(cfg, images, model, precision)
    batches, optimizer = training.batches, training.optimizer
    assert isinstance(batches, Batches)
    schedule = make_schedule(cfg.schedule, optimizer, cfg.train.epochs * len(batches))

    checkpoint = trial.checkpoint_dir / "last.pt"
    saved = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "scaler": precision.scaler,
    }
    done = load_checkpoint(checkpoint, saved)
    accuracy, loss = evaluate(model, images, batches.normalised, precision)

    for epoch in range(done, cfg.train.epochs):
        torch.manual_seed(trial.seed + 1 + epoch)  # the order of the images, and dropout
        model.train()
        for batch in batches:
            step(training, batch, precision.scaler)
            schedule.step()

        accuracy, loss = evaluate(model, images, batches.normalised, precision)
        trial.report(accuracy, step=epoch)
        if trial.should_prune():
            raise TrialPruned
        stopping = trial.should_stop()
        if stopping or (epoch + 1) % cfg.train.checkpoint_every == 0:
            save_checkpoint(checkpoint, saved, epochs=epoch + 1)
        if stopping and epoch + 1 < cfg.train.epochs:
            return None  # another worker continues from the checkpoint

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"val_accuracy": accuracy, "val_loss": loss, "trained_parameters": trained}


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Images, normalised: Normalised, precision: Precision
) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats) on the validation set."""
    model.eval()
    right = torch.zeros((), device=images.labels.device)
    loss = torch.zeros_like(right)
    for inputs, labels in zip(
        images.validation.split(EVALUATED_AT_ONCE),
        images.validation_labels.split(EVALUATED_AT_ONCE),
        strict=True,
    ):
        with precision.autocast():
            logits = model(normalised(inputs)).float()
        right += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
    count = len(images.validation)
    return right.item() / count, loss.item() / count
