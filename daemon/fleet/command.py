"""``instar-fleet``: an operator's tool to begin a fleet, let devices in, renew roots, and look at devices."""

import argparse
import json
import sys
import time
from pathlib import Path

import httpx

from daemon.fleet import enrol
from policies.errors import InstarError, PermanentError


def main() -> None:
    """Run ``instar-fleet``."""
    options = _parser().parse_args()
    try:
        sys.stdout.write(_ACTS[options.act](options))
    except (InstarError, OSError) as error:
        sys.stderr.write(f"instar-fleet: {error}\n")
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instar-fleet", description=__doc__, allow_abbrev=False)
    acts = parser.add_subparsers(dest="act", required=True)
    init = acts.add_parser("init", help="make a CA, the hub's certificate, and each lane's root")
    init.add_argument("folder", type=Path)
    init.add_argument(
        "--hub", action="append", required=True, metavar="HOST", help="name or address that devices will call"
    )
    init.add_argument("--lane", action="append", required=True, help="a device class; may be given again")
    joins = acts.add_parser("enrol", help="make what one device takes along")
    joins.add_argument("folder", type=Path)
    joins.add_argument("name")
    joins.add_argument("--lane", required=True)
    renews = acts.add_parser("renew", help="sign a lane's next root, with a fresh release key")
    renews.add_argument("folder", type=Path)
    renews.add_argument("--lane", required=True)
    shows = acts.add_parser("devices", help="list the devices of a running instard")
    shows.add_argument("--state", type=Path, required=True)
    shows.add_argument("--json", action="store_true")
    return parser


def _init(options: argparse.Namespace) -> str:
    enrol.init(options.folder, options.hub, options.lane, time.time())
    return (
        f"{options.folder}: ca.pem, hub.pem, hub.key, and {', '.join(options.lane)} with roots and keys.\n"
        "Keep ca.key and the lanes' root.key elsewhere; instard needs neither.\n"
    )


def _enrol(options: argparse.Namespace) -> str:
    out = enrol.enrol(options.folder, options.lane, options.name, time.time())
    return f"Take {out} to the device over a channel that you trust; name {options.name} in the fleet file.\n"


def _renew(options: argparse.Namespace) -> str:
    version = enrol.renew(options.folder / options.lane, time.time())
    return f"Root {version} of lane {options.lane} is signed; restart instard to publish it.\n"


def _devices(options: argparse.Namespace) -> str:
    socket = options.state / "run" / "hub.sock"
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://hub") as http:
            answer = http.get("/v1/devices")
    except httpx.TransportError as error:
        raise PermanentError(f"expected a hub on {socket}, got {error!r}; is instard running?") from error
    found = answer.json()
    if options.json:
        return json.dumps(found, indent=2) + "\n"
    rows = [("DEVICE", "LANE", "HEARD", "SERVES", "WANTED", "HARDWARE", "PROBLEM")]
    for one in found:
        heard = f"{one['silent_s']:.0f} s ago"
        serves, wanted = (str(one[key] or "-") for key in ("generation", "wanted"))
        hardware, problem = one["hardware"] or "-", one["problem"] or ""
        rows.append((one["name"], one["lane"], heard, serves, wanted, hardware, problem))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )


_ACTS = {"init": _init, "enrol": _enrol, "renew": _renew, "devices": _devices}
