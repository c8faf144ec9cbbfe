"""``willfit.advise``: each remedy changes a copy of the job, and the changed job goes the way of any other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import combinations, takewhile
from typing import TYPE_CHECKING, Any

from willfit._advice import Advice, Option, shares
from willfit._changing import Job
from willfit._devices import Device, all_devices, resolve_device
from willfit._errors import UsageError
from willfit._footprint import Footprint
from willfit._parallel import each_of
from willfit._predict import predict
from willfit._remedies.applying import code_of
from willfit._remedies.remedy import DISRUPTIONS, Change
from willfit._trace.trace import Engine, Transfers, check_engine
from willfit._trials import Trials, concerns_the_allocator_alone, proposals, replayed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from willfit._job import Loss
    from willfit._run import Step

_MOST_PAIRS = 6

_Set = tuple[Change, ...]


def advise(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    on: str | int | Device | torch.device | None = None,
    capacity: str | int | None = None,
    steps: int = 3,
    combine: bool = True,
    engine: Engine = "symbolic",
    progress: Callable[[str], None] = lambda words: None,
) -> Advice:
    """Say what would make a job fit a GPU: every remedy is applied to a copy of the job, and that is predicted.

    Takes what `willfit.predict` takes, and changes nothing of it.

    Args:
        model: as for `willfit.predict`.
        optimizer: likewise.
        batch: likewise.
        step: likewise; of a step of one's own, remedies that rewrite it can only say what to do.
        loss: likewise.
        on: likewise; the GPU to fit.
        capacity: likewise.
        steps: likewise.
        engine: likewise.
        combine: put several changes together where one alone does not do.
        progress: is told what is being tried.

    Raises:
        UsageError: no GPU is named and none is here.
        JobError: the job as it is cannot be predicted.

    Example:
        >>> import torch, willfit
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(8)])
        >>> job = model, torch.optim.AdamW(model.parameters()), torch.zeros(8, 1024)
        >>> toy = willfit.Device(name="toy", total=170 * 2**20, context=0)
        >>> advice = willfit.advise(*job, loss=lambda model, batch: model(batch).sum(), on=toy)
        >>> advice.footprint.verdict, advice.options[0].verdict, advice.options[0].disruption
        ('does not fit', 'fits', 'same results')
        >>> advice.options[0].titles
        ('fused AdamW',)
    """
    check_engine(engine)
    device = resolve_device(on, capacity)
    if device is None:
        raise UsageError('advice is for a GPU, and none is here: name one as in advise(..., on="T4")')
    job = Job(model, optimizer, batch, step, loss)
    trials = Trials(job, device, steps, engine)
    progress(f"following the job as it is on {device.name}")
    before = predict(model, optimizer, batch, step, loss=loss, on=device, steps=steps, engine=engine)
    proposed, not_applicable = proposals(job, device, lambda: before)
    return _Search(trials, before, proposed, not_applicable, progress).advice(combine)


class _Search:
    """Tries changes one by one, then together."""

    def __init__(
        self,
        trials: Trials,
        before: Footprint,
        proposed: dict[str, list[Change]],
        not_applicable: list[tuple[str, str]],
        progress: Callable[[str], None],
    ) -> None:
        self._trials, self._before, self._progress = trials, before, progress
        self._kind_of = {id(c): c.kind or name for name, changes in proposed.items() for c in changes}
        self._changes = [change for changes in proposed.values() for change in changes]
        self._reasons = list(not_applicable)
        self._known: dict[frozenset[int], Footprint | str] = {}

    def advice(self, combine: bool) -> Advice:
        self._try_each()
        helpful = [change for change in self._changes if self._saved((change,)) > 0]
        fitting: list[_Set] = [(change,) for change in helpful if self._fits((change,))]
        if combine and self._before.verdict == "does not fit":
            fitting += self._combinations(helpful, fitting)
        chosen = self._ranked(fitting)
        partial = [change for change in helpful if not self._fits((change,))]
        partial.sort(key=lambda change: -self._saved((change,)))
        device = self._trials.device
        return Advice(
            footprint=self._before,
            device=device,
            options=tuple(self._option(changes) for changes in chosen if self._fits(changes)),
            partial=tuple(self._option((change,)) for change in partial),
            unhelpful=tuple(
                change.title
                for change in self._changes
                if isinstance(self._known[_key((change,))], Footprint) and self._saved((change,)) <= 0
            ),
            not_applicable=tuple(self._reasons + self._failures()),
            cards=self._cards(),
            shares=shares(self._before, device),
        )

    # -- trying --------------------------------------------------------------------------------------------------

    def _try_each(self) -> None:
        """Each change by itself, the lighter ones first: where one is too much, those that take more are not tried."""
        named = {change.name: change for change in self._changes}
        waiting, too_much = self._changes, set[str]()
        while waiting:
            heavier = [c for c in waiting if c.lighter in named and _key((named[c.lighter],)) not in self._known]
            now = [change for change in waiting if change not in heavier] or waiting
            for change in now:
                if change.lighter in too_much:
                    reason = f"with {named[change.lighter].title} it does not fit either"
                    self._known[_key((change,))] = reason
            self._try([(change,) for change in now])
            if self._before.verdict == "does not fit":
                too_much |= {c.name for c in now if c.lighter in too_much or self._is_too_much(c)}
            waiting = [change for change in waiting if change not in now]

    def _try(self, sets: Iterable[Sequence[Change]]) -> None:
        new = [changes for changes in sets if _key(changes) not in self._known]
        new.sort(key=lambda changes: -sum(len(change.packages) for change in changes))  # first what takes longest
        titles = [" + ".join(change.title for change in changes) for changes in new]
        for name in {name for changes in new for change in changes for name in change.packages}:
            with suppress(Exception):  # once for all processes; what is wrong with it is said of each change
                import_module(name)
        found = each_of(list(map(self._work, new)), lambda number: self._progress(f"trying {titles[number]}"))
        self._known.update(zip(map(_key, new), found, strict=True))

    def _work(self, changes: Sequence[Change]) -> Callable[[], Footprint | str]:
        if concerns_the_allocator_alone(changes):
            return partial(replayed, self._before, self._trials.device, changes)
        return partial(self._trials.whether_it_fits, changes)

    def _footprint(self, changes: Sequence[Change]) -> Footprint | None:
        found = self._known[_key(changes)]
        return found if isinstance(found, Footprint) else None

    def _saved(self, changes: Sequence[Change]) -> int:
        after = self._footprint(changes)
        return 0 if after is None else self._before.peak_reserved - after.peak_reserved

    def _fits(self, changes: Sequence[Change]) -> bool:
        after = self._footprint(changes)
        return after is not None and after.verdict != "does not fit"

    def _is_too_much(self, change: Change) -> bool:
        after = self._footprint((change,))
        return after is not None and after.verdict == "does not fit"

    # -- together ------------------------------------------------------------------------------------------------

    def _combinations(self, helpful: list[Change], fitting: list[_Set]) -> list[_Set]:
        done = {_disruption(changes) for changes in fitting}  # by a single change
        levels = takewhile(lambda level: level not in done, DISRUPTIONS)
        best_of_levels = (self._best_of_each(helpful, level) for level in levels)
        together = {_key(best): best for best in best_of_levels if len(best) > 1}
        self._try(together.values())
        gentlest = next(filter(self._fits, together.values()), None)
        found = [] if gentlest is None else [self._shrunk(gentlest)]
        if not fitting:
            found += self._pairs(helpful)
        return found

    def _best_of_each(self, helpful: list[Change], level: str) -> _Set:
        """Of each kind, the change up to this level that saves most."""
        best: dict[str, Change] = {}
        for change in helpful:
            if DISRUPTIONS.index(change.disruption) <= DISRUPTIONS.index(level):
                kind = self._kind_of[id(change)]
                if kind not in best or self._saved((change,)) > self._saved((best[kind],)):
                    best[kind] = change
        return tuple(best.values())

    def _shrunk(self, changes: _Set) -> _Set:
        """Without those that it fits without, the most disruptive left out first."""
        order = sorted(changes, key=lambda c: (-DISRUPTIONS.index(c.disruption), self._saved((c,))))
        for change in order:
            fewer = tuple(each for each in changes if each is not change)
            if len(fewer) > 1:
                self._try([fewer])
                if self._fits(fewer):
                    changes = fewer
        return changes

    def _pairs(self, helpful: list[Change]) -> list[_Set]:
        """The pairs that promise most, tried until there is no more room to try."""
        pairs = [pair for pair in combinations(helpful, 2) if self._kind_of[id(pair[0])] != self._kind_of[id(pair[1])]]
        pairs.sort(key=lambda pair: -sum(self._saved((change,)) for change in pair))
        self._try(pairs[:_MOST_PAIRS])
        return [pair for pair in pairs[:_MOST_PAIRS] if self._fits(pair)]

    def _ranked(self, fitting: list[_Set]) -> list[_Set]:
        """The least disruptive first, then the shortest, then others, of different kinds before more of the same."""
        order = {id(change): number for number, change in enumerate(self._changes)}

        def gentleness(changes: _Set) -> tuple[int, int, list[int]]:
            disruption = DISRUPTIONS.index(_disruption(changes))
            return disruption, len(changes), sorted(order[id(change)] for change in changes)

        def kinds(changes: _Set) -> frozenset[str]:
            return frozenset(self._kind_of[id(change)] for change in changes)

        found = sorted(fitting, key=gentleness)
        shortest = min(found, key=lambda changes: (len(changes), gentleness(changes)), default=())
        different = {kinds(changes): changes for changes in reversed(found)}  # the gentlest of each
        first = [*found[:1], shortest, *(changes for changes in found if different[kinds(changes)] is changes)]
        return list({_key(changes): changes for changes in (*first, *found) if changes}.values())

    # -- the answer ----------------------------------------------------------------------------------------------

    def _option(self, changes: Sequence[Change]) -> Option:
        footprint = self._footprint(changes)
        assert footprint is not None
        packages = tuple(dict.fromkeys(name for change in changes for name in change.packages))
        return Option(
            titles=tuple(change.title for change in changes),
            disruption=_disruption(changes),  # type: ignore[arg-type]
            costs=tuple(change.cost for change in changes),
            code=code_of(self._trials.job, changes),
            packages=packages,
            missing=tuple(name for change in changes for name in change.missing),
            environment={name: value for change in changes for name, value in change.environment.items()},
            footprint=footprint,
            transfers=_more(self._before.transfers, footprint.transfers),
            saved=self._saved(changes),
        )

    def _failures(self) -> list[tuple[str, str]]:
        return [
            (change.title, found) for change in self._changes if isinstance(found := self._known[_key((change,))], str)
        ]

    def _cards(self) -> tuple[str, ...]:
        """GPUs of the catalogue that the job fits, taking it that their kernels need what those of this one do."""
        larger = [each for each in all_devices() if each.capacity > self._trials.device.capacity]
        return tuple(each.name for each in larger if self._before.on(each).verdict == "fits")


def _more(before: Transfers | None, after: Transfers | None) -> Transfers | None:
    if before is None or after is None:
        return None
    return Transfers(*(getattr(after, name) - getattr(before, name) for name in Transfers.__slots__))


def _key(changes: Iterable[Change]) -> frozenset[int]:
    return frozenset(map(id, changes))


def _disruption(changes: Iterable[Change]) -> str:
    return max((change.disruption for change in changes), key=DISRUPTIONS.index)
