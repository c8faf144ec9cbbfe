"""A sweep as text: a row for each way to train, a column for each GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from willfit._render.paper import Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._sweep import Cell, Sweep

_MOST_COLUMNS: Final = 3  # GPUs that 80 columns have room for


def sweep_text(sweep: Sweep, *, color: bool = False, width: int | None = None) -> str:
    """What each way needs, and whether it fits; what could not be predicted, and why."""
    paper = Paper(color=color, width=width)
    devices = list(dict.fromkeys(cell.device.name for cell in sweep.cells))
    if len(devices) <= _MOST_COLUMNS:
        rows = [(*_way(cells[0]), *(_answer(cell) for cell in cells)) for cells in _by_way(sweep.cells)]
        paper.columns(rows, ("method", "batch", "tokens", *devices), right=0)
    else:
        rows = [(*_way(cell), cell.device.name, _answer(cell)) for cell in sweep.cells]
        paper.columns(rows, ("method", "batch", "tokens", "GPU", ""), right=0)
    errors = dict.fromkeys((cell.method, cell.error) for cell in sweep.cells if cell.error)
    if errors:
        paper.title("Could not be predicted")
        for method, error in errors:
            paper.item(f"{method}: {error}")
    return paper.text()


def _by_way(cells: tuple[Cell, ...]) -> list[list[Cell]]:
    ways: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        ways.setdefault(_way(cell), []).append(cell)
    return list(ways.values())


def _way(cell: Cell) -> tuple[str, ...]:
    return (cell.method, _number(cell.batch_size), _number(cell.sequence_length))


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _answer(cell: Cell) -> str:
    if cell.footprint is None:
        return "?"
    needs = format_size(cell.footprint.required)
    return {"fits": f"fits, {needs}", "tight": f"tight, {needs}"}.get(str(cell.footprint.verdict), f"no, {needs}")
