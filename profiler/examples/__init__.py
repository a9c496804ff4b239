"""Built-in workloads on real data that ships with a package; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.workload import Workload

DEFAULT_EXAMPLE = "digits-resnet"


def _digits_cnn() -> Workload:
    from profiler.examples.digits import digits_cnn

    return digits_cnn()


def _digits_resnet() -> Workload:
    from profiler.examples.digits import digits_resnet

    return digits_resnet()


def _text_gpt() -> Workload:
    from profiler.examples.text import text_gpt

    return text_gpt()


# The modules behind these import torch, which the names alone must not.
EXAMPLES: dict[str, Callable[[], Workload]] = {
    "digits-cnn": _digits_cnn,
    "digits-resnet": _digits_resnet,
    "text-gpt": _text_gpt,
}
