from __future__ import annotations

import pytest

from test_render_text import GIB, footprint
from willfit._devices import Device, all_devices
from willfit._errors import JobError
from willfit._footprint import Footprint
from willfit._which_fit import kind, which_fit


def gpu(name: str, gib: int, capability: tuple[int, int]) -> Device:
    return Device(name=name, total=gib * GIB, context=0, compute_capability=capability)


GPUS = (gpu("old", 4, (7, 5)), gpu("small", 8, (8, 0)), gpu("large", 32, (8, 0)), gpu("new", 64, (9, 0)))


class Predictor:
    """Counts its calls; the footprint holds 6 GiB of parameters and 2 GiB of activations."""

    def __init__(self, *fails: str) -> None:
        self.fails = fails
        self.asked: list[str] = []

    def __call__(self, device: Device) -> Footprint:
        self.asked.append(device.name)
        if device.name in self.fails:
            raise JobError(f"it cannot run on {device.name}")
        return footprint(device)


def test_a_kind_is_traced_once_on_its_largest_gpu_and_those_too_small_for_any_not_at_all() -> None:
    predict = Predictor()
    answers = which_fit(predict, GPUS)
    assert predict.asked == ["new", "large"]
    assert [(each.device.name, each.traced_on.name) for each in answers] == [
        ("old", "new"),
        ("small", "large"),
        ("large", "large"),
        ("new", "new"),
    ]
    assert all(each.footprint is not None and each.footprint.device == each.device for each in answers)


def test_a_kind_that_fails_has_its_reason_and_the_others_their_answers() -> None:
    answers = which_fit(Predictor("new"), GPUS)
    assert [each.error for each in answers] == ["", "", "", "it cannot run on new"]
    assert [each.footprint is None for each in answers] == [False, False, False, True]


def test_a_job_that_fails_everywhere_raises() -> None:
    with pytest.raises(JobError, match="it cannot run on"):
        which_fit(Predictor("new", "large", "old"), GPUS)


def test_every_gpu_of_the_catalogue_is_of_a_few_kinds() -> None:
    assert len({kind(device) for device in all_devices()}) <= 6
