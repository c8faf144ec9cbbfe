"""Shorter sequences: texts are cut."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import zip_longest

from willfit._changing import Job, sequence_length, with_sequence_length
from willfit._remedies.remedy import Change, NotApplicable, Situation

_SHORTEST = 128


def shorter_sequences(situation: Situation) -> Iterator[Change]:
    """Half of the tokens, then a quarter."""
    length = sequence_length(situation.job.batch)
    if length is None or length // 2 < _SHORTEST:
        raise NotApplicable(
            "the batch has no tokens in rows of one length" if length is None else f"sequences are of {length} tokens"
        )
    lengths = [shorter for shorter in (length // 2, length // 4) if shorter >= _SHORTEST]
    for shorter, next_shorter in zip_longest(lengths, lengths[1:]):
        yield Change(
            name=f"sequence-{shorter}",
            title=f"sequences of {shorter} tokens",
            disruption="trains otherwise",
            cost=f"what a text says after {shorter} tokens is not learned from",
            code=f"# max_length={shorter}, truncation=True in the tokenizer's call, in place of {length}",
            apply=partial(_cut, shorter),
            order=80,
            lighter="" if next_shorter is None else f"sequence-{next_shorter}",
        )


def _cut(length: int, job: Job) -> Job:
    return job.but(batch=with_sequence_length(job.batch, length))
