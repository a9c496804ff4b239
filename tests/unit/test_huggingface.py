from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.architectures import named_architecture
from profiler.architectures.huggingface import IGNORED, TokenBatches, config_workload, masked_labels, next_token_labels
from profiler.errors import UsageError
from profiler.workload import Workload


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


def parts_agree(workload: Workload) -> bool:
    """Whether the loss of six samples is that of four and two, weighted by their items."""
    model = workload.build_model().eval()  # dropout would draw anew
    batch = workload.make_batch(6)
    parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(4), slice(4, 6))]
    weighted = sum(workload.loss(model, part).item() * workload.count_items(part) for part in parts)
    return workload.loss(model, batch).item() == pytest.approx(weighted / workload.count_items(batch), rel=1e-5)


def test_random_tokens_are_never_padding() -> None:
    make_batch = TokenBatches(vocabulary_size=4, padding=1, length=50, labels=next_token_labels)

    assert set(make_batch(4)["input_ids"].unique().tolist()) == {0, 2, 3}
    assert torch.equal(make_batch(4)["input_ids"], make_batch(4)["input_ids"])


@pytest.mark.parametrize(("length", "predicted"), [(2, 1), (20, 3), (40, 6)])
def test_a_share_of_each_samples_tokens_is_masked_and_one_at_least(length: int, predicted: int) -> None:
    tokens = torch.arange(3 * length).reshape(3, length)
    labels = masked_labels(tokens, torch.Generator().manual_seed(0))

    assert ((labels != IGNORED).sum(dim=1) == predicted).all()
    assert torch.equal(labels[labels != IGNORED], tokens[labels != IGNORED])


def tiny_gpt2(library: Any) -> Any:
    return library.GPT2Config(vocab_size=40, n_positions=12, n_embd=8, n_layer=1, n_head=2)


def tiny_bert(library: Any) -> Any:
    return library.BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )


def tiny_roberta(library: Any) -> Any:
    return library.RobertaConfig(**{**tiny_bert(library).to_diff_dict(), "model_type": "roberta", "pad_token_id": 1})


def tiny_llama(library: Any) -> Any:
    return library.LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )


def tiny_t5(library: Any) -> Any:
    return library.T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)


def tiny_vit(library: Any) -> Any:
    return library.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, num_labels=3
    )


TINY = {
    "gpt2": (tiny_gpt2, {}, "AutoModelForCausalLM", (6, 12), 6 * 11),
    "llama": (tiny_llama, {"sequence_length": 9}, "AutoModelForCausalLM", (6, 9), 6 * 8),
    "bert": (tiny_bert, {}, "AutoModelForMaskedLM", (6, 20), 6 * 3),
    "roberta": (tiny_roberta, {}, "AutoModelForMaskedLM", (6, 18), 6 * 3),
    "t5": (tiny_t5, {"sequence_length": 7}, "AutoModelForSeq2SeqLM", (6, 7), 6 * 7),
    "gpt2 classifier": (tiny_gpt2, {"classes": 5}, "AutoModelForSequenceClassification", (6, 12), 6),
    "bert classifier": (tiny_bert, {"classes": 5}, "AutoModelForSequenceClassification", (6, 20), 6),
    "vit": (tiny_vit, {"image_size": 16, "classes": 5}, "AutoModelForImageClassification", (6, 3, 16, 16), 6),
}


@pytest.mark.parametrize("kind", TINY)
def test_a_configuration_becomes_the_task_that_fits_it(kind: str, transformers: Any) -> None:
    make_config, sizes, auto_class, shape, items = TINY[kind]
    workload = config_workload(make_config(transformers), target="hf:tiny", **sizes)
    batch: dict[str, Tensor] = workload.make_batch(6)

    assert workload.model.auto_class == auto_class  # type: ignore[union-attr]  # a ConfigModel
    assert next(iter(batch.values())).shape == shape
    assert workload.count_items(batch) == items


@pytest.mark.parametrize("kind", TINY)
def test_the_loss_is_averaged_over_the_items_that_are_counted(kind: str, transformers: Any) -> None:
    make_config, sizes, *_ = TINY[kind]

    assert parts_agree(config_workload(make_config(transformers), target="hf:tiny", **sizes))


def test_the_causal_loss_is_that_of_every_token_but_the_first(transformers: Any) -> None:
    workload = config_workload(tiny_gpt2(transformers), target="hf:tiny")
    model, batch = workload.build_model().eval(), workload.make_batch(3)
    logits = model(input_ids=batch["input_ids"]).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    assert workload.loss(model, batch).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("sizes", "classes"), [({}, 3), ({"classes": 5}, 5)])
def test_classes_are_those_asked_for_or_the_configurations_own(
    sizes: dict[str, int], classes: int, transformers: Any
) -> None:
    workload = config_workload(tiny_vit(transformers), target="hf:vit", **sizes)
    batch = workload.make_batch(50)

    assert workload.build_model()(**batch).logits.shape == (50, classes)
    assert batch["labels"].max() == classes - 1


def test_a_language_model_keeps_no_cache_in_training(transformers: Any) -> None:
    config = tiny_gpt2(transformers)
    config_workload(config, target="hf:gpt2")

    assert config.use_cache is False


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize(
    ("name", "length"), [("gpt2", 1024), ("llama", 1024), ("bert", 512), ("roberta", 510), ("xlnet", 1024)]
)
def test_a_sample_is_as_long_as_the_model_has_positions_and_1024_at_most(name: str, length: int) -> None:
    assert named_architecture(f"hf:{name}").make_batch(1)["input_ids"].shape == (1, length)


@pytest.mark.usefixtures("transformers")
def test_a_named_type_can_be_pickled() -> None:
    workload = pickle.loads(pickle.dumps(named_architecture("hf:bert", sequence_length=8)))

    assert workload.name == "hf-bert"
    assert workload.make_batch(2)["labels"].shape == (2, 8)


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize(
    ("target", "sizes", "message"),
    [
        ("hf:gpt3", {}, "transformers has no model type 'gpt3'"),
        ("hf:openai-community/gpt2", {}, "A repository on the Hub would have to be downloaded. Did you mean 'gpt2'"),
        ("hf:gpt2", {"image_size": 32}, "--image-size does not apply to hf:gpt2, which takes tokens"),
        ("hf:vit", {"sequence_length": 8}, "--sequence-length does not apply to hf:vit, which takes images"),
        ("hf:gpt2", {"sequence_length": 1025}, "--sequence-length 1025 is more than the 1024 positions of hf:gpt2"),
        ("hf:roberta", {"sequence_length": 511}, "--sequence-length 511 is more than the 510 positions"),
        ("hf:gpt2", {"sequence_length": 1}, "leaves hf:gpt2 no token to predict: use 2 at least"),
        ("hf:marian", {"classes": 3}, "--classes does not apply to hf:marian, which has no classifier"),
        ("hf:wav2vec2", {}, "hf:wav2vec2 is no language model and no image classifier"),
        ("hf:whisper", {}, "hf:whisper is no language model and no image classifier"),
    ],
)
def test_what_transformers_cannot_do_is_said(target: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError) as information:
        named_architecture(target, **sizes)

    assert message in str(information.value)
