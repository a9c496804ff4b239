from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from profiler.batches import DatasetBatches
from profiler.errors import UsageError
from profiler.examples import DEFAULT_EXAMPLE, EXAMPLES, digits, text
from profiler.workload import Workload


@pytest.fixture(params=sorted(EXAMPLES))
def example(request: pytest.FixtureRequest) -> Workload:
    return EXAMPLES[request.param]()


def parts_of(workload: Workload, sizes: list[int]) -> tuple[Any, list[Any]]:
    """A batch, and the same samples in parts of the sizes."""
    batch = workload.make_batch(sum(sizes))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return batch, [
        tuple(tensor[start : start + size] for tensor in batch) for start, size in zip(starts, sizes, strict=True)
    ]


def test_the_default_is_one_of_the_examples() -> None:
    assert DEFAULT_EXAMPLE in EXAMPLES


def test_an_example_carries_its_name() -> None:
    assert {name: make().name for name, make in EXAMPLES.items()} == {name: name for name in EXAMPLES}


def test_naming_the_examples_does_not_import_torch() -> None:
    code = "import sys, profiler.examples; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_example_gives_as_many_samples_as_it_is_asked_for(example: Workload) -> None:
    for size in (1, 5):
        assert [len(tensor) for tensor in example.make_batch(size)] == [size, size]


def test_an_example_gives_the_same_batch_each_time(example: Workload) -> None:
    for first, second in zip(example.make_batch(4), example.make_batch(4), strict=True):
        assert torch.equal(first, second)


def test_every_parameter_of_an_example_gets_a_gradient(example: Workload) -> None:
    model = example.build_model()
    loss = example.loss(model, example.make_batch(3))
    loss.backward()

    assert loss.isfinite()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_weighted_by_their_items(example: Workload) -> None:
    model = example.build_model().eval()  # BatchNorm's samples see each other in training
    batch, parts = parts_of(example, [5, 2])
    weighted = sum(example.loss(model, part).item() * example.count_items(part) for part in parts)

    assert sum(map(example.count_items, parts)) == example.count_items(batch)
    assert example.loss(model, batch).item() == pytest.approx(weighted / example.count_items(batch), rel=1e-5)


def test_an_example_can_be_pickled(example: Workload) -> None:
    copy = pickle.loads(pickle.dumps(example))

    assert torch.equal(copy.make_batch(2)[0], example.make_batch(2)[0])
    assert type(copy.build_model()) is type(example.build_model())


def test_an_example_runs_in_half_precision(example: Workload) -> None:
    model = example.build_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert example.loss(model, example.make_batch(2)).isfinite()


def test_the_small_net_learns_the_digits() -> None:
    torch.manual_seed(0)
    workload = EXAMPLES["digits-cnn"]()
    model, (images, targets) = workload.build_model(), workload.make_batch(200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        workload.loss(model, (images, targets)).backward()
        optimizer.step()

    assert (model(images).argmax(1) == targets.argmax(1)).float().mean() > 0.8


def test_the_digits_are_those_of_scikit_learn() -> None:
    images, classes = digits.load_digits()
    table = digits._table_from_sklearn()

    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    assert torch.equal(images.flatten(1) * 16, table[:, :-1].float())
    assert torch.equal(classes, table[:, -1].long())


def test_digits_repeat_after_the_last_one() -> None:
    images, _ = EXAMPLES["digits-cnn"]().make_batch(1800)

    assert torch.equal(images[1797:], images[:3])


def test_the_small_nets_targets_are_one_hot() -> None:
    _, targets = EXAMPLES["digits-cnn"]().make_batch(50)

    assert targets.dtype == torch.float32
    assert targets.shape == (50, 10)
    assert torch.equal(targets.sum(1), torch.ones(50))


def test_the_residual_net_gets_enlarged_digits() -> None:
    images, classes = EXAMPLES["digits-resnet"]().make_batch(3)
    small = digits.load_digits()[0][:3]

    assert images.shape == (3, 1, 64, 64)
    assert classes.tolist() == [0, 1, 2]
    # Eight pixels for one: their mean is the pixel, but for what the neighbours lend.
    assert nn.functional.avg_pool2d(images, 8).sub(small).abs().mean() < 0.1


def test_the_residual_net_has_eighteen_layers_of_the_stated_widths() -> None:
    model = EXAMPLES["digits-resnet"]().build_model()
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]

    assert len(layers) == 18
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == [8] * 5 + [16] * 4 + [32] * 4 + [
        64
    ] * 4
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())


def test_scikit_learn_missing_is_answered_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(UsageError, match=r"pip install 'microbatch\[examples\]'"):
        EXAMPLES["digits-cnn"]()


@given(st.binary(max_size=1200))
def test_cutting_a_block_loses_no_byte_and_leaves_each_sample_a_target(block: bytes) -> None:
    samples = text._samples_of(block)

    assert all(2 <= len(sample) <= text.CONTEXT + 1 for sample in samples)
    rejoined = b"".join(sample if index == 0 else sample[1:] for index, sample in enumerate(samples))
    assert rejoined == (block if len(block) > 1 else b"")


def test_a_text_sample_is_bytes_and_the_byte_after_each(tmp_path: Path) -> None:
    for name in text.SOURCES:
        (tmp_path / name).write_bytes(b"ab\n\ncde")
    blocks = text.SourceBlocks(tmp_path)

    assert len(blocks) == 2 * len(text.SOURCES)
    assert [part.tolist() for part in blocks[1]] == [[ord("c"), ord("d")], [ord("d"), ord("e")]]


def test_text_is_padded_to_the_longest_sample_of_the_batch() -> None:
    samples = [(torch.tensor([1, 2]), torch.tensor([2, 3])), (torch.tensor([4]), torch.tensor([5]))]
    inputs, targets = text.pad_batch(samples)

    assert inputs.tolist() == [[1, 2], [4, text.PADDING]]
    assert targets.tolist() == [[2, 3], [5, text.IGNORED]]
    assert text.count_targets((inputs, targets)) == 3


def test_missing_library_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"argparse\.py.* are missing in"):
        text.SourceBlocks(tmp_path)


def test_text_has_many_lengths_and_its_worst_case_is_the_longest() -> None:
    make_batch = EXAMPLES["text-gpt"]().make_batch
    assert isinstance(make_batch, DatasetBatches)

    _, targets = make_batch(16)
    _, longest = make_batch.with_largest_first()(16)

    assert len(set((targets != text.IGNORED).sum(1).tolist())) > 8
    assert longest.shape == (16, text.CONTEXT)
    assert (longest != text.IGNORED).all()


def test_the_gpt_sees_no_later_byte_and_no_padding() -> None:
    model = text.TextGPT().eval()
    tokens = torch.arange(10)[None]
    padded = torch.cat([tokens, torch.full((1, 4), text.PADDING)], dim=1)

    torch.testing.assert_close(model(padded)[:, :10], model(tokens))
    assert not torch.allclose(model(tokens.flip(1))[:, 0], model(tokens)[:, 0])
