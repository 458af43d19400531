"""Where things live: flags, then the environment. What is allowed stands in the policy, not here."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ControlSettings(BaseModel):
    """The settings of ``instard``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Path = Field(description="State folder; one instard has it.")
    task: Path = Field(description="Task file (TOML).")
    policy: Path = Field(description="Policy file (TOML), its signature beside it as .sig.")
    signers: Path = Field(description="Allowed-signers file: whose keys are trusted.")
    listen: str = Field(
        default="127.0.0.1:8090",
        pattern=r"^[^:]+:[0-9]{1,5}$",
        description="Address of console, labels and metrics (HOST:PORT).",
    )
    seed: int = Field(default=1, ge=0, description="Seed that all searches' seeds come from.")
    turn_s: float = Field(default=1.0, ge=0.1, le=60.0, description="Seconds between two turns.")
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="Least level that is logged."
    )

    @field_validator("state", "task", "policy", "signers")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        """Workers run elsewhere: a path must mean the same to them."""
        return path.absolute()

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
        """Read flags, then ``INSTAR_*`` variables, then defaults; exits with usage on a wrong one."""
        parser = argparse.ArgumentParser(
            prog="instard", description="Instar's control plane.", allow_abbrev=False
        )
        for name, field in cls.model_fields.items():
            fallback = environ.get(f"INSTAR_{name.upper()}", None if field.is_required() else field.default)
            default = "" if fallback is None else f" [{fallback}]"
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                default=fallback,
                required=fallback is None,
                help=f"{field.description} INSTAR_{name.upper()}.{default}",
            )
        try:
            return cls.model_validate(vars(parser.parse_args(argv)))
        except ValueError as error:
            parser.error(str(error))
