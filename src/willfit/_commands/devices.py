"""``willfit devices``: the GPUs that willfit knows."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from willfit._commands.options import FITS, add_format
from willfit._commands.streams import write, write_json
from willfit._render.paper import colour_wanted

if TYPE_CHECKING:
    from willfit._devices import Device


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "devices",
        help="list the GPUs that willfit knows",
        description="Lists the GPUs that willfit knows.",
        allow_abbrev=False,
    )
    add_format(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from willfit._devices import all_devices

    if arguments.format == "json":
        write_json([_device_dict(device) for device in all_devices()])
    else:
        from willfit._render.devices import devices_text

        write(devices_text(all_devices(), color=colour_wanted(sys.stdout)))
    return FITS


def _device_dict(device: Device) -> dict[str, Any]:
    keys = (
        *("name", "driver_name", "aliases", "vendor", "total", "context", "capacity", "compute_capability"),
        *("multiprocessors", "memory_bandwidth", "host_bandwidth", "assumptions", "sources"),
    )
    return {key: list(value) if isinstance(value := getattr(device, key), tuple) else value for key in keys}
