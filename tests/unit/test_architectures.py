from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from profiler.architectures import named_architecture
from profiler.architectures.images import RandomImages, classification_loss
from profiler.errors import UsageError


def usage_error(target: str, **sizes: int) -> str:
    with pytest.raises(UsageError) as information:
        named_architecture(target, **sizes)
    return str(information.value)


def reason_without(library: str) -> str | None:
    """Why the library cannot be used here; None where it can."""
    try:
        importlib.import_module(library)
    except Exception as error:  # an installed library that does not match torch raises whatever it likes
        return f"{library} cannot be imported: {type(error).__name__}: {error}"
    return None


@pytest.fixture
def torchvision() -> None:
    if reason := reason_without("torchvision"):
        pytest.skip(reason)


@pytest.fixture
def timm() -> None:
    if reason := reason_without("timm"):
        pytest.skip(reason)


# Libraries that are missing or broken


@pytest.mark.parametrize(
    ("target", "module"), [("torchvision:x", "torchvision"), ("timm:x", "timm"), ("hf:x", "transformers")]
)
def test_a_missing_library_is_answered_with_the_pip_command(
    target: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    assert usage_error(target) == f"{target} needs {module}, which is not installed: pip install 'microbatch[models]'."


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module of a name and a source in the place of the installed one."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(source)

    return write


@pytest.mark.parametrize(
    ("target", "module"), [("torchvision:x", "torchvision"), ("timm:x", "timm"), ("hf:x", "transformers")]
)
def test_a_library_that_does_not_match_torch_is_quoted(
    target: str, module: str, install: Callable[[str, str], None]
) -> None:
    install(module, "raise RuntimeError('operator torchvision::nms does not exist')")
    message = usage_error(target)

    assert f"{target} needs {module}, which is installed" in message
    assert "RuntimeError: operator torchvision::nms does not exist" in message
    assert f"does not match torch {torch.__version__}" in message


def test_a_library_that_lacks_another_is_not_called_missing(install: Callable[[str, str], None]) -> None:
    install("timm", "import microbatch_missing_module")
    message = usage_error("timm:x")

    assert "needs a module that is not: No module named 'microbatch_missing_module'" in message


# Names


def test_an_unknown_library_is_answered_with_the_known_ones() -> None:
    assert usage_error("torchvison:resnet50") == (
        "'torchvison:resnet50' names no library: use torchvision:NAME, timm:NAME, hf:NAME. Did you mean 'torchvision'?"
    )


@pytest.mark.parametrize("target", ["torchvision:resnet50", "timm:resnet50"])
def test_images_have_no_sequence_length(target: str) -> None:
    assert usage_error(target, sequence_length=8).startswith(f"--sequence-length does not apply to {target}")


# Images


def test_random_images_repeat_for_the_same_size() -> None:
    make_batch = RandomImages(shape=(3, 4, 5), classes=7)
    images, labels = make_batch(6)

    assert images.shape == (6, 3, 4, 5)
    assert torch.equal(images, make_batch(6)[0])
    assert set(labels.tolist()) <= set(range(7))


def test_auxiliary_classifiers_add_a_share_of_their_loss() -> None:
    labels = torch.tensor([0, 1])
    main, auxiliary = torch.eye(2), torch.ones(2, 2)
    expected = nn.functional.cross_entropy(main, labels) + 0.3 * torch.tensor(2.0).log()

    assert classification_loss((main, auxiliary, None), labels).item() == pytest.approx(expected.item())
    assert classification_loss(main, labels).item() < expected.item()


class Recorder:
    """Stands for a library's function that builds a model: remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, **options: Any) -> nn.Module:
        self.calls.append((name, options))
        return nn.Flatten()


def weights(*crop_sizes: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(transforms=SimpleNamespace(keywords={"crop_size": size})) for size in crop_sizes]


@pytest.fixture
def fake_torchvision(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    published = {"resnet50": weights(224), "vit_h_14": weights(518, 224), "inception_v3": weights(299)}
    get_model = Recorder()
    models = SimpleNamespace(
        list_models=lambda module=None: [*published, *([] if module else ["fasterrcnn"])],
        get_model_weights=published.__getitem__,
        get_model=get_model,
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    return get_model


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "options"),
    [
        ("resnet50", {}, (2, 3, 224, 224), {}),
        ("resnet50", {"image_size": 32, "classes": 5}, (2, 3, 32, 32), {"num_classes": 5}),
        ("vit_h_14", {}, (2, 3, 224, 224), {"image_size": 224}),
        ("vit_h_14", {"image_size": 28}, (2, 3, 28, 28), {"image_size": 28}),
        ("inception_v3", {}, (2, 3, 299, 299), {"init_weights": False}),
    ],
)
def test_torchvisions_models_are_built_without_weights_for_the_size(
    fake_torchvision: Recorder,
    name: str,
    sizes: dict[str, int],
    shape: tuple[int, ...],
    options: dict[str, Any],
) -> None:
    workload = named_architecture(f"torchvision:{name}", **sizes)
    workload.build_model()

    assert workload.name == f"torchvision-{name}"
    assert workload.make_batch(2)[0].shape == shape
    assert fake_torchvision.calls == [(name, {"weights": None, **options})]


def test_no_model_is_built_before_it_is_asked_for(fake_torchvision: Recorder) -> None:
    named_architecture("torchvision:resnet50")

    assert fake_torchvision.calls == []


@pytest.mark.usefixtures("fake_torchvision")
def test_an_unknown_model_of_torchvision_is_answered_with_the_nearest() -> None:
    message = usage_error("torchvision:resnet49")

    assert message == "torchvision has no model 'resnet49' (it has 3 image classifiers). Did you mean 'resnet50'?"


@pytest.mark.usefixtures("fake_torchvision")
def test_a_detector_is_no_image_classifier() -> None:
    assert usage_error("torchvision:fasterrcnn").startswith("torchvision:fasterrcnn is no image classifier")


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    published = {
        "resnet18": SimpleNamespace(input_size=(3, 224, 224), num_classes=1000, fixed_input_size=False),
        "vit_tiny": SimpleNamespace(input_size=(3, 192, 192), num_classes=0, fixed_input_size=True),
    }

    def get_pretrained_cfg(name: str) -> SimpleNamespace:
        if "." in name:
            raise RuntimeError("Invalid pretrained tag.")
        return published[name]

    create_model = Recorder()
    library = SimpleNamespace(
        is_model=lambda name: name.partition(".")[0] in published,
        list_models=lambda: list(published),
        get_pretrained_cfg=get_pretrained_cfg,
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", library)
    return create_model


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "options"),
    [
        ("resnet18", {}, (2, 3, 224, 224), {"num_classes": 1000}),
        ("resnet18", {"image_size": 32}, (2, 3, 32, 32), {"num_classes": 1000}),
        ("vit_tiny", {}, (2, 3, 192, 192), {"num_classes": 1000}),
        ("vit_tiny", {"image_size": 32, "classes": 5}, (2, 3, 32, 32), {"num_classes": 5, "img_size": 32}),
    ],
)
def test_timms_models_are_built_without_weights_for_the_size(
    fake_timm: Recorder, name: str, sizes: dict[str, int], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    workload = named_architecture(f"timm:{name}", **sizes)
    workload.build_model()

    assert workload.name == f"timm-{name}"
    assert workload.make_batch(2)[0].shape == shape
    assert fake_timm.calls == [(name, {"pretrained": False, **options})]


@pytest.mark.usefixtures("fake_timm")
def test_unknown_names_and_tags_of_timm() -> None:
    assert usage_error("timm:resnet81") == "timm has no model 'resnet81' (it has 2). Did you mean 'resnet18'?"
    assert "Invalid pretrained tag. Leave out the tag" in usage_error("timm:resnet18.nowhere")


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_a_model_of_torchvision_trains(name: str) -> None:
    workload = pickle.loads(pickle.dumps(named_architecture(f"torchvision:{name}", image_size=64, classes=4)))
    model = workload.build_model()
    workload.loss(model, workload.make_batch(2)).backward()

    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.usefixtures("timm")
def test_a_model_of_timm_trains() -> None:
    workload = pickle.loads(pickle.dumps(named_architecture("timm:vit_tiny_patch16_224", image_size=32, classes=4)))
    model = workload.build_model()
    workload.loss(model, workload.make_batch(2)).backward()

    assert all(parameter.grad is not None for parameter in model.parameters())
