"""Settings of ``instard``: where things live. What is allowed stands in the policy, not here.

* A flag wins over its ``INSTAR_*`` variable, that over the default; an empty variable counts as not set.
* A wrong value stops the start with usage and exit code 2, naming the flag, what was expected and what came.
* Folders and sockets below the state folder are derived, so that one flag moves everything.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from daemon.control.targets.choice import parse


class ControlSettings(BaseModel):
    """The settings of ``instard``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Path = Field(description="State folder, made when it is not there; one instard has it.")
    task: Path = Field(description="Task file (TOML).")
    policy: Path = Field(description="Policy file (TOML), its signature beside it as .sig.")
    signers: Path = Field(description="Allowed-signers file: whose keys are trusted.")
    listen: str = Field(
        default="127.0.0.1:8090",
        pattern=r"^[^:]+:[0-9]{1,5}$",
        description="Address of console, labels and metrics, HOST:PORT, port 1 to 65535.",
    )
    target: str = Field(
        default="serve",
        description="Where deployments go: serve, repository:DIR or v2:DIR,URL (docs/targets.md).",
    )
    fleet: Path | None = Field(
        default=None,
        description="Fleet file (TOML): device classes that join by mutual TLS (docs/devices.md).",
    )
    serve_cpu: int | None = Field(
        default=None, ge=0, description="CPU of instar-serve alone (its --pin); searches keep off it."
    )
    seed: int = Field(default=1, ge=0, description="Seed that all searches' seeds come from, 0 or more.")
    turn_s: float = Field(default=1.0, ge=0.1, le=60.0, description="Seconds between two turns, 0.1 to 60.")
    log_level: str = Field(
        default="info",
        pattern="^(debug|info|warning|error)$",
        description="Least level that is logged: debug, info, warning or error.",
    )

    @field_validator("state", "task", "policy", "signers", "fleet")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Workers run elsewhere: a path must mean the same to them."""
        if path is None:
            return None
        if path == Path():
            raise ValueError("expected a path")
        return path.absolute()

    @field_validator("target")
    @classmethod
    def _known_target(cls, text: str) -> str:
        parse(text)
        return text

    @field_validator("listen")
    @classmethod
    def _port(cls, address: str) -> str:
        if not 1 <= int(address.rpartition(":")[2]) <= 65535:
            raise ValueError("expected a port from 1 to 65535")
        return address

    @property
    def journal(self) -> Path:
        """The journal's database."""
        return self.state / "journal.db"

    @property
    def blobs(self) -> Path:
        """The blob store."""
        return self.state / "blobs"

    @property
    def samples(self) -> Path:
        """Raw samples by role."""
        return self.state / "samples"

    @property
    def spool(self) -> Path:
        """The data plane's telemetry."""
        return self.state / "spool"

    @property
    def run(self) -> Path:
        """Sockets."""
        return self.state / "run"

    @property
    def control_socket(self) -> Path:
        """Where operators knock."""
        return self.run / "control.sock"

    @property
    def serve_socket(self) -> Path:
        """Where the data plane listens for its deployment."""
        return self.run / "serve.sock"

    @property
    def jobs(self) -> Path:
        """Workers' folders."""
        return self.state / "jobs"

    @property
    def reports(self) -> Path:
        """Reports under a candidate's name."""
        return self.state / "reports"

    @property
    def snapshots(self) -> Path:
        """The monitors' memory."""
        return self.state / "snapshots"

    @classmethod
    def from_args(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "ControlSettings":
        """Read flags, then ``INSTAR_*`` variables, then defaults.

        Raises:
            SystemExit: After ``--help``, or after usage and what is wrong on standard error, code 2.
        """
        parser = argparse.ArgumentParser(
            prog="instard",
            description="Instar's control plane: watches, searches, judges, and asks before it changes.",
            epilog="A flag wins over its variable. What is allowed stands in the policy, not here.",
            allow_abbrev=False,
        )
        for name, field in cls.model_fields.items():
            variable = f"INSTAR_{name.upper()}"
            fallback = environ.get(variable) or (None if field.is_required() else field.default)
            default = "required" if field.is_required() else f"default: {field.default}"
            default = default if fallback in (None, field.default) else f"default: {fallback}"
            parser.add_argument(
                _flag(name),
                default=fallback,
                required=field.is_required() and fallback is None,
                metavar=name.rpartition("_")[2].upper(),
                help=f"{field.description} [{variable}, {default}]".replace("%", "%%"),
            )
        given = vars(parser.parse_args(argv))
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            parser.error("; ".join(_words(fault["loc"], fault["msg"], given) for fault in error.errors()))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _words(place: tuple[int | str, ...], message: str, given: Mapping[str, object]) -> str:
    """Return a fault in terms of the flag, e.g. ``--turn-s: Input should be ..., got '0'``."""
    name = str(place[0])
    # pydantic's own prefix for what a validator of ours raised
    message = message.removeprefix("Value error, ")
    return f"{_flag(name)}: {message}, got {given[name]!r} (flag, or INSTAR_{name.upper()})"
