"""A live job as bytes: what arrives is the job, its tensors by description; what was sent is as it was."""

from __future__ import annotations

import contextlib
import functools
import io
import resource
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from willfit import JobError
from willfit._emulator.wire import Job, NotSent, pack, unpack

SCALE = {"factor": 3}  # a global of this module, which a step below reads


def sent(model: Any = None, optimizer: Any = None, batch: Any = None, step: Any = None, loss: Any = None) -> Job:
    return unpack(pack(Job(model, optimizer, batch, step, loss, made_with_gpu=False)))


def described(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (
        tuple(tensor.shape),
        tensor.stride(),
        tensor.storage_offset(),
        tensor.dtype,
        tensor.device.type,
        tensor.requires_grad,
        isinstance(tensor, nn.Parameter),
        tensor.untyped_storage().nbytes(),
    )


# -- tensors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4),
        torch.zeros(3, 4).t(),
        torch.zeros(10, 10)[2:5, ::2],
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(4, dtype=torch.bfloat16).expand(6, 4),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(0, 5),
        torch.zeros(5, dtype=torch.complex64),
        torch.zeros(7, device="meta"),
        torch.zeros(7, requires_grad=True),
        nn.Parameter(torch.zeros(7), requires_grad=False),
        nn.Parameter(torch.zeros(7, device="meta")),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.dtype}-{tensor.device}",
)
def test_a_tensor_keeps_its_description(tensor: torch.Tensor) -> None:
    assert described(sent(batch=[tensor]).batch[0]) == described(tensor)


def test_views_of_one_storage_stay_so_and_others_do_not() -> None:
    base = torch.zeros(10)
    first, second, other = sent(batch=[base[:4], base[2:], torch.zeros(10)]).batch
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert second.storage_offset() == 2
    assert other.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()


def test_small_tensors_on_the_cpu_keep_their_values_and_large_ones_are_zeros() -> None:
    small, large = sent(batch=[torch.arange(100), torch.ones(2**20)]).batch
    assert torch.equal(small, torch.arange(100))
    assert not large.any()


def test_large_tensors_take_no_memory() -> None:
    """On either side: 16 GiB of weights, on meta there, of which half a GiB would be noticed."""
    model = nn.Linear(2**16, 2**16, bias=False, device="meta")
    shape = torch.empty(2**28)  # 1 GiB of addresses, untouched
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job = sent(model, batch=shape)
    assert job.model.weight.numel() == 2**32
    assert job.batch.numel() == 2**28
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # kB


def test_gradients_hooks_and_attributes_of_parameters_arrive() -> None:
    model = nn.Linear(4, 4)
    model.weight.grad = torch.ones(4, 4)
    model.weight.kind = "special"  # type: ignore[assignment]
    seen: list[str] = []
    model.weight.register_hook(lambda grad: seen.append("hook"))
    model.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append("after"))
    arrived = sent(model).model
    assert arrived.weight.kind == "special"
    assert torch.equal(arrived.weight.grad, torch.ones(4, 4))
    arrived(torch.zeros(2, 4)).sum().backward()
    assert seen == []  # the sender's own list is not the one that was sent
    hooks = list(arrived.weight._backward_hooks.values())
    assert hooks[0].__closure__[0].cell_contents == ["hook", "after"]


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU, as far as pack() asks."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor).clone()


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return torch.Tensor._make_subclass(OnGpu, tensor)


def test_a_tensor_on_a_gpu_says_so_until_it_is_placed() -> None:
    arrived = sent(batch=[on_gpu(torch.zeros(4, 4))]).batch[0]
    assert arrived.device == torch.device("cuda", 0)
    assert arrived.is_cuda
    assert not arrived.is_meta
    assert arrived.untyped_storage().nbytes() == 64


def test_small_ones_bring_their_values_along() -> None:
    small, large = sent(batch=[on_gpu(torch.arange(6).view(2, 3)), on_gpu(torch.ones(2**17 + 1))]).batch
    assert small.cpu().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert large.cpu().is_meta


# -- models and optimizers ---------------------------------------------------------------------------------------------


def test_shared_parameters_are_one_and_those_of_the_optimizer_the_model_s() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    model["head"].weight = model["embed"].weight
    arrived = sent(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert arrived.model["head"].weight is arrived.model["embed"].weight
    assert arrived.optimizer.param_groups[0]["params"][0] is arrived.model["embed"].weight


def test_an_optimizer_arrives_with_its_state_and_options_and_tells_when_it_steps() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, fused=False)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps step() of this one
    model(torch.zeros(2, 4)).sum().backward()
    optimizer.step()
    arrived = sent(model, optimizer)
    state = arrived.optimizer.state[arrived.model.weight]
    assert state["step"].item() == 1
    assert state["exp_avg"].shape == (4, 4)
    assert arrived.optimizer.param_groups[0]["lr"] == 0.25
    stepped = []
    handle = register_optimizer_step_post_hook(lambda *_: stepped.append(1))
    arrived.optimizer.step()
    handle.remove()
    assert stepped == [1]


def test_a_class_that_only_exists_in_a_function_arrives() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * SCALE["factor"]  # type: ignore[no-any-return]

    arrived = sent(Local()).model
    assert type(arrived).__name__ == "Local"
    with torch.no_grad():
        for parameter in arrived.parameters():
            parameter.fill_(1.0)
    assert arrived(torch.ones(1, 3)).tolist() == [[12.0, 12.0]]  # (1 + 1 + 1 + 1) * 3


# -- code --------------------------------------------------------------------------------------------------------------


def test_a_class_that_is_to_be_had_by_another_name_alone_arrives() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def step(model: Any, optimizer: Any, batch: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return SDPBackend.MATH

    assert sent(step=step).step(None, None, None) is not None
    assert sent(batch=SDPBackend.MATH).batch == SDPBackend.MATH


def test_lambdas_closures_and_partials_arrive_with_what_they_hold() -> None:
    weights = torch.tensor([1.0, 2.0])
    steps = {
        "closure": lambda model, optimizer, batch: (weights * batch).sum(),
        "partial": functools.partial(lambda scale, model, optimizer, batch: scale * batch.sum(), 2.0),
    }
    for name, expected in (("closure", 11.0), ("partial", 14.0)):
        step = sent(step=steps[name]).step
        assert step(None, None, torch.tensor([3.0, 4.0])).item() == expected


def test_wrappers_of_optimizers_and_what_is_known_by_proxy_arrive() -> None:
    class Wrapper(torch.optim.SGD):
        """As Lightning's: of the wrapped one's class, with nothing of its own."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.wrapped = optimizer

        def __getattr__(self, name: str) -> Any:
            return getattr(self.wrapped, name)

    model = nn.Linear(2, 2)
    owner = {"optimizer": Wrapper(torch.optim.SGD(model.parameters(), lr=0.25)), "layer": nn.Linear(3, 3)}
    owner["proxy"] = weakref.proxy(owner["layer"])
    arrived = sent(model, owner).optimizer
    assert arrived["optimizer"].param_groups[0]["lr"] == 0.25
    assert arrived["proxy"].weight is arrived["layer"].weight
    assert arrived["proxy"].weight is not owner["layer"].weight


def test_globals_of_the_user_s_modules_travel_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALE, "factor", 7)
    step = sent(step=lambda model, optimizer, batch: batch * SCALE["factor"]).step
    monkeypatch.setitem(SCALE, "factor", 1)
    assert step(None, None, 6) == 42


def test_what_a_library_made_as_it_ran_reads_the_library_there() -> None:
    """Such as the hooks of Transformers that collect hidden states in a variable of its module."""

    def numbers() -> Iterator[int]:
        yield 3

    made = contextlib.contextmanager(numbers)  # a function within contextlib's own
    arrived = sent(step=made).step
    assert arrived is not made
    assert arrived.__globals__ is vars(contextlib)
    with arrived() as number:
        assert number == 3


def test_a_model_of_transformers_still_collects_its_hidden_states() -> None:
    """Its ``__init__`` enters in a registry what can be collected; in another process that does not run."""
    transformers = pytest.importorskip("transformers")
    capturing = pytest.importorskip("transformers.utils.output_capturing", exc_type=ImportError)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertModel(config)
    model(torch.zeros(1, 4, dtype=torch.long), output_hidden_states=True)  # which adds its hooks
    data = pack(Job(model, None, None, None, None, made_with_gpu=False))
    capturing._CAN_RECORD_REGISTRY.clear()
    arrived = unpack(data).model
    assert len(arrived(torch.zeros(1, 4, dtype=torch.long), output_hidden_states=True).hidden_states) == 3


def test_source_lines_are_told_by_the_file_they_are_in() -> None:
    step = sent(step=lambda model, optimizer, batch: None).step
    assert step.__code__.co_filename == __file__


# -- what belongs to a process -----------------------------------------------------------------------------------------


class Holder:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_locks_files_and_references_arrive_as_new_ones() -> None:
    target = Holder(name="target")
    holder = Holder(
        lock=threading.Lock(),
        again=threading.RLock(),
        condition=threading.Condition(),
        file=open(__file__),  # noqa: SIM115
        out=sys.stdout,
        text=io.StringIO("kept"),
        target=target,
        reference=weakref.ref(target),
        random=torch.Generator().manual_seed(5),
    )
    arrived = sent(batch=[holder]).batch[0]
    holder.file.close()
    arrived.file.close()
    assert arrived.lock.acquire(blocking=False)
    with arrived.again, arrived.condition:
        pass
    assert arrived.text.getvalue() == "kept"
    assert arrived.reference() is arrived.target
    assert arrived.random.initial_seed() == 5


def test_what_cannot_travel_says_so_when_it_is_used() -> None:
    with socket.socket() as connection:
        arrived = sent(batch=[Holder(connection=connection, size=3)]).batch[0]
    assert isinstance(arrived.connection, NotSent)
    assert arrived.size == 3
    with pytest.raises(JobError, match="uses a socket, which cannot be sent"):
        arrived.connection.send(b"")


def test_large_arrays_are_zeros_without_memory() -> None:
    numpy = pytest.importorskip("numpy")
    small, large = sent(batch=[Holder(value=numpy.arange(5)), Holder(value=numpy.ones(2**20))]).batch
    assert small.value.tolist() == [0, 1, 2, 3, 4]
    assert large.value.shape == (2**20,)
    assert not large.value.any()


def test_the_sender_keeps_all_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudpickle

    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counter = [0]

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        counter[0] += SCALE["factor"]

    names, own = set(vars(sys.modules[__name__])), SCALE
    registered = cloudpickle.list_registry_pickle_by_value()
    arrived = sent(model, optimizer, torch.zeros(4), step)
    arrived.step(None, None, None)
    assert counter == [0]
    assert SCALE is own
    assert set(vars(sys.modules[__name__])) == names
    assert cloudpickle.list_registry_pickle_by_value() == registered
    assert model.weight is optimizer.param_groups[0]["params"][0]
    assert model.weight.grad is None
