"""The convolutional networks of the measured runs: torchvision's layers, in-place activations and parameter counts.

torchvision itself is not needed. What decides memory is kept: which activations work in place, which results a forward
still holds under a name, and in what order modules run. Weights are never loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.prediction_mobile_cnns import (
    V3_LARGE,
    V3_SMALL,
    SqueezeExcitation,
    conv_norm,
    mnasnet,
    mobilenet_v2,
    mobilenet_v3,
)

_VGG16: tuple[int, ...] = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
_VGG19: tuple[int, ...] = (
    *(64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0),
    *(512, 512, 512, 512, 0, 512, 512, 512, 512, 0),
)


def vgg(widths: Sequence[int], classes: int = 1000) -> nn.Module:
    """VGG without norms; a width of 0 is a pooling."""
    features: list[nn.Module] = []
    before = 3
    for width in widths:
        if width == 0:
            features.append(nn.MaxPool2d(2, 2))
        else:
            features += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
    return nn.Sequential(
        nn.Sequential(*features),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        *(nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Linear(4096, classes),
    )


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions, four times wider at its end."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and before == after
        self.downsample = None if same else conv_norm(before, after, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """The block's result, added in place."""
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        result: Tensor = self.relu(out)
        return result


def resnet(depths: Sequence[int], classes: int = 1000) -> nn.Module:
    """ResNet with bottlenecks."""
    blocks: list[nn.Module] = []
    before = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for index in range(depth):
            blocks.append(Bottleneck(before, width, 2 if stage and not index else 1))
            before = 4 * width
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        *blocks,
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)),
    )


class RegNetBlock(nn.Module):
    """RegNet's bottleneck; squeezed: channels in the middle of its squeeze and excitation, 0 for none."""

    def __init__(self, before: int, after: int, stride: int, group_width: int, squeezed: int) -> None:
        super().__init__()
        same = stride == 1 and before == after
        self.proj = None if same else conv_norm(before, after, 1, stride, activation=None)
        self.f = nn.Sequential(
            conv_norm(before, after, 1),
            conv_norm(after, after, 3, stride, after // group_width),
            *([SqueezeExcitation(after, squeezed, nn.Sigmoid())] if squeezed else []),
            conv_norm(after, after, 1, activation=None),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both paths, activated in place."""
        x = self.proj(x) + self.f(x) if self.proj is not None else x + self.f(x)
        result: Tensor = self.activation(x)
        return result


def regnet(
    widths: Sequence[int], depths: Sequence[int], group_width: int, *, squeezes: bool, classes: int = 1000
) -> nn.Module:
    """RegNetX, or RegNetY where it squeezes."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2)]
    before = 32
    for after, depth in zip(widths, depths, strict=True):
        for index in range(depth):
            squeezed = round(before / 4) if squeezes else 0
            layers.append(RegNetBlock(before, after, 1 if index else 2, group_width, squeezed))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """By way of channels last."""
        x = x.permute(0, 2, 3, 1)
        x = functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    """Dimensions in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """A view."""
        return x.permute(self.order)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt's block; dropped: the probability that a sample skips it."""

    def __init__(self, width: int, dropped: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1) * 1e-6)
        self.dropped = dropped

    def forward(self, x: Tensor) -> Tensor:
        """The block's result, added in place."""
        result: Tensor = self.layer_scale * self.block(x)
        if self.training and self.dropped > 0:
            kept = 1 - self.dropped
            noise = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(kept)
            noise.div_(kept)
            result = result * noise
        result += x
        return result


def convnext(width: int, depths: Sequence[int], dropped: float, classes: int = 1000) -> nn.Module:
    """ConvNeXt; dropped: what the last block's probability to be skipped is, from 0 in the first."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 4), ChannelNorm(width, eps=1e-6)]
    done, last = 0, sum(depths) - 1
    for stage, depth in enumerate(depths):
        if stage:
            layers += [ChannelNorm(width, eps=1e-6), nn.Conv2d(width, 2 * width, 2, 2)]
            width *= 2
        layers += [ConvNeXtBlock(width, dropped * (done + index) / last) for index in range(depth)]
        done += depth
    head = (ChannelNorm(width, eps=1e-6), nn.Flatten(), nn.Linear(width, classes))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), *head)


# By the names of the measured runs, two of which are spelt in their own way.
CNNS: dict[str, Callable[[], nn.Module]] = {
    "VGG16": lambda: vgg(_VGG16),
    "VGG19": lambda: vgg(_VGG19),
    "ResNet101": lambda: resnet((3, 4, 23, 3)),
    "ResNet152": lambda: resnet((3, 8, 36, 3)),
    "MobileNetV2": mobilenet_v2,
    "MobeNetV3Small": lambda: mobilenet_v3(V3_SMALL, 1024, 10),
    "MobeNetV3Large": lambda: mobilenet_v3(V3_LARGE, 1280, 10),
    "MnasNet": lambda: mnasnet(10),
    "RegNetX400MF": lambda: regnet((32, 64, 160, 400), (1, 2, 7, 12), 16, squeezes=False),
    "RegNetY400MF": lambda: regnet((48, 104, 208, 440), (1, 3, 6, 6), 8, squeezes=True),
    "ConvNeXtTiny": lambda: convnext(96, (3, 3, 9, 3), 0.1),
    "ConvNeXtBase": lambda: convnext(128, (3, 3, 27, 3), 0.5),
}
