"""Settings of ``instar-device``: where things live and whom to call. A flag wins over ``INSTAR_*``."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class DeviceSettings(BaseModel):
    """The settings of ``instar-device``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hub: str = Field(
        pattern=r"^(https://[^/:]+:[0-9]{1,5}|unix:/.+)$", description="https://HOST:PORT, or unix:/PATH."
    )
    state: Path = Field(description="State folder of the instar-serve beside it.")
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", description="This device's name, as in its certificate."
    )
    root: Path = Field(description="The lane's first root, from enrolment.")
    cert: Path = Field(default=Path("device.pem"), description="This device's certificate (PEM).")
    key: Path = Field(default=Path("device.key"), description="Its private key (PEM).")
    ca: Path = Field(default=Path("ca.pem"), description="The fleet's CA (PEM).")
    beat_s: float = Field(default=1.0, ge=0.05, le=60.0, description="Seconds between two beats.")
    report_s: float = Field(default=10.0, ge=0.1, le=300.0, description="Seconds between two reports.")
    idle_rows_per_s: float = Field(
        default=5.0, ge=0.0, description="Below so many answered rows a second it has time for timings."
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="Least level that is logged."
    )

    @classmethod
    def from_args(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "DeviceSettings":
        """Read flags, then the environment.

        Raises:
            SystemExit: After ``--help``, or after usage and what is wrong on standard error, code 2.
        """
        parser = argparse.ArgumentParser(
            prog="instar-device",
            description="Joins the instar-serve of this host to a fleet's hub.",
            allow_abbrev=False,
        )
        for name, field in cls.model_fields.items():
            variable = f"INSTAR_{name.upper()}"
            fallback = environ.get(variable) or (None if field.is_required() else field.default)
            default = "required" if fallback is None else f"default: {fallback}"
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                default=fallback,
                required=fallback is None,
                metavar=name.rpartition("_")[2].upper(),
                help=f"{field.description} [{variable}, {default}]",
            )
        given = vars(parser.parse_args(argv))
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            faults = [f"--{f['loc'][0]}: {f['msg']}".replace("_", "-") for f in error.errors()]
            parser.error("; ".join(faults))
