"""`digits-cnn` and `digits-resnet`: two classifiers of the 1,797 handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiler.errors import UsageError
from profiler.workload import Workload

CLASSES = 10
SIDE = 8
CNN_SIDE = 32
LARGEST_PIXEL = 16


def digits_cnn() -> Workload:
    """A small convolution, max-pool, ReLU, linear, sigmoid net, trained with BCELoss on one-hot targets.

    The digits are enlarged to 32x32: of the original 8x8 a sample takes so little memory that a page decides the edge.

    Raises UsageError where scikit-learn, which brings the digits, is missing.
    """
    images, classes = load_digits()
    return Workload.supervised(
        DigitsCNN,
        binary_cross_entropy,
        DigitsBatches(images=images, targets=functional.one_hot(classes, CLASSES).float(), side=CNN_SIDE),
        name="digits-cnn",
    )


def digits_resnet() -> Workload:
    """ResNet-18 (He et al. 2015, arXiv:1512.03385) with BatchNorm on digits enlarged to 64x64, cross-entropy.

    Two things differ from the paper, so that it is quick on two CPU cores: its stages have an eighth of
    the paper's filters (8, 16, 32, 64), and no max-pool follows the 7x7 stem of stride 2, for the images are small.
    Raises UsageError where scikit-learn, which brings the digits, is missing.
    """
    images, classes = load_digits()
    return Workload.supervised(
        DigitsResNet,
        nn.CrossEntropyLoss(),
        DigitsBatches(images=images, targets=classes, side=64),
        name="digits-resnet",
    )


def load_digits() -> tuple[Tensor, Tensor]:
    """The digits: images, floats from 0 to 1 of shape (1797, 1, 8, 8), and classes, integers of shape (1797,).

    Raises UsageError where scikit-learn is missing.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UsageError(
            "the digits examples need scikit-learn, which is not installed: pip install 'microbatch[examples]'."
        )
    # Reading the file takes a fiftieth of the time of importing sklearn.datasets, and every trial's worker does it.
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = _read_table(path) if path.exists() else _table_from_sklearn()
    images = table[:, :-1].float().div(LARGEST_PIXEL).reshape(-1, 1, SIDE, SIDE)
    return images, table[:, -1].long()


def _read_table(path: Path) -> Tensor:
    numbers = bytearray(map(int, gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",").split(b",")))
    return torch.frombuffer(numbers, dtype=torch.uint8).reshape(-1, SIDE * SIDE + 1)


def _table_from_sklearn() -> Tensor:
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = torch.from_numpy(digits.data).to(torch.uint8)
    return torch.cat([pixels, torch.from_numpy(digits.target).to(torch.uint8)[:, None]], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsBatches:
    """A batch maker: the first n digits, from the start again past the last one, enlarged to `side` pixels."""

    images: Tensor
    targets: Tensor
    side: int = SIDE

    def __call__(self, size: int) -> tuple[Tensor, Tensor]:
        indices = torch.arange(size) % len(self.images)
        images = self.images[indices]
        if self.side != SIDE:
            images = functional.interpolate(images, size=self.side, mode="bilinear", align_corners=False)
        return images, self.targets[indices]


def binary_cross_entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """BCELoss in fp32, also under autocast, which refuses it in half precision."""
    with torch.autocast(probabilities.device.type, enabled=False):
        loss: Tensor = nn.BCELoss()(probabilities.float(), targets)
        return loss


class DigitsCNN(nn.Module):
    """Convolution, max-pool, ReLU, linear, sigmoid: (n, 1, 32, 32) to (n, 10) probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, kernel_size=3, stride=1, padding=1)
        self.linear = nn.Linear(10 * (CNN_SIDE // 2) ** 2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """One probability for each class."""
        features = functional.relu(functional.max_pool2d(self.conv(images), 2))
        return torch.sigmoid(self.linear(features.flatten(1)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut around them, a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        """The block's output, height and width divided by its stride."""
        residual = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(features)))))
        return functional.relu(residual + self.shortcut(features))


class DigitsResNet(nn.Module):
    """ResNet-18 for one-channel images: four stages of two basic blocks of 8, 16, 32 and 64 filters."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        for stage, width in enumerate(widths):
            before = widths[max(stage - 1, 0)]
            blocks += [BasicBlock(before, width, stride=1 if stage == 0 else 2), BasicBlock(width, width, stride=1)]
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(widths[-1], CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """One logit for each class."""
        features: Tensor = self.blocks(self.stem(images))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits
