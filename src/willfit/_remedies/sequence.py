"""Shorter sequences: texts are cut."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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
    for shorter in (length // 2, length // 4):
        if shorter >= _SHORTEST:
            yield Change(
                name=f"sequence-{shorter}",
                title=f"sequences of {shorter} tokens",
                disruption="trains otherwise",
                cost=f"what a text says after {shorter} tokens is not learned from",
                code=f"# max_length={shorter}, truncation=True in the tokenizer's call, in place of {length}",
                apply=partial(_cut, shorter),
                order=80,
            )


def _cut(length: int, job: Job) -> Job:
    return job.but(batch=with_sequence_length(job.batch, length))
