"""The same job is followed once in a process; one that differs in anything that matters is followed anew."""

from __future__ import annotations

import datetime
import io
import logging
import math
import pathlib
import random
import time
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from willfit import Footprint, UsageError, _job, _reuse, predict

WIDTH = 64
COPIES = [1]
LOGGER = logging.getLogger("willfit.tests.reuse")
HELPER = types.ModuleType("helper_of_the_user")


@pytest.fixture(autouse=True)
def reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILLFIT_REUSE", "on")
    monkeypatch.setattr(_reuse, "_kept", _reuse._Kept())
    HELPER.__file__ = "helper_of_the_user.py"
    HELPER.copies = 1  # type: ignore[attr-defined]
    HELPER.count = torch.tensor(1)  # type: ignore[attr-defined]
    COPIES[:] = [1]
    LOGGER.setLevel(logging.INFO)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each job that is followed."""
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    own = _job.trace_job
    monkeypatch.setattr(_job, "trace_job", counted)
    return calls


def grown(x: torch.Tensor, copies: int) -> torch.Tensor:
    for _ in range(copies):
        x = x.exp()
    return x


class Net(nn.Module):
    """Takes more memory the more of its knobs are turned up."""

    copies_of_class = 1

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("order", torch.tensor([0, 1]))
        self.copies = 1
        self.times = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = grown(self.dropout(self.inner(x)), self.copies) + torch.ones(WIDTH, device=x.device)
        of_the_users = COPIES[0] + HELPER.copies + int(HELPER.count)
        return self.more(grown(x, self.copies_of_class + of_the_users + math.ceil(self.times) + int(self.order.sum())))

    def more(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Batch(NamedTuple):
    x: torch.Tensor


Job = dict[str, Any]


def build(size: int = 40, copies: int = 1, count: torch.Tensor | None = None) -> Job:
    """A job like any other that this makes; all of it is new."""
    model = Net()
    count = torch.tensor(1) if count is None else count

    def step(model: Any, optimizer: Any, batch: Batch, more: int = 1) -> torch.Tensor:
        if LOGGER.isEnabledFor(logging.DEBUG):
            more += 5
        loss = grown(model(batch.x).relu(), copies + int(count) + more).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    optimizer = torch.optim.AdamW(model.parameters())
    return {"model": model, "optimizer": optimizer, "batch": Batch(torch.zeros(size, WIDTH)), "step": step}


def predicted(job: Job, **options: Any) -> Footprint:
    return predict(job["model"], job["optimizer"], job["batch"], job["step"], **{"on": "T4", **options})


def test_the_same_job_is_followed_once(traced: list[int]) -> None:
    job = build()
    first = predicted(job)
    assert [predicted(job), predicted(build())] == [first, first]
    assert len(traced) == 1


def test_what_is_kept_belongs_to_nobody_else() -> None:
    first = predicted(build())
    first.bill["activations"] = 0
    second = predicted(build())
    assert sum(second.bill.values()) == second.peak_allocated
    second.bill["activations"] = 0
    assert predicted(build()).bill["activations"] > 0


def test_it_is_followed_anew_for_another_target(traced: list[int]) -> None:
    job = build()
    for options in ({}, {"on": "A100-80GB"}, {"steps": 2}, {"capacity": "1 GiB"}, {"on": None}):
        predicted(job, **options)
    assert len(traced) == 5


def more(self: Net, x: torch.Tensor) -> torch.Tensor:
    return grown(x, 4)


def an_attribute(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].copies = 5


def the_rate_of_dropout(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].dropout.p = 0.0


def evaluation_mode(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].eval()


def evaluation_mode_of_a_part(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].dropout.eval()


def a_frozen_parameter(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].inner.weight.requires_grad_(False)


def another_dtype(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].double()
    job["batch"] = Batch(job["batch"].x.double())


def a_larger_batch(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["batch"] = Batch(torch.zeros(64, WIDTH))


def another_value_in_the_closure(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["step"] = build(copies=5)["step"]


def another_cell_in_the_closure(job: Job, patch: pytest.MonkeyPatch) -> None:
    names = job["step"].__code__.co_freevars
    job["step"].__closure__[names.index("copies")].cell_contents = 5


def what_a_tensor_in_the_closure_holds(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["step"].__closure__[job["step"].__code__.co_freevars.index("count")].cell_contents.fill_(5)


def a_default(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["step"].__defaults__ = (5,)


def a_global(job: Job, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "COPIES", [5])


def what_a_global_holds(job: Job, patch: pytest.MonkeyPatch) -> None:
    COPIES[0] = 5


def a_function_by_a_global_name(job: Job, patch: pytest.MonkeyPatch) -> None:
    own = grown
    patch.setitem(globals(), "grown", lambda x, copies: own(x, copies + 3))


def what_a_module_of_the_users_holds(job: Job, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HELPER, "copies", 5)


def an_attribute_of_the_class(job: Job, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Net, "copies_of_class", 5)


def a_method_of_the_class(job: Job, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Net, "more", more)


def a_method_of_the_object(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].more = types.MethodType(more, job["model"])


def a_method_of_a_librarys_class(job: Job, patch: pytest.MonkeyPatch) -> None:
    own = nn.Linear.forward
    patch.setattr(nn.Linear, "forward", lambda self, x: own(self, x).exp().exp())


def a_function_of_a_library(job: Job, patch: pytest.MonkeyPatch) -> None:
    own = functional.linear
    patch.setattr(functional, "linear", lambda *args: own(*args).exp().exp())


def a_forward_hook(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].inner.register_forward_hook(lambda module, args, out: out.exp().exp())


def a_hook_of_every_module(job: Job, patch: pytest.MonkeyPatch) -> None:
    hooks = nn.modules.module._global_forward_hooks
    patch.setitem(hooks, -1, lambda module, args, out: out.exp().exp())


def a_hook_of_a_parameter(job: Job, patch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    job["model"].inner.weight.register_hook(lambda grad: kept.append(grad.exp()))


def the_state_of_the_optimizer(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["step"](job["model"], job["optimizer"], job["batch"])
    job["optimizer"].zero_grad()


def gradients(job: Job, patch: pytest.MonkeyPatch) -> None:
    for parameter in job["model"].parameters():
        parameter.grad = torch.zeros_like(parameter)


def another_optimizer(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["optimizer"] = torch.optim.SGD(job["model"].parameters(), lr=0.1)


def an_option_of_the_optimizer(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["optimizer"].param_groups[0]["amsgrad"] = True


def the_workspace_of_cublas(job: Job, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16384:8")


def what_a_buffer_holds(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].order.fill_(3)


def what_a_tensor_of_a_module_of_the_users_holds(job: Job, patch: pytest.MonkeyPatch) -> None:
    HELPER.count.fill_(5)


def a_method_of_a_class_that_the_job_does_not_hold(job: Job, patch: pytest.MonkeyPatch) -> None:
    own = torch.Tensor.relu
    patch.setattr(torch.Tensor, "relu", lambda self: own(self).exp().exp())


def a_function_of_the_standard_library(job: Job, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(math, "ceil", lambda number: 5)


def the_level_of_a_logger(job: Job, patch: pytest.MonkeyPatch) -> None:
    LOGGER.setLevel(logging.DEBUG)


def settings_of_the_allocator(job: Job, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PYTORCH_ALLOC_CONF", "roundup_power2_divisions:2")


def another_class(job: Job, patch: pytest.MonkeyPatch) -> None:
    job["model"].__class__ = type("Other", (Net,), {"more": more})


def the_default_dtype(job: Job, patch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)


CHANGES = [
    *(an_attribute, the_rate_of_dropout, evaluation_mode, evaluation_mode_of_a_part, a_frozen_parameter, another_dtype),
    *(a_larger_batch, another_value_in_the_closure, another_cell_in_the_closure, what_a_tensor_in_the_closure_holds),
    *(a_default, a_global, what_a_global_holds, a_function_by_a_global_name, what_a_module_of_the_users_holds),
    *(an_attribute_of_the_class, a_method_of_the_class, a_method_of_the_object, a_method_of_a_librarys_class),
    *(a_function_of_a_library, a_forward_hook, a_hook_of_every_module, a_hook_of_a_parameter),
    *(the_state_of_the_optimizer, gradients, another_optimizer, an_option_of_the_optimizer, the_workspace_of_cublas),
    *(what_a_buffer_holds, what_a_tensor_of_a_module_of_the_users_holds, another_class),
    *(a_method_of_a_class_that_the_job_does_not_hold, a_function_of_the_standard_library, the_level_of_a_logger),
    *(settings_of_the_allocator, the_default_dtype),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_job_that_differs_is_followed_anew(
    change: Callable[[Job, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, traced: list[int]
) -> None:
    job = build()
    before = predicted(job)
    dtype = torch.get_default_dtype()
    try:
        change(job, monkeypatch)
        after, count = predicted(job), len(traced)
        assert predicted(job) == after
        assert len(traced) == count, "the changed job is known from then on"
        monkeypatch.setenv("WILLFIT_REUSE", "off")
        assert predicted(job) == after
    finally:
        torch.set_default_dtype(dtype)
    assert after != before, "a change that does not matter would prove nothing"


def test_what_is_put_back_is_the_same_job_again(monkeypatch: pytest.MonkeyPatch) -> None:
    job = build()
    before = predicted(job)
    with monkeypatch.context() as patch:
        a_function_of_a_library(job, patch)
        assert predicted(job) != before
    assert predicted(job) == before


def holding(thing: Any) -> Any:
    """A step with something in its closure that it need not use."""

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch.x).sum().backward()
        optimizer.step()
        return thing is None or None

    return step


def asks_the_clock(model: Any, optimizer: Any, batch: Any) -> None:
    start = time.time()
    holding(start)(model, optimizer, batch)


def asks_for_addresses(model: Any, optimizer: Any, batch: Any) -> None:
    holding(id(model))(model, optimizer, batch)


def imports(model: Any, optimizer: Any, batch: Any) -> None:
    import test_reuse

    holding(test_reuse)(model, optimizer, batch)


def makes_up_a_name(model: Any, optimizer: Any, batch: Any) -> None:
    holding(getattr(HELPER, "cop" + "ies"))(model, optimizer, batch)


def makes_up_a_name_elsewhere(model: Any, optimizer: Any, batch: Any) -> None:
    holding(HELPER.ask())(model, optimizer, batch)


def asks_for_the_date(model: Any, optimizer: Any, batch: Any) -> None:
    holding(datetime.datetime.now())(model, optimizer, batch)


def reads_a_file_by_a_library(model: Any, optimizer: Any, batch: Any) -> None:
    numpy = pytest.importorskip("numpy")
    holding(numpy.loadtxt(["1"]))(model, optimizer, batch)


def asks_the_system_for_a_seed(model: Any, optimizer: Any, batch: Any) -> None:
    numpy = pytest.importorskip("numpy")
    holding(numpy.random.default_rng())(model, optimizer, batch)


@pytest.mark.parametrize(
    "step",
    [
        *(asks_the_clock, asks_for_addresses, imports, makes_up_a_name, makes_up_a_name_elsewhere, asks_for_the_date),
        *(reads_a_file_by_a_library, asks_the_system_for_a_seed),
        *map(holding, (iter([1]), io.StringIO(), torch.zeros(2**16), random.Random(0), torch.Generator(), {Net})),
        holding(pathlib.Path("flag")),
        *map(holding, (torch.utils.data.TensorDataset(torch.zeros(1)), time.monotonic)),
    ],
    ids=lambda step: (
        getattr(step, "__name__", None)
        if step.__closure__ is None
        else type(step.__closure__[0].cell_contents).__name__
    ),
)
def test_what_cannot_be_compared_is_followed_each_time(step: Any, traced: list[int]) -> None:
    exec("def ask(): return getattr(other, 'cop' + 'ies')", vars(HELPER))
    HELPER.other = HELPER  # type: ignore[attr-defined]
    job = {**build(), "step": step}
    assert predicted(job) == predicted(job)
    assert len(traced) == 2


def drawn() -> int:
    return int(torch.randint(1, 100, ()))


def drawn_and_put_back() -> int:
    with torch.random.fork_rng(devices=[]):
        return drawn()


@pytest.mark.parametrize("draw", [drawn, drawn_and_put_back])
def test_a_job_that_draws_random_numbers_is_followed_each_time(traced: list[int], draw: Callable[[], int]) -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        grown(model(batch.x), draw()).sum().backward()
        optimizer.step()

    job = {**build(), "step": step}
    torch.manual_seed(0)
    first = predicted(job, steps=1)
    torch.manual_seed(1)
    assert predicted(job, steps=1) != first
    torch.manual_seed(0)
    assert predicted(job, steps=1) == first
    assert len(traced) == 3


def test_a_step_that_holds_the_batch_reads_what_it_holds() -> None:
    def build_with(number: int) -> Job:
        batch = torch.full((8, WIDTH), float(number))

        def step(model: Any, optimizer: Any, _: Any) -> None:
            grown(model(_), int(batch[0, 0])).sum().backward()
            optimizer.step()

        return {**build(), "batch": batch, "step": step}

    assert predicted(build_with(9)) != predicted(build_with(1))


def cut(batch: Any) -> Any:
    return batch[0][:, : int(batch[1].max())]


def cut_by_a_copy(batch: Any) -> Any:
    longest = torch.zeros((), dtype=torch.int64, device=batch[1].device)
    longest.copy_(batch[1].max())
    return batch[0][:, : int(longest)]


@pytest.mark.parametrize("shape", [cut, cut_by_a_copy])
def test_what_the_batch_holds_counts_where_the_step_reads_it(shape: Callable[[Any], Any], traced: list[int]) -> None:
    model = nn.Linear(WIDTH, WIDTH)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(shape(batch)).exp().sum().backward()

    def of_length(length: int) -> Footprint:
        return predict(model, None, (torch.zeros(2, 512, WIDTH), torch.tensor([1, length])), step, on="T4")

    short, long = of_length(2), of_length(500)
    assert long.peak_allocated > short.peak_allocated
    assert (of_length(500), len(traced)) == (long, 2)


def test_what_the_batch_holds_does_not_count_where_nothing_reads_it(traced: list[int]) -> None:
    job = build()
    first = predicted(job)
    assert predicted({**job, "batch": Batch(torch.rand(40, WIDTH))}) == first
    assert len(traced) == 1


def test_what_a_function_has_cached_counts(traced: list[int]) -> None:
    copies = [1]

    @cache
    def cached() -> int:
        return copies[0]

    job = build()
    job["model"].more = lambda x: grown(x, cached())
    cached()
    copies[0] = 50
    before = predicted(job)
    cached.cache_clear()
    assert predicted(job) != before


@pytest.mark.parametrize("registered", ["for all", "by name"])
def test_a_function_registered_with_transformers_anew(registered: str, traced: list[int]) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "AttentionInterface"):
        pytest.skip("this version of Transformers has no registry of attention functions")
    registry = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    own = registry["sdpa"]

    def larger(*args: Any, **kwargs: Any) -> Any:
        out, *rest = own(*args, **kwargs)
        return out.exp().exp(), *rest

    def register(function: Any) -> None:
        if registered == "for all":
            transformers.AttentionInterface.register("of_this_test", function)
        else:
            registry["of_this_test"] = function

    register(own)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=128
    )
    config._attn_implementation = "of_this_test"
    model = transformers.LlamaForCausalLM(config)
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    job = model, torch.optim.AdamW(model.parameters()), {"input_ids": tokens, "labels": tokens.clone()}
    try:
        before = predict(*job, on="T4")
        register(larger)
        assert predict(*job, on="T4") != before
    finally:
        for entries in (registry._local_mapping, registry._global_mapping):
            entries.pop("of_this_test", None)


def test_hooks_on_saved_tensors_have_no_part_in_it_or_are_seen() -> None:
    def moved() -> Footprint:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.exp(), lambda tensor: tensor):
            return predicted(job)

    job = build()
    predicted(job)
    again = moved()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WILLFIT_REUSE", "off")
        assert moved() == again


def test_what_training_scripts_hold_can_be_compared(traced: list[int]) -> None:
    def build_one() -> Job:
        job = build()
        scheduler = torch.optim.lr_scheduler.LambdaLR(job["optimizer"], lambda epoch: 0.9**epoch)
        scaler = torch.amp.GradScaler("cuda", enabled=False)  # the trace enables it, as on a GPU
        settings = types.SimpleNamespace(clip=1.0)

        def step(model: Any, optimizer: Any, batch: Any) -> None:
            with torch.autocast("cuda", dtype=torch.float16):
                loss = model(batch.x).sum()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()

        return {**job, "step": step}

    assert predicted(build_one()) == predicted(build_one())
    assert len(traced) == 1


def test_a_model_of_transformers_with_adapters_can_be_compared(traced: list[int]) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

    def build_one() -> tuple[Any, ...]:
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=128
        )
        model = transformers.LlamaForCausalLM(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Transformers, about what PEFT asks it
            model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
        tokens = torch.zeros(2, 16, dtype=torch.int64)
        return model, torch.optim.AdamW(model.parameters()), {"input_ids": tokens, "labels": tokens.clone()}

    assert predict(*build_one(), on="T4") == predict(*build_one(), on="T4")
    assert len(traced) == 1


def test_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch, traced: list[int]) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WILLFIT_REUSE", "off")
        one = len(predicted(build())._trace.allocations)
    monkeypatch.setattr(_reuse, "_MOST_ALLOCATIONS", 2 * one)
    traced.clear()
    predicted(build())
    predicted(build(size=33))
    predicted(build())  # used last, and so kept
    predicted(build(size=34))
    assert len(traced) == 3
    predicted(build())
    assert len(traced) == 3
    predicted(build(size=33))
    assert len(traced) == 4


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, traced: list[int]) -> None:
    monkeypatch.setenv("WILLFIT_REUSE", "off")
    assert predicted(build()) == predicted(build())
    assert len(traced) == 2
    monkeypatch.setenv("WILLFIT_REUSE", "no")
    with pytest.raises(UsageError, match="WILLFIT_REUSE=no in the environment: it must be on or off"):
        predicted(build())


def test_objects_that_mind_being_looked_at_are_left_alone() -> None:
    class Shy:
        @property
        def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
            raise RuntimeError("not now")

    assert _reuse.describe(nn.Linear(1, 1), None, torch.zeros(1), Shy()) is None
    assert _reuse.describe("no model", None, None) is None
