"""The largest batch: by arithmetic on jobs whose bytes are plain, and against following every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import willfit

MIB = 2**20


def card(mib: int) -> willfit.Device:
    return willfit.Device(name="toy", total=mib * MIB, context=0)


def plain(samples: int = 8, width: int = 1024) -> tuple[Any, ...]:
    model = nn.Linear(width, width, bias=False)
    return model, None, torch.zeros(samples, width)


def loss(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("mib", [64, 100, 333])
def test_one_more_sample_does_not_fit(mib: int) -> None:
    found = willfit.largest_batch(*plain(), loss=loss, on=card(mib))
    model, optimizer, _batch = plain()
    for size, fits in ((found.size, True), (found.size + 1, False)):
        resized = torch.zeros(size, 1024)
        footprint = willfit.predict(model, optimizer, resized, loss=loss, on=card(mib))
        assert (footprint.verdict != "does not fit") is fits, size
    assert found.footprint is not None
    assert found.footprint.verdict in ("fits", "tight")
    assert found.beyond.verdict == "does not fit"
    assert int(found) == found.size


def test_it_is_found_with_few_traces() -> None:
    assert willfit.largest_batch(*plain(), loss=loss, on=card(333)).traces <= 6


@pytest.mark.parametrize("given", [1, 3, 64])
def test_it_does_not_depend_on_the_batch_given(given: int) -> None:
    sizes = {willfit.largest_batch(*plain(samples=n), loss=loss, on=card(100)).size for n in (given, 8)}
    assert len(sizes) == 1


def test_0_where_not_even_one_sample_fits() -> None:
    found = willfit.largest_batch(*plain(), loss=loss, on=card(6))
    assert found.size == 0
    assert found.footprint is None
    assert "not even one sample fits on toy" in str(found)


def test_a_step_whose_kernels_change_with_the_batch() -> None:
    """Embeddings are added up by sorting from 3073 indices on, with temporaries that are not affine in the batch."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5000, 64), nn.Linear(64, 5000)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids)).logsumexp(-1).mean()

    model = Tokens()
    job = model, torch.optim.AdamW(model.parameters()), torch.zeros(4, 100, dtype=torch.long)
    found = willfit.largest_batch(*job, on=card(160))
    fits = [
        willfit.predict(model, job[1], torch.zeros(n, 100, dtype=torch.long), on=card(160)).verdict != "does not fit"
        for n in (found.size, found.size + 1)
    ]
    assert fits == [True, False]


def test_the_longest_sequences_are_in_multiples_of_64() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 64)
            self.layer = nn.TransformerEncoderLayer(64, 4, batch_first=True)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.layer(self.table(ids)).mean()

    model = Tokens()
    job = model, torch.optim.SGD(model.parameters()), torch.zeros(2, 128, dtype=torch.long)
    found = willfit.largest_sequence(*job, on=card(300))
    assert found.size % 64 == 0
    for length, fits in ((found.size, True), (found.size + 64, False)):
        ids = torch.zeros(2, length, dtype=torch.long)
        assert (willfit.predict(model, job[1], ids, on=card(300)).verdict != "does not fit") is fits


@pytest.mark.parametrize(
    ("function", "batch", "words"),
    [
        (willfit.largest_batch, torch.zeros(()), "no dimension of samples"),
        (willfit.largest_sequence, torch.zeros(8, 1024), "no tensors of tokens"),
    ],
)
def test_a_batch_that_cannot_be_resized_is_refused(function: Any, batch: Any, words: str) -> None:
    with pytest.raises(willfit.JobError, match=words):
        function(*plain()[:2], batch, loss=loss, on=card(100))


def test_without_a_gpu_one_must_be_named() -> None:
    with pytest.raises(willfit.UsageError, match='name one as in on="T4"'):
        willfit.largest_batch(*plain(), loss=loss)


def test_the_batch_is_as_before() -> None:
    model, _, batch = plain()
    before = batch.clone()
    willfit.largest_batch(model, None, batch, loss=loss, on=card(64))
    assert torch.equal(batch, before)


def test_where_a_million_samples_fit_no_more_are_looked_for() -> None:
    model = torch.nn.Linear(1, 1)
    batch = torch.zeros(8, 1)
    found = willfit.largest_batch(model, None, batch, loss=loss, on="T4", steps=1)
    assert found.size == 2**20
    assert found.beyond is None
    assert "Larger ones were not looked for." in str(found)


def test_no_more_tokens_than_the_model_has_positions_for() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=64, n_head=2, n_positions=300, vocab_size=100)
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.zeros(1, 128, dtype=torch.long)
    batch = {"input_ids": ids, "labels": ids}
    found = willfit.largest_sequence(model, torch.optim.SGD(model.parameters()), batch, on="T4", steps=1)
    assert found.size == 256  # the next multiple of 64 is beyond 300
    assert found.beyond is None


def test_a_model_with_positions_for_fewer_tokens_than_a_step_up_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=64, n_head=2, n_positions=48, vocab_size=100)
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.zeros(1, 32, dtype=torch.long)
    batch = {"input_ids": ids, "labels": ids}
    with pytest.raises(willfit.JobError, match="positions for 48 only"):
        willfit.largest_sequence(model, torch.optim.SGD(model.parameters()), batch, on="T4", steps=1)
