from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.prediction_cnns import convnext, regnet, vgg
from benchmarks.prediction_mobile_cnns import V3_LARGE, V3_SMALL, mnasnet, mobilenet_v3
from benchmarks.prediction_models import build, is_cnn, vocabulary

# As published: by torchvision for networks of 1,000 classes, and by the weights of each language model.
PUBLISHED = {
    "VGG16": 138_357_544,
    "VGG19": 143_667_240,
    "ResNet101": 44_549_160,
    "ResNet152": 60_192_808,
    "MobileNetV2": 3_504_872,
    "ConvNeXtTiny": 28_589_128,
    "ConvNeXtBase": 88_591_464,
    "RegNetX400MF": 5_495_976,
    "RegNetY400MF": 4_344_144,
    "openai-community/gpt2": 124_439_808,
    "distilbert/distilgpt2": 81_912_576,
    "EleutherAI/gpt-neo-125M": 125_198_592,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "T5-small": 60_506_624,
    "t5-base": 222_903_552,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "google/gemma-2-2b-it": 2_614_341_888,
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in PUBLISHED])
def test_a_model_has_the_published_number_of_parameters_in_float32(name: str) -> None:
    with torch.device("meta"):
        model = build(name)

    assert parameters(model) == PUBLISHED[name]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.training


@pytest.mark.parametrize(
    ("model", "published"),
    [
        pytest.param(lambda: mobilenet_v3(V3_SMALL, 1024, 1000), 2_542_856, id="MobileNetV3 small"),
        pytest.param(lambda: mobilenet_v3(V3_LARGE, 1280, 1000), 5_483_032, id="MobileNetV3 large"),
        pytest.param(lambda: mnasnet(1000), 4_383_312, id="MNASNet"),
    ],
)
def test_a_network_that_ran_with_ten_classes_has_the_published_parameters_with_a_thousand(
    model: type[nn.Module], published: int
) -> None:
    with torch.device("meta"):
        assert parameters(model()) == published


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        pytest.param("MobeNetV3Small", 10, id="MobileNetV3 small"),
        pytest.param("MnasNet", 10, id="MNASNet"),
        pytest.param("MobileNetV2", 1000, id="MobileNetV2"),
    ],
)
def test_a_network_gives_as_many_classes_as_it_ran_with(name: str, classes: int) -> None:
    with torch.device("meta"):
        output = build(name)(torch.empty(2, 3, 86, 86))

    assert output.shape == (2, classes)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: vgg((8, 0, 512, 0), 10), id="VGG"),
        pytest.param(lambda: regnet((16, 32), (1, 2), 16, squeezes=True, classes=10), id="RegNetY"),
        pytest.param(lambda: convnext(8, (1, 2), 0.1, 10), id="ConvNeXt"),
    ],
)
def test_a_small_network_of_that_kind_trains(model: type[nn.Module]) -> None:
    network = model()

    network(torch.rand(3, 3, 32, 32)).sum().backward()

    assert all(parameter.grad is not None for parameter in network.parameters())


def test_images_and_texts_are_told_apart() -> None:
    assert is_cnn("VGG16")
    assert not is_cnn("T5-small")
    assert vocabulary("T5-small") == 32_128
