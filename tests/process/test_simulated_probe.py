"""The command on a card that is not here, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from process.commands import USER_FILE, Ran, Runs, interrupted, microbatch, user_folder

CARD = ("--device", "sim:rtx3060", "--memory-limit", "300MiB")
SHORT = ("--ceiling", "4", "--no-compare", "--quiet")
LOGGING = """

def logging():
    def loss(model, batch):
        value = model(batch).square().mean()
        print(value.item())
        return value

    return workload(loss=loss)
"""

LINE = next(number for number, line in enumerate((USER_FILE + LOGGING).splitlines(), 1) if "value.item()" in line)

# A training file as people write them, for a GPU.
FOR_A_GPU = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from profiler import Workload

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cuda.matmul.allow_tf32 = True
torch.cuda.manual_seed_all(7)
dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
pos_weight = torch.ones(8, device=device)
dataset = TensorDataset(torch.randn(64, 256), torch.rand(64, 8))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(256, 8)

    def forward(self, x):
        assert x.is_cuda and x.device == next(self.parameters()).device
        noise = torch.randn(x.shape, device=x.device)
        return self.head(self.body(x + noise))


def loss(model, batch):
    x, y = (part.to(device, non_blocking=True) for part in batch)
    with torch.autocast(device.type, dtype=dtype):
        value = nn.functional.binary_cross_entropy_with_logits(model(x), y, pos_weight=pos_weight)
    assert 0 < torch.cuda.memory_allocated() <= torch.cuda.max_memory_allocated()
    torch.cuda.synchronize()
    return value


def batch(size):
    return next(iter(DataLoader(dataset, batch_size=size, pin_memory=device.type == "cpu")))


def workload():
    model = Net().to(device)
    print(f"{torch.cuda.get_device_name(0)}: {torch.cuda.get_device_properties(0).total_memory} bytes")
    return Workload(
        model=lambda: model,
        make_batch=batch,
        loss=loss,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, fused=device.type == "cuda"),
    )
"""

COMMANDS = {
    "full": (
        *("probe", "train.py:workload", *CARD, "--effective-batch", "64", "--ceiling", "32"),
        *("--json", "--output", "run"),
    ),
    "plain": ("probe", "train.py:workload", *CARD, "--effective-batch", "8", "--ceiling", "4"),
    "value": ("probe", "train.py:logging", *CARD, *SHORT),
    "assumed": ("probe", "train.py:logging", *CARD, *SHORT, "--assume", f"train.py:{LINE}=0.5"),
    "for a gpu": ("probe", "gpu.py:workload", *CARD, *SHORT),
    "misshapen": ("probe", "train.py:misshapen", *CARD, *SHORT),
    "unknown": ("probe", "train.py:workload", "--device", "sim:rtx306"),
    "soak": ("probe", "train.py:workload", *CARD, "--effective-batch", "8", "--soak", "5"),
    "compare": ("compare", "train.py:workload", *CARD, "--micro-batch", "8", "--most-steps", "2"),
    "devices": ("devices",),
    "devices as json": ("devices", "--json"),
}


class WithLogging(Runs):
    """Whose train.py has a loss that prints a number, and with a file that is for a GPU."""

    def prepare(self, folder: Path) -> None:
        with (folder / "train.py").open("a") as file:
            file.write(LOGGING)
        (folder / "gpu.py").write_text(FOR_A_GPU)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with WithLogging(tmp_path_factory.mktemp("simulated"), COMMANDS) as runs:
        yield runs


def document(of: Ran) -> dict[str, Any]:
    assert of.status == 0, of.errors
    parsed: dict[str, Any] = json.loads(of.output)
    return parsed


def test_a_probe_writes_its_results_and_says_that_they_are_predicted(ran: Runs) -> None:
    found = document(ran["full"])

    assert found["predicted"] is True
    assert found["largest_fit"] == 32
    assert found["throughput"] == []
    assert found["plan"]["micro_batch_sizes"] == [32, 32]
    assert {path.name for path in (ran["full"].folder / "run").iterdir()} >= {
        "records.jsonl",
        "plan.json",
        "memory.png",
    }


def test_tables_say_predicted(ran: Runs) -> None:
    printed = ran["plain"].output

    assert "on sim:rtx3060, predicted" in printed
    assert "predicted over 3 optimizer steps" in printed
    assert "Predicted peak of one optimizer step" in printed
    assert "every number is predicted and none was measured" in printed
    assert "samples/s" not in printed


def test_what_needs_a_value_names_the_line_and_the_option(ran: Runs) -> None:
    assert ran["value"].status == 2
    assert f"train.py:{LINE} needs the values of tensors" in ran["value"].errors
    assert "Traceback" not in ran["value"].errors
    assert ran["assumed"].status == 0, ran["assumed"].errors


def test_a_bug_is_shown_without_the_simulation_beneath_it(ran: Runs) -> None:
    errors = ran["misshapen"].errors

    assert ran["misshapen"].status == 2
    assert 'train.py", line' in errors
    assert "dry_run" not in errors
    assert "fake_tensor" not in errors


def test_a_training_file_that_asks_for_a_gpu_finds_the_card(ran: Runs) -> None:
    assert ran["for a gpu"].status == 0, ran["for a gpu"].errors
    assert "Largest micro-batch" in ran["for a gpu"].output


def test_what_cannot_be_is_refused_in_words(ran: Runs) -> None:
    assert ran["unknown"].status == ran["soak"].status == 2
    assert "Did you mean 'rtx3060'" in ran["unknown"].errors
    assert "soak on the card itself" in ran["soak"].errors


def test_a_comparison_is_predicted(ran: Runs) -> None:
    assert ran["compare"].status == 0, ran["compare"].errors
    assert "Predicted peak of one optimizer step over k micro-batches of 8" in ran["compare"].output


def test_devices_list_the_cards_that_can_be_simulated(ran: Runs) -> None:
    assert "sim:rtx4090" in ran["devices"].output
    cards = {card["device"]: card for card in document(ran["devices as json"])["simulated"]}
    assert cards["sim:a100-40gb"]["total_bytes"] == 42_474_471_424


def test_an_interrupted_probe_goes_on(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "user")
    arguments = ("probe", "train.py:workload", *CARD, "--effective-batch", "32", "--ceiling", "16", "--no-compare")

    interrupted(folder, *arguments, "--output", "run", after_lines=4)
    resumed = microbatch(*arguments, "--output", "run", "--resume", "run", folder=folder)

    assert resumed.status == 0, resumed.errors
    plan = json.loads((folder / "run" / "plan.json").read_text())
    assert (plan["predicted"], plan["plan"]["micro_batch_sizes"]) == (True, [16, 16])
