"""What moved between a baseline and a prediction, in a sentence and in a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from willfit._peaks import PEAKS
from willfit._pytest.components import OUTSIDE
from willfit._pytest.tolerance import TOTAL, Tolerance
from willfit._trace.trace import ROLES
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._peaks import Peak
    from willfit._pytest.baseline import Baseline

# In a sentence: so many components for each role, and none that changed by less than 1/20 of the largest change.
_MOST_COMPONENTS: Final = 3
_TOLD: Final = 20


@dataclass(frozen=True, slots=True)
class Change:
    """A role, or one component of it: bytes before and after."""

    name: str
    before: int
    after: int
    components: tuple[Change, ...] = ()
    """What changed within a role, the largest change first."""

    @property
    def difference(self) -> int:
        """Bytes more than before."""
        return self.after - self.before


def changed_roles(before: Baseline, after: Baseline) -> tuple[Change, ...]:
    """The roles of which anything changed, the largest change first."""
    changes = []
    for role in ROLES:
        old, new = before.roles.get(role, {}), after.roles.get(role, {})
        components = [Change(name, old.get(name, 0), new.get(name, 0)) for name in sorted({*old, *new})]
        moved = sorted((each for each in components if each.difference), key=lambda each: -abs(each.difference))
        if moved:
            changes.append(Change(role, sum(old.values()), sum(new.values()), tuple(moved)))
    return tuple(sorted(changes, key=lambda each: -abs(each.difference)))


def is_within(before: Baseline, after: Baseline, tolerance: Tolerance, peak: Peak) -> bool:
    """Whether nothing changed by more than is tolerated; without a tolerance, whether nothing changed."""
    if not tolerance.amounts:
        return before.is_as_large_as(after)
    total = tolerance.amount(TOTAL)
    if total is not None:
        old, new = getattr(before, PEAKS[peak]), getattr(after, PEAKS[peak])
        if abs(new - old) > total.of(old):
            return False
    for change in changed_roles(before, after):
        amount = tolerance.amount(change.name)
        if amount is None and total is None:  # not even from one component to another
            return False
        if amount is not None and abs(change.difference) > amount.of(change.before):
            return False
    return True


def change_sentence(before: Baseline, after: Baseline) -> str:
    """What moved: "activations +1.20 GiB, in blocks.*.mlp; optimizer states unchanged"."""
    changes = changed_roles(before, after)
    parts = [_role_words(each) for each in changes]
    same: list[str] = [role for role in ROLES if role in after.roles and role not in [each.name for each in changes]]
    same.sort(key=lambda role: -sum(after.roles[role].values()))
    if same:
        parts.append(f"{_and(same)} unchanged")
    if not changes:
        parts += [
            f"{name} peak {signed(difference)}"
            for name, attribute in PEAKS.items()
            if (difference := getattr(after, attribute) - getattr(before, attribute))
        ]
    elif before.peak_at != after.peak_at:
        parts.append(f"the peak is now in the {after.peak_at}, not in the {before.peak_at}")
    return "; ".join(parts)


def signed(size: int) -> str:
    """A difference as people read it.

    >>> signed(1536), signed(-(2**20)), signed(0)
    ('+1.50 KiB', '-1.00 MiB', '+0 B')
    """
    return format_size(size) if size < 0 else f"+{format_size(size)}"


def _role_words(change: Change) -> str:
    largest = abs(change.components[0].difference)
    told = [each for each in change.components if _TOLD * abs(each.difference) >= largest]
    if change.difference == 0:
        moves = _and([f"{signed(each.difference)} in {each.name}" for each in told[:_MOST_COMPONENTS]])
        return f"{change.name} the same in all, but {moves}"
    words = f"{change.name} {signed(change.difference)}"
    if len(told) == 1:
        return words if told[0].name == OUTSIDE else f"{words}, in {told[0].name}"
    places = [f"{each.name} ({signed(each.difference)})" for each in told[:_MOST_COMPONENTS]]
    if len(told) > len(places):
        places.append(f"{len(told) - len(places)} more")
    return f"{words}, in {_and(places)}"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def change_table(before: Baseline, after: Baseline, *, everything: bool = False) -> str:
    """Baseline, now and difference for each role and component that changed, or for all of them."""
    from willfit._render.paper import Paper

    rows: list[tuple[str, ...]] = []
    for name, attribute in PEAKS.items():
        rows += _row(f"{name} peak", getattr(before, attribute), getattr(after, attribute), everything)
    for role in ROLES:
        old, new = before.roles.get(role, {}), after.roles.get(role, {})
        if (everything and (old or new)) or old != new:
            rows += _row(role, sum(old.values()), sum(new.values()), True)
            for name in sorted({*old, *new}):
                rows += _row(f"  {name}", old.get(name, 0), new.get(name, 0), everything)
    paper = Paper()
    paper.columns(rows, ("", "baseline", "now", "change"), right=3)
    return paper.text()


def _row(name: str, before: int, after: int, always: bool) -> list[tuple[str, ...]]:
    if before == after and not always:
        return []
    difference = signed(after - before) if after != before else "same"
    return [(name, format_size(before), format_size(after), difference)]
