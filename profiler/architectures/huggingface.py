"""Transformers' architectures with their default configuration on random tokens or images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.architectures.images import RandomImages
from profiler.architectures.libraries import import_library
from profiler.errors import UsageError
from profiler.nearest import did_you_mean
from profiler.workload import Workload

IGNORED = -100  # the label that transformers' losses leave out
MASKED_SHARE = 0.15  # of the tokens that BERT predicts (Devlin et al. 2018, arXiv:1810.04805)
LONGEST_DEFAULT = 1024
DEFAULT_IMAGE_SIZE = 224

# Their first position is the one after the padding token's number, so that many positions are never used.
# fmt: off
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})
# fmt: on

# Tried in this order. A type in the first two is most often an encoder, of which the second makes a decoder.
LANGUAGE_TASKS = ("MaskedLM", "CausalLM", "Seq2SeqLM")
MAPPINGS = {
    "MaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "CausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "Seq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "ImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "SequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
}


def huggingface_workload(
    name: str, *, image_size: int | None = None, sequence_length: int | None = None, classes: int | None = None
) -> Workload:
    """The model type `name` ("gpt2", "bert", "llama", "vit") with its default configuration, as `config_workload` says.

    Raises UsageError where transformers is missing or broken, for a name that it does not know, and for an option that
    does not apply.
    """
    target = f"hf:{name}"
    transformers = import_library("transformers", target)
    if name not in transformers.CONFIG_MAPPING:
        hint = " A repository on the Hub would have to be downloaded." if "/" in name else ""
        known = list(transformers.CONFIG_MAPPING.keys())
        raise UsageError(
            f"transformers has no model type {name!r} (it has {len(known)}).{hint}"
            f"{did_you_mean(name.rpartition('/')[2], known)}"
        )
    try:
        config = transformers.CONFIG_MAPPING[name]()
        config.get_text_config()
    except Exception as error:  # a type whose configuration has no usable default, each with an error of its own
        raise UsageError(
            f"{target} has no default configuration ({type(error).__name__}: {' '.join(str(error).split())}): "
            "write a factory with a configuration of yours (path/to/file.py:factory)."
        ) from error
    return config_workload(
        config, target=target, image_size=image_size, sequence_length=sequence_length, classes=classes
    )


def config_workload(
    config: Any,
    *,
    target: str,
    image_size: int | None = None,
    sequence_length: int | None = None,
    classes: int | None = None,
) -> Workload:
    """The workload of a transformers configuration; `target` is what messages call it.

    A language model trains with its own loss over the tokens that count, and `loss_items` counts those: a causal one
    predicts all but the first token of a sample, a masked one 15 % of them, an encoder-decoder all. With `classes` it
    is a sequence classifier. Without `sequence_length` a sample has as many tokens as the model has positions, 1,024
    at most. A vision model is an image classifier. Raises UsageError where none of these fits, or an option does not.
    """
    transformers = import_library("transformers", target)
    task = _task_of(config, transformers, classes)
    if task is None and classes is not None:
        raise UsageError(f"--classes does not apply to {target}, which has no classifier: leave it out.")
    if task is None:
        raise UsageError(
            f"{target} is no language model and no image classifier: write a factory (path/to/file.py:factory)."
        )
    config.architectures = config.architectures or []  # None is the default, and breaks types of several models
    if task.endswith("Classification"):
        config.num_labels = config.num_labels if classes is None else classes
        config.problem_type = "single_label_classification"
    if task == "ImageClassification":
        if sequence_length is not None:
            raise UsageError(f"--sequence-length does not apply to {target}, which takes images: leave it out.")
        make_batch: Callable[[int], dict[str, Tensor]] = _images(config, image_size)
    else:
        if image_size is not None:
            raise UsageError(f"--image-size does not apply to {target}, which takes tokens: leave it out.")
        make_batch = _tokens(config, task, sequence_length, target)
    return Workload(
        model=ConfigModel(config=config, auto_class=f"AutoModelFor{task}"),
        make_batch=make_batch,
        loss=own_loss,
        loss_items=count_labels if task in LANGUAGE_TASKS else None,
        name=target.replace(":", "-"),
    )


def _task_of(config: Any, transformers: Any, classes: int | None) -> str | None:
    """The end of the auto class's name; None where none fits."""
    has_vocabulary = isinstance(getattr(config.get_text_config(), "vocab_size", None), int)
    # Speech models are encoder-decoders too, but take sound.
    takes_sound = type(config) in transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    tasks = list(MAPPINGS) if has_vocabulary and not takes_sound else ["ImageClassification"]
    if classes is not None:
        tasks = [task for task in tasks if task not in LANGUAGE_TASKS]
    if not config.is_encoder_decoder:
        tasks = [task for task in tasks if task != "Seq2SeqLM"]  # which also lists models that hear or see
    return next((task for task in tasks if type(config) in getattr(transformers, MAPPINGS[task])), None)


def _images(config: Any, image_size: int | None) -> ImageBatches:
    vision = getattr(config, "vision_config", config)
    own = getattr(vision, "image_size", None)
    if image_size is not None and own is not None:
        vision.image_size = image_size if isinstance(own, int) else (image_size, image_size)
    size = image_size or own or DEFAULT_IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    return ImageBatches(images=RandomImages(shape=(channels, height, width), classes=config.num_labels))


def _tokens(config: Any, task: str, sequence_length: int | None, target: str) -> TokenBatches:
    text = config.get_text_config()
    positions = _positions(text)
    length = sequence_length or min(positions or LONGEST_DEFAULT, LONGEST_DEFAULT)
    if positions is not None and length > positions:
        raise UsageError(
            f"--sequence-length {length} is more than the {positions} positions of {target}: use {positions} at most, "
            "or a factory with a configuration of yours (path/to/file.py:factory)."
        )
    if length < 2:
        raise UsageError(f"--sequence-length {length} leaves {target} no token to predict: use 2 at least.")
    text.use_cache = False
    padding = getattr(text, "pad_token_id", None)
    if task == "SequenceClassification" and padding is None:
        text.pad_token_id = padding = 0  # decoders look for the last token before the padding
    if task == "Seq2SeqLM" and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = padding or 0  # as in T5's published configurations
    return TokenBatches(
        vocabulary_size=text.vocab_size,
        padding=padding,
        length=length,
        labels=LABELS.get(task, ClassLabels(classes=config.num_labels)),
    )


def _positions(text: Any) -> int | None:
    """How many tokens a sample may have; None where nothing limits it."""
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - (text.pad_token_id + 1 if text.model_type in POSITIONS_AFTER_PADDING else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigModel:
    """Builds the model of a transformers configuration, with random weights, by one of the library's auto classes."""

    config: Any
    auto_class: str

    def __call__(self) -> nn.Module:
        transformers = import_library("transformers", f"hf:{self.config.model_type}")
        model: nn.Module = getattr(transformers, self.auto_class).from_config(self.config)
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatches:
    """A batch maker of {"pixel_values", "labels"}."""

    images: RandomImages

    def __call__(self, size: int) -> dict[str, Tensor]:
        images, labels = self.images(size)
        return {"pixel_values": images, "labels": labels}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatches:
    """A batch maker of {"input_ids", "labels"}, the same for the same size; no token is the padding token."""

    vocabulary_size: int
    padding: int | None
    length: int
    labels: Callable[[Tensor, torch.Generator], Tensor]

    def __call__(self, size: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        # Of one number less than there are, those from the padding token's on each move up by one.
        padding = self.vocabulary_size - 1 if self.padding is None else self.padding
        tokens = torch.randint(self.vocabulary_size - 1, (size, self.length), generator=generator)
        tokens += tokens >= padding
        return {"input_ids": tokens, "labels": self.labels(tokens, generator)}


def next_token_labels(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """The tokens themselves, which a causal model shifts by one; the first has no token before it."""
    labels = tokens.clone()
    labels[:, 0] = IGNORED  # so that the count is right for the few models that do not shift, too
    return labels


def masked_labels(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """The tokens at 15 % of each sample's places, one at least; the rest is ignored."""
    length = tokens.shape[1]
    order = torch.rand(tokens.shape, generator=generator).argsort(dim=1)
    return tokens.where(order < max(1, round(MASKED_SHARE * length)), IGNORED)


def all_labels(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """The tokens in another order, as what a decoder is to write."""
    return tokens.flip(dims=(1,))


LABELS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "MaskedLM": masked_labels,
    "CausalLM": next_token_labels,
    "Seq2SeqLM": all_labels,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLabels:
    """A random class for each sample."""

    classes: int

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(self.classes, (len(tokens),), generator=generator)


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss that a transformers model computes itself when it is given labels."""
    loss: Tensor = model(**batch).loss
    return loss


def count_labels(batch: dict[str, Tensor]) -> int:
    """How many labels of the batch are not ignored."""
    return int((batch["labels"] != IGNORED).sum())
