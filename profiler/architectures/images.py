"""Image classifiers of torchvision and timm on random images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiler.architectures.libraries import import_library
from profiler.errors import UsageError
from profiler.nearest import did_you_mean
from profiler.workload import Workload

IMAGENET_CLASSES = 1000
# Random numbers for a thousand images take a second; neither memory nor time depends on what they are.
DIFFERENT_IMAGES = 16
# The weight of an auxiliary classifier's loss in GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842).
AUXILIARY_WEIGHT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomImages:
    """A batch maker of (images, labels), the same for the same size; `shape` is one image's (channels, height, width).

    Every 16 images repeat; labels do not.
    """

    shape: tuple[int, int, int]
    classes: int

    def __call__(self, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(min(size, DIFFERENT_IMAGES), *self.shape, generator=generator)
        return images[torch.arange(size) % len(images)], torch.randint(self.classes, (size,), generator=generator)


def classification_loss(outputs: Tensor | tuple[Tensor | None, ...], labels: Tensor) -> Tensor:
    """Cross-entropy; auxiliary classifiers, after the main one in a tuple, add 0.3 of theirs each."""
    if isinstance(outputs, Tensor):
        return functional.cross_entropy(outputs, labels)
    main, *auxiliary = (functional.cross_entropy(logits, labels) for logits in outputs if logits is not None)
    return main + AUXILIARY_WEIGHT * sum(auxiliary)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionModel:
    """Builds torchvision's model `name` with random weights."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> nn.Module:
        models = import_library("torchvision", f"torchvision:{self.name}").models
        model: nn.Module = models.get_model(self.name, weights=None, **self.options)
        return model


def torchvision_workload(name: str, *, image_size: int | None = None, classes: int | None = None) -> Workload:
    """The image classifier `name` of torchvision; the default image size is that of its published weights.

    Raises UsageError where torchvision is missing or broken, and for a name that is none of its image classifiers.
    """
    target = f"torchvision:{name}"
    models = import_library("torchvision", target).models
    classifiers = models.list_models(module=models)
    if name not in classifiers:
        if name in models.list_models():
            raise UsageError(f"{target} is no image classifier: write a factory for it (path/to/file.py:factory).")
        raise UsageError(
            f"torchvision has no model {name!r} (it has {len(classifiers)} image classifiers)."
            f"{did_you_mean(name, classifiers)}"
        )
    size = image_size or min(weights.transforms.keywords["crop_size"] for weights in models.get_model_weights(name))
    return Workload.supervised(
        TorchvisionModel(name=name, options=_torchvision_options(name, size, classes)),
        classification_loss,
        RandomImages(shape=(3, size, size), classes=classes or IMAGENET_CLASSES),
        name=f"torchvision-{name}",
    )


def _torchvision_options(name: str, image_size: int, classes: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    # The families whose weights depend on the image's size, each with its own word for it.
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    # Left open, both warn that their default initialisation will change; the quick one is what it changes to.
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmModel:
    """Builds timm's model `name` with random weights."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> nn.Module:
        timm = import_library("timm", f"timm:{self.name}")
        model: nn.Module = timm.create_model(self.name, pretrained=False, **self.options)
        return model


def timm_workload(name: str, *, image_size: int | None = None, classes: int | None = None) -> Workload:
    """The model `name` of timm as an image classifier; image size and classes default to its published configuration.

    A feature extractor, published without classes, gets 1,000. Raises UsageError where timm is missing or broken, and
    for a name that timm does not know.
    """
    timm = import_library("timm", f"timm:{name}")
    if not timm.is_model(name):
        known = timm.list_models()
        raise UsageError(f"timm has no model {name!r} (it has {len(known)}).{did_you_mean(name, known)}")
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part of the name after the dot
        raise UsageError(
            f"timm:{name} cannot be used: {str(error).rstrip('.')}. Leave out the tag after the dot."
        ) from error
    channels, height, width = published.input_size
    options: dict[str, Any] = {"num_classes": classes or published.num_classes or IMAGENET_CLASSES}
    if image_size is not None:
        height = width = image_size
        # Only models whose weights depend on the image's size take it as an argument.
        if published.fixed_input_size:
            options["img_size"] = image_size
    return Workload.supervised(
        TimmModel(name=name, options=options),
        classification_loss,
        RandomImages(shape=(channels, height, width), classes=options["num_classes"]),
        name=f"timm-{name}",
    )
