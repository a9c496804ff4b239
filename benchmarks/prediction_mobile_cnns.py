"""The mobile networks of the measured runs, and the parts that they share with others; see `benchmarks.prediction_cnns`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def conv_norm(
    before: int,
    after: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    activation: Callable[..., nn.Module] | None = nn.ReLU,
    eps: float = 1e-5,
) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, a BatchNorm and, if any, an activation in place."""
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=eps),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation(inplace=True)]))


class Residual(nn.Module):
    """`block` with its input added: in place where `inplace`."""

    def __init__(self, block: nn.Module, *, inplace: bool) -> None:
        super().__init__()
        self.block, self.inplace = block, inplace

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        result: Tensor = self.block(x)
        if self.inplace:
            result += x
            return result
        return result + x


def _maybe_residual(block: nn.Module, before: int, after: int, stride: int, *, inplace: bool) -> nn.Module:
    return Residual(block, inplace=inplace) if stride == 1 and before == after else block


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """MobileNetV2 of width 1."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, activation=nn.ReLU6)]
    before = 32
    for expansion, after, repeats, first_stride in stages:
        for index in range(repeats):
            stride, hidden = first_stride if index == 0 else 1, before * expansion
            widen = [] if expansion == 1 else [conv_norm(before, hidden, 1, activation=nn.ReLU6)]
            block = nn.Sequential(
                *widen,
                conv_norm(hidden, hidden, 3, stride, hidden, activation=nn.ReLU6),
                *(nn.Conv2d(hidden, after, 1, bias=False), nn.BatchNorm2d(after)),
            )
            layers.append(_maybe_residual(block, before, after, stride, inplace=False))
            before = after
    layers.append(conv_norm(before, 1280, 1, activation=nn.ReLU6))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, classes))


class SqueezeExcitation(nn.Module):
    """Channels weighted by what a small network makes of their means; `gate` ends it."""

    def __init__(self, channels: int, squeezed: int, gate: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1), gate
        )

    def forward(self, x: Tensor) -> Tensor:
        """The weighted channels."""
        scale: Tensor = self.scale(x)
        return scale * x


# Kernel, expanded channels, output channels, whether squeezed and excited, whether Hardswish (else ReLU), stride.
_Row = tuple[int, int, int, bool, bool, int]
V3_SMALL: tuple[_Row, ...] = (
    *((3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1)),
    *((5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1)),
    *((5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1)),
    *((5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1)),
)
V3_LARGE: tuple[_Row, ...] = (
    *((3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1)),
    *((5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1)),
    *((3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1)),
    *((3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1)),
    *((5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1)),
)


def _divisible(channels: float) -> int:
    """The nearest multiple of 8, not more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def mobilenet_v3(rows: Sequence[_Row], last: int, classes: int) -> nn.Module:
    """MobileNetV3; `last` channels before the classifier's end."""
    layers: list[nn.Module] = [conv_norm(3, 16, 3, 2, activation=nn.Hardswish, eps=1e-3)]
    before = 16
    for kernel, hidden, after, squeezes, hardswish, stride in rows:
        activation = nn.Hardswish if hardswish else nn.ReLU
        block: list[nn.Module] = []
        if hidden != before:
            block.append(conv_norm(before, hidden, 1, activation=activation, eps=1e-3))
        block.append(conv_norm(hidden, hidden, kernel, stride, hidden, activation=activation, eps=1e-3))
        if squeezes:
            block.append(SqueezeExcitation(hidden, _divisible(hidden // 4), nn.Hardsigmoid()))
        block.append(conv_norm(hidden, after, 1, activation=None, eps=1e-3))
        layers.append(_maybe_residual(nn.Sequential(*block), before, after, stride, inplace=True))
        before = after
    layers.append(conv_norm(before, 6 * before, 1, activation=nn.Hardswish, eps=1e-3))
    head = (nn.Linear(6 * before, last), nn.Hardswish(inplace=True), nn.Dropout(0.2, inplace=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head, nn.Linear(last, classes))


class Mean(nn.Module):
    """The mean of every channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Batch by channels."""
        return x.mean([2, 3])


def mnasnet(classes: int) -> nn.Module:
    """MNASNet of width 1."""
    stages = (
        (3, 24, 2, 3, 3),
        (5, 40, 2, 3, 3),
        (5, 80, 2, 6, 3),
        (3, 96, 1, 6, 2),
        (5, 192, 2, 6, 4),
        (3, 320, 1, 6, 1),
    )
    layers: list[nn.Module] = [
        conv_norm(3, 32, 3, 2),
        conv_norm(32, 32, 3, 1, 32),
        conv_norm(32, 16, 1, activation=None),
    ]
    before = 16
    for kernel, after, first_stride, expansion, repeats in stages:
        for index in range(repeats):
            stride, hidden = first_stride if index == 0 else 1, before * expansion
            block = nn.Sequential(
                conv_norm(before, hidden, 1),
                conv_norm(hidden, hidden, kernel, stride, hidden),
                conv_norm(hidden, after, 1, activation=None),
            )
            layers.append(_maybe_residual(block, before, after, stride, inplace=False))
            before = after
    layers.append(conv_norm(before, 1280, 1))
    return nn.Sequential(*layers, Mean(), nn.Dropout(0.2, inplace=True), nn.Linear(1280, classes))
