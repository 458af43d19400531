"""The fleet file: which devices there are, by class, and how a class is treated. TOML, no silent defaults.

* One lane a device class; a device is in one lane, and its name is the one in its certificate. Whoever is not
  named here is not let in, whatever certificate it shows: taking a name out is how a device is revoked.
* Relative paths start at the file's folder.
* A fault is told with its key, what was expected, and what came.

Read once, at the start of ``instard``.
"""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from policies.errors import PolicyError
from policies.terms import Name, Share

_ADDRESS = r"^[^:]+:[0-9]{1,5}$"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HubTable(_Table):
    """The door that devices knock at."""

    listen: str = Field(pattern=_ADDRESS, description="HOST:PORT.")
    cert: Path = Field(description="The hub's certificate (PEM).")
    key: Path = Field(description="Its private key (PEM), readable by instard alone.")
    ca: Path = Field(description="The CA that signed the devices' certificates (PEM).")


class Lane(_Table):
    """One device class."""

    policy: Path = Field(description="The lane's policy, its signature beside it as .sig.")
    roots: Path = Field(description="Folder of the lane's signed roots, N.root.json.")
    release_key: Path = Field(description="Private key (PEM, Ed25519) that signs the lane's releases.")
    devices: tuple[Name, ...] = Field(min_length=1)
    inherit: bool = Field(description="Found from the main lane's live generation, without training.")
    fresh_s: float = Field(
        ge=10.0, le=604_800.0, description="How long a release statement holds; older than that is a freeze."
    )
    converged: Share = Field(description="Share of the devices online that must serve what is wanted.")
    offline_s: float = Field(gt=0.0, le=604_800.0, description="Unheard of for longer, it is not waited for.")
    timed_by: int = Field(ge=1, le=100, description="Devices that must time a candidate before it is judged.")
    telemetry_bytes: int = Field(ge=1 << 20, description="Most bytes of one kind that wait to be read.")
    device_bytes_per_s: int = Field(ge=1024, description="Most telemetry of one device, over ten seconds.")

    @model_validator(mode="after")
    def _enough(self) -> "Lane":
        if self.converged <= 0:
            raise ValueError("expected converged above 0: a release that no device serves is not staged")
        if self.timed_by > len(self.devices):
            raise ValueError(f"expected timed_by of at most {len(self.devices)}, the lane's devices")
        return self


class Fleet(_Table):
    """The fleet file."""

    format: Literal[1]
    hub: HubTable
    lanes: dict[Name, Lane] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_lane_each(self) -> "Fleet":
        owner: dict[str, str] = {}
        for name, lane in self.lanes.items():
            for device in lane.devices:
                if owner.setdefault(device, name) != name or lane.devices.count(device) > 1:
                    raise ValueError(f"expected each device once, {device} is in {owner[device]} and {name}")
        return self

    @property
    def lane_of(self) -> dict[str, str]:
        """Return each device's lane."""
        return {device: name for name, lane in self.lanes.items() for device in lane.devices}


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file.

    Raises:
        PolicyError: It cannot be read, or a line for each key that is missing, unknown or out of bounds.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"expected a fleet file (TOML) at {path}, got {error}") from error
    try:
        fleet = Fleet.model_validate(data)
    except ValidationError as error:
        raise PolicyError("\n".join(_words(path, fault["loc"], fault) for fault in error.errors())) from error
    return _absolute(fleet, path.absolute().parent)


def _absolute(fleet: Fleet, folder: Path) -> Fleet:
    hub = fleet.hub.model_copy(update={k: folder / getattr(fleet.hub, k) for k in ("cert", "key", "ca")})
    lanes = {
        name: lane.model_copy(
            update={k: folder / getattr(lane, k) for k in ("policy", "roots", "release_key")}
        )
        for name, lane in fleet.lanes.items()
    }
    return fleet.model_copy(update={"hub": hub, "lanes": lanes})


def _words(path: Path, place: tuple[int | str, ...], fault: object) -> str:
    where = ".".join(map(str, place)) or "the file"
    kind, message = (fault["type"], fault["msg"]) if isinstance(fault, dict) else ("", str(fault))
    told = {
        "missing": "missing; there is no default",
        "extra_forbidden": "unknown key; remove it or correct its name",
    }.get(kind, message.removeprefix("Value error, "))
    return f"{path}, {where}: {told}"
