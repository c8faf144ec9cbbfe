from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler

from willfit import guard
from willfit._worst_batch import SAMPLES, batch_of, sizes

LENGTHS = [3, 5, 2, 40, 7, 1, 30, 4]
ROWS = [torch.full((length,), float(length)) for length in LENGTHS]


class Rows(Dataset[Any]):
    def __init__(self, lengths: Any) -> None:
        self.row_lengths = lengths
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.row_lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        read.append(index)
        return torch.ones(self.row_lengths[index])


read: list[int] = []


@pytest.fixture(autouse=True)
def nothing_read() -> None:
    read.clear()


def loader(rows: Any = ROWS, **options: Any) -> DataLoader[Any]:
    return DataLoader(rows, collate_fn=pad_sequence, **{"batch_size": 2, "shuffle": True, **options})


def test_shuffled_samples_may_all_meet() -> None:
    batch, which = batch_of(loader())
    assert sorted(batch[0].tolist()) == [30.0, 40.0]
    assert batch.shape == (40, 2)
    assert which == "the longest (of 8 samples)"


def test_without_shuffling_the_batches_are_those_that_come() -> None:
    batch, _ = batch_of(loader(shuffle=False))
    assert batch[0].tolist() == [2.0, 40.0]


def test_each_dimension_counts_where_parts_differ_in_length() -> None:
    """The longest source and the longest target may meet in a batch: neither sample is the largest alone."""
    rows = [(torch.zeros(9), torch.zeros(1)), (torch.zeros(1), torch.zeros(9)), *[(torch.zeros(6), torch.zeros(6))] * 4]
    collate = lambda rows: tuple(pad_sequence(list(part)) for part in zip(*rows, strict=True))  # noqa: E731
    (sources, targets), _ = batch_of(DataLoader(rows, batch_size=2, shuffle=True, collate_fn=collate))
    assert sources.shape == targets.shape == (9, 2)


def test_a_sampler_that_makes_batches_itself_is_asked_for_them() -> None:
    class Buckets:
        def __iter__(self) -> Any:
            return iter([[0, 1, 2, 5, 7], [3], [4, 6]])  # padded: 25, 40 and 60

        def __len__(self) -> int:
            return 3

    batch, _ = batch_of(DataLoader(ROWS, batch_sampler=Buckets(), collate_fn=pad_sequence))  # type: ignore[arg-type]
    assert batch.shape == (30, 2)


def test_only_samples_that_the_sampler_draws_count() -> None:
    batch, which = batch_of(loader(shuffle=False, sampler=SubsetRandomSampler([0, 1, 2, 4])))
    assert batch.shape == (7, 2)
    assert which == "the longest (of 4 samples)"


def test_samples_of_one_shape_are_not_all_read() -> None:
    rows = Rows([4] * 5000)
    batch, which = batch_of(loader(rows))
    assert batch.shape == (4, 2)
    assert which == "the first"
    assert len(read) < 70


def test_no_more_samples_are_read_than_is_said() -> None:
    rows = Rows([index % 100 + 1 for index in range(20_000)])
    _, which = batch_of(loader(rows))
    assert which == "the longest (of 1,000 of 20,000 samples)"
    assert len(read) <= SAMPLES + 64 + 2


def test_lengths_that_are_told_are_believed_and_nothing_else_is_read() -> None:
    rows = Rows([5] * 2999 + [700])
    rows.lengths = rows.row_lengths  # type: ignore[attr-defined]
    batch, which = batch_of(loader(rows))
    assert batch.shape == (700, 2)
    assert which == "the longest (of 3,000 samples)"
    assert len(read) == 2


def test_first_is_the_first() -> None:
    batch, which = batch_of(loader(shuffle=False), "first")
    assert batch[0].tolist() == [3.0, 5.0]
    assert which == "the first"


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(ROWS)


def test_an_iterable_dataset_is_looked_through_when_asked() -> None:
    stream = DataLoader(Stream(), batch_size=2, collate_fn=pad_sequence)
    assert batch_of(stream)[0].shape == (5, 2)
    batch, which = batch_of(stream, "longest")
    assert batch.shape == (40, 2)
    assert which == "the largest (of the first 4)"


def test_a_dataset_that_minds_is_not_asked_by_default() -> None:
    class Minds(Rows):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index > 1:
                raise KeyError(index)
            return super().__getitem__(index)

    minds = loader(Minds(LENGTHS), shuffle=False)
    assert batch_of(minds)[0].shape == (5, 2)
    with pytest.raises(KeyError):
        batch_of(minds, "longest")


def test_samplers_and_random_numbers_stay_as_they_were() -> None:
    generator = torch.Generator().manual_seed(7)
    looked_at = loader(generator=generator, num_workers=2)
    looked_at.multiprocessing_context = None
    before = torch.get_rng_state(), generator.get_state()
    batch_of(looked_at)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], generator.get_state())


def test_an_empty_loader_has_none() -> None:
    with pytest.raises(StopIteration):
        batch_of(DataLoader([], batch_size=2))


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (torch.zeros(2, 3), {(0,): 2, (1,): 3}),
        ({"ids": [1, 2, 3], "label": 1}, {("ids", "len"): 3}),
        (("text", torch.zeros(4)), {(0, "len"): 4, (1, 0): 4}),
        (3, {}),
    ],
)
def test_sizes(sample: Any, expected: Any) -> None:
    assert sizes(sample) == expected


# -- in the guard ------------------------------------------------------------------------------------------------------


def lines(model: Any, batch: Any) -> Any:
    return model(batch.unsqueeze(-1)).square().sum()


def refused(**options: Any) -> str:
    """What the guard says of a job of which only the longest batch does not fit."""
    model = torch.nn.Linear(1, 2048)
    rows = [torch.ones(64)] * 20 + [torch.ones(65_536)] + [torch.ones(64)] * 20

    @guard(on="1 GiB", capacity="512 MiB", loss=lines, advise=False, **options)
    def train(model: Any, optimizer: Any, data: Any) -> str:
        return "ran"

    try:
        return train(model, torch.optim.SGD(model.parameters()), loader(rows, shuffle=False))
    except Exception as error:
        return str(error)


def test_the_guard_refuses_what_the_longest_batch_would_need() -> None:
    """The one long row gives 65,536 x 2 x 2,048 x 4 B = 1 GiB of outputs; a short one 1 MiB."""
    assert "batch=the longest (of 41 samples) of 'data'" in refused()
    assert refused(shapes="first") == "ran"


def test_an_iterator_is_looked_through_and_reaches_the_function_whole() -> None:
    model = torch.nn.Linear(1, 8)

    @guard(on="T4", loss=lines, shapes="longest")
    def train(model: Any, optimizer: Any, data: Any) -> list[int]:
        return [len(batch) for batch in data]

    batches = [torch.ones(length, 1) for length in (1, 5, 2)]
    assert train(model, torch.optim.SGD(model.parameters()), iter(batches)) == [1, 5, 2]
