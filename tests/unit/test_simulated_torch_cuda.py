"""Training files that ask torch for a GPU, on a simulated card: what they are told, and that torch is afterwards as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from profiler.devices import open_device
from profiler.dry_run.answers import ANSWERS, ANSWERS_BUT_FOR_TORCH, STANDING, StandIn
from profiler.dry_run.named_devices import REROUTED
from profiler.dry_run.placement import SimulatedPlacement
from profiler.dry_run.standing_in import at_load
from profiler.errors import WorkloadError
from profiler.outcomes import Fits, Strategy
from profiler.schedules import Schedule
from profiler.simulation.cards import card_of
from profiler.steps import Phase, Training, run_step
from profiler.switches import Switches
from profiler.trial import Completed, Failed, Setting, run_schedule
from profiler.units import MIB
from profiler.workers.in_process import HeldSource
from profiler.workload import Workload

HOPPER = card_of("h100-80gb")
TURING = card_of("t4")
WIDTH = 64


def available() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert device == "cuda"
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    assert (torch.cuda.device_count(), torch.cuda.current_device()) == (1, 0)
    torch.cuda.set_device("cuda:0")
    torch.ones(3).to(device)


def facts() -> None:
    properties = torch.cuda.get_device_properties(0)
    assert torch.cuda.get_device_name() == properties.name == HOPPER.description
    assert properties.total_memory == torch.cuda.mem_get_info()[1] == HOPPER.total_bytes
    assert torch.cuda.get_device_capability() == (properties.major, properties.minor) == (9, 0)
    assert torch.cuda.is_bf16_supported()
    assert torch.cuda.is_bf16_supported(including_emulation=False)


def numbers_of_devices() -> None:
    torch.ones(3, device=0)
    torch.ones(3).to(0).to(device=0)
    torch.ones(3).cuda(0)
    nn.Linear(2, 2).to(0)
    assert torch.device(0).type == torch.device("cuda").type == "cuda"
    with torch.cuda.device(0):
        torch.ones(3, device=torch.device("cuda", 0))


def moves() -> None:
    module = nn.Linear(2, 2)
    assert module.cuda() is module.to("cuda") is module.to(device=torch.device("cuda:0"), non_blocking=True) is module
    torch.empty(3, pin_memory=True).pin_memory().cuda(non_blocking=True).record_stream(torch.cuda.current_stream())


def default_devices() -> None:
    torch.set_default_device("cuda")
    with torch.device("cuda"):
        nn.Linear(2, 2)
    torch.set_default_device(None)


def random_numbers() -> None:
    generator = torch.Generator(device="cuda").manual_seed(3)
    assert isinstance(generator, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)
    torch.randn(3, device="cuda", generator=generator)
    torch.cuda.manual_seed_all(3)
    torch.cuda.set_rng_state_all(torch.cuda.get_rng_state_all())
    with torch.random.fork_rng():
        torch.rand(3, device="cuda")


def streams() -> None:
    stream, start, end = torch.cuda.Stream(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.cuda.nvtx.range("copy"):
        torch.ones(3, device="cuda")
    end.record(stream)
    torch.cuda.synchronize()
    assert start.elapsed_time(end) >= 0
    assert end.query()


def mixed_precision() -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") is torch.bfloat16
    assert not torch.is_autocast_enabled()
    assert torch.amp.GradScaler("cuda").is_enabled()


def device_module() -> None:
    module: Any = torch.get_device_module("cuda")
    module.synchronize()
    module.empty_cache()
    assert module.memory_allocated() <= module.max_memory_allocated() <= module.max_memory_reserved()


def loading() -> None:
    for (batch,) in DataLoader(TensorDataset(torch.zeros(4, 2)), batch_size=2):
        batch.to("cuda", non_blocking=True)


SNIPPETS = [
    available, facts, numbers_of_devices, moves, default_devices, random_numbers, streams, mixed_precision, device_module,
]  # fmt: skip


def run(
    *,
    build: Callable[[], Any] = lambda: None,
    forward: Callable[[], Any] = lambda: None,
    data: Callable[[], Any] = lambda: None,
    loss: Callable[[nn.Module, Tensor], Any] = lambda *_: None,
    device: str = "sim:h100-80gb",
) -> Completed | Failed:
    """What a trial of a small model comes to that calls these beside its own work."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            build()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, batch: Tensor) -> Tensor:
            forward()
            output: Tensor = self.layer(batch)
            return output

    def make_batch(size: int) -> Tensor:
        data()
        return torch.ones(size, WIDTH)

    def lossy(model: nn.Module, batch: Tensor) -> Tensor:
        loss(model, batch)
        value: Tensor = model(batch).square().mean()
        return value

    setting = Setting(
        source=HeldSource(workload=Workload(model=Model, make_batch=make_batch, loss=lossy)),
        device=device,
        limit_bytes=None,
        switches=Switches.of_caller(),
    )
    schedule = Schedule(strategy=Strategy.ACCUMULATION, steps=((2,), (2, 2)))
    return run_schedule(setting, schedule).result


def fits(**places: Any) -> Fits:
    """The same, of a trial that has to fit."""
    result = run(**places)
    assert isinstance(result, Completed), result
    return result.fits


@pytest.mark.parametrize("snippet", [*SNIPPETS, loading], ids=lambda snippet: snippet.__name__)
@pytest.mark.parametrize("place", ["build", "data"])
def test_code_for_a_gpu_runs_where_there_is_none(snippet: Callable[[], None], place: str) -> None:
    assert fits(**{place: snippet})


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.__name__)
def test_code_for_a_gpu_runs_in_a_forward(snippet: Callable[[], None]) -> None:
    assert fits(forward=snippet)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.__name__)
def test_code_for_a_gpu_runs_while_a_target_is_loaded(snippet: Callable[[], None]) -> None:
    with at_load(StandIn(card=HOPPER, ledger=lambda: None)):
        snippet()


def test_a_models_tensors_say_that_they_are_on_the_gpu() -> None:
    seen: list[Any] = []

    def loss(model: nn.Module, batch: Tensor) -> None:
        weight = next(model.parameters())
        seen.append((str(batch.device), weight.device, batch.is_cuda, weight.is_cpu, batch.get_device()))
        made = torch.zeros(3, device=batch.device) + batch.new_zeros(3, device=weight.device)
        nn.CrossEntropyLoss(weight=torch.ones(WIDTH)).to(batch.device)
        with torch.autocast(batch.device.type, dtype=torch.bfloat16):
            seen.append((batch @ batch.t()).dtype)
        seen.append(made.to(batch.device).device == batch.device)

    fits(loss=loss)

    assert seen[:3] == [("cuda:0", torch.device("cuda", 0), True, False, 0), torch.bfloat16, True]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_forward_under_autocast_runs(reentrant: bool) -> None:
    def loss(model: nn.Module, batch: Tensor) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            checkpoint(model, batch.requires_grad_(), use_reentrant=reentrant).float().sum().backward()

    assert fits(loss=loss)


def test_memory_is_answered_by_the_cards_allocator() -> None:
    grew: list[int] = []

    def forward() -> None:
        before = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        kept = torch.empty(1000, device="cuda")
        grew.append(torch.cuda.memory_allocated() - before[0])
        assert torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() == before[1]
        assert torch.cuda.memory_stats()["allocated_bytes.all.current"] == torch.cuda.memory_allocated()
        del kept

    fits(forward=forward)

    assert set(grew) == {4096}


def test_peaks_that_the_model_resets_are_its_own() -> None:
    peaks: list[int] = []

    def forward() -> None:
        torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
        peaks.append(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        peaks.append(torch.cuda.max_memory_allocated())
        assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()

    found = fits(forward=forward)

    assert peaks[1] < 64 * MIB < peaks[0]
    assert found.peak_allocated_bytes is not None
    assert found.peak_allocated_bytes > 64 * MIB


def test_an_emptied_cache_is_released_in_the_trial_and_in_what_it_would_be_without_a_limit() -> None:
    def wasteful(*, empties: bool) -> Fits:
        def forward() -> None:
            for mebibytes in (200, 300):
                torch.empty(mebibytes * MIB, dtype=torch.uint8, device="cuda")
                if empties:
                    torch.cuda.empty_cache()

        return fits(forward=forward)

    kept, emptied = wasteful(empties=False), wasteful(empties=True)

    assert emptied.peak_reserved_bytes is not None
    assert kept.peak_reserved_bytes is not None
    assert kept.peak_reserved_bytes >= 500 * MIB
    # Beside the larger one two workspaces of cuBLAS, 32 MiB each, and small tensors.
    assert emptied.peak_reserved_bytes < 370 * MIB
    assert emptied.unlimited_reserved_bytes == emptied.peak_reserved_bytes


def test_a_card_that_is_older_says_so() -> None:
    seen: list[Any] = []

    def build() -> None:
        seen.append((torch.cuda.get_device_capability(), torch.cuda.is_bf16_supported(including_emulation=False)))

    fits(build=build, device="sim:t4")

    assert seen[0] == (TURING.compute_capability, False)


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        pytest.param(lambda: torch.cuda.get_device_properties(0).multi_processor_count, "multi_processor_count", id="property"),
        pytest.param(lambda: torch.cuda.utilization(), "utilization", id="sensor"),
        pytest.param(lambda: torch.cuda.set_per_process_memory_fraction(0.5), "set_per_process_memory", id="CUDA itself"),
        pytest.param(lambda: torch.cuda.set_device(1), "chooses GPU 1, and one card is simulated", id="second GPU"),
        pytest.param(lambda: torch.cuda.device(1).__enter__(), "chooses GPU 1", id="second GPU for a while"),
        pytest.param(lambda: torch.zeros(4, device="cuda:1"), "chooses GPU 1", id="tensor on a second GPU"),
        pytest.param(lambda: torch.zeros(4).to("cuda:1"), "chooses GPU 1", id="tensor moved to a second GPU"),
        pytest.param(lambda: torch.zeros(4).cuda(1), "chooses GPU 1", id="tensor moved by number"),
        pytest.param(lambda: nn.Linear(4, 4).to("cuda:1"), "chooses GPU 1", id="module on a second GPU"),
        pytest.param(lambda: nn.Linear(4, 4).cuda(1), "chooses GPU 1", id="module moved by number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["build", "forward", "data"])
def test_what_nobody_knows_is_not_invented(ask: Callable[[], Any], named: str, place: str) -> None:
    places: dict[str, Any] = {place: ask}
    result = run(**places)

    assert isinstance(result, Failed)
    assert isinstance(result.refusal, WorkloadError)
    assert named in result.message
    assert f"{__file__}:{ask.__code__.co_firstlineno} " in result.message


def test_a_property_that_nobody_knows_is_absent_for_code_that_looks_first() -> None:
    def build() -> None:
        assert not hasattr(torch.cuda.get_device_properties(0), "multi_processor_count")

    assert fits(build=build)


def state() -> list[Any]:
    """What of torch is replaced while a card stands in."""
    tables = (*ANSWERS, *ANSWERS_BUT_FOR_TORCH, *STANDING, *REROUTED)
    return [
        *(getattr(owner, name, None) for owner, name, _ in tables),
        torch.Generator,
        *(vars(torch._subclasses.FakeTensor).get(name) for name in ("device", "is_cuda", "is_cpu", "get_device")),
        torch.get_default_device(),
    ]


class Refused(Exception):
    """What the user's code raises."""


def refuse() -> None:
    raise Refused


@pytest.mark.parametrize(
    "places",
    [{}, {"build": refuse}, {"forward": refuse}, {"data": refuse}],
    ids=lambda places: "-".join(places) or "nothing raised",
)
def test_torch_is_afterwards_as_it_was(places: dict[str, Any]) -> None:
    before = state()

    run(**places)

    assert all(now is then or now == then for now, then in zip(state(), before, strict=True))
    assert not torch.cuda.is_available()


def test_an_interrupt_leaves_torch_as_it_was() -> None:
    before = state()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(forward=interrupted)

    assert all(now is then or now == then for now, then in zip(state(), before, strict=True))


def test_names_that_were_imported_while_a_card_stood_in_tell_the_truth_later() -> None:
    with open_device("sim:h100-80gb").standing_in():
        is_available, generator = torch.cuda.is_available, torch.Generator
        assert is_available()

    assert not is_available()
    assert isinstance(generator(), torch.Generator)


def test_torchs_own_code_is_told_the_truth() -> None:
    with open_device("sim:h100-80gb").standing_in():
        assert torch._utils._get_available_device_type() is None


def test_a_batch_maker_computes_as_the_host_does() -> None:
    def data() -> None:
        query = torch.ones(1, 2, 8, 16, dtype=torch.bfloat16)
        assert nn.functional.scaled_dot_product_attention(query, query, query).sum().item() > 0

    assert fits(data=data)


def test_a_kernel_that_only_a_gpu_has_is_not_run_for_values_that_are_known() -> None:
    def loss(model: nn.Module, batch: Tensor) -> None:
        query = torch.ones(1, 2, 8, 16, dtype=torch.bfloat16, device="cuda")
        nn.functional.scaled_dot_product_attention(query, query, query)

    assert fits(loss=loss)


def test_the_optimizer_of_a_training_file_may_ask_too() -> None:
    placement = SimulatedPlacement(HOPPER, None)
    workload = Workload(
        model=lambda: nn.Linear(8, 8),
        make_batch=lambda size: torch.ones(size, 8),
        loss=lambda model, batch: model(batch).mean(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, fused=torch.cuda.is_available()),
    )
    training = Training.start(workload, placement, Phase())
    with placement.training():
        run_step(training, Strategy.ACCUMULATION, (2, 2))

    assert training.optimizer.param_groups[0]["fused"] is True
