"""Named architectures with random weights and synthetic inputs: `torchvision:NAME`, `timm:NAME`, `hf:NAME`.

Nothing is downloaded: memory and time do not depend on the values of weights and pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.errors import UsageError
from profiler.nearest import did_you_mean

if TYPE_CHECKING:
    from profiler.workload import Workload

# The prefix of a target, and the module that must be installed for it.
LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}


def named_architecture(
    target: str, *, image_size: int | None = None, sequence_length: int | None = None, classes: int | None = None
) -> Workload:
    """The workload that `target` names, such as "torchvision:resnet50", "timm:vit_base_patch16_224" or "hf:gpt2".

    image_size: pixels of a square image's side. sequence_length: tokens of a sample. classes: labels of a classifier;
    a language model of `hf:` becomes a sequence classifier with it. None is the architecture's own default.
    Raises UsageError for an unknown library or name, a library that is missing or broken, and an option that does not
    apply to the architecture.
    """
    library, _, name = target.partition(":")
    if library not in LIBRARIES:
        raise UsageError(
            f"{target!r} names no library: use {', '.join(f'{known}:NAME' for known in LIBRARIES)}."
            f"{did_you_mean(library, LIBRARIES)}"
        )
    if library == "hf":
        from profiler.architectures.huggingface import huggingface_workload

        return huggingface_workload(name, image_size=image_size, sequence_length=sequence_length, classes=classes)

    from profiler.architectures.images import timm_workload, torchvision_workload

    if sequence_length is not None:
        raise UsageError(f"--sequence-length does not apply to {target}, which takes images: leave it out.")
    image_workload = torchvision_workload if library == "torchvision" else timm_workload
    return image_workload(name, image_size=image_size, classes=classes)
