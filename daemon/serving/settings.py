"""Where the data plane's things live: flags, then the environment. What may be served, control says."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from daemon.serving.spool import LEAST_BYTES

_ADDRESS = r"^[^:]+:[0-9]{1,5}$"


class ServeSettings(BaseModel):
    """The settings of ``instar-serve``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Path = Field(description="State folder; one instar-serve has it.")
    model: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", description="The model name that clients use.")
    listen: str = Field(
        default="127.0.0.1:8080",
        pattern=_ADDRESS,
        description="Address of the inference protocol (HOST:PORT).",
    )
    metrics: str = Field(
        default="127.0.0.1:8082", pattern=_ADDRESS, description="Address of the metrics (HOST:PORT)."
    )
    grpc: str | None = Field(
        default=None,
        pattern=r"^(unix:.+|[^:]+:[0-9]{1,5})$",
        description="Address of the inference protocol over gRPC (HOST:PORT or unix:PATH); without, none.",
    )
    spool_bytes: int = Field(
        default=256 << 20, ge=2 * LEAST_BYTES, description="Most bytes of telemetry and samples on disk."
    )
    sample_bytes_per_s: int = Field(
        default=256 << 10, ge=0, description="Most bytes of raw inputs kept a second; 0 keeps none."
    )
    max_body_bytes: int = Field(
        default=1 << 20, ge=1024, description="Largest request body, also after decompression."
    )
    max_batch: int = Field(
        default=32, ge=1, le=1024, description="Most rows of one run of the model, and of one request."
    )
    max_waiting: int = Field(
        default=1024, ge=1, description="Most requests that wait or run at once; more are turned away (429)."
    )
    max_connections: int = Field(
        default=12_000, ge=1, description="Most connections at once; more are turned away (503)."
    )
    head_timeout_s: float = Field(
        default=10.0, gt=0.0, le=300.0, description="Seconds within which a request's head must be here."
    )
    body_timeout_s: float = Field(
        default=10.0, gt=0.0, le=300.0, description="Seconds within which a request's body must be here."
    )
    idle_timeout_s: float = Field(
        default=75.0, gt=0.0, le=86_400.0, description="Seconds that a connection may wait for a request."
    )
    telemetry: bool = Field(
        default=True,
        description="Whether requests are recorded (on, off); off, monitors and searches see nothing.",
    )
    repository_control: bool = Field(
        default=False, description="Whether clients may load and unload the model (on, off)."
    )
    drain_s: float = Field(
        default=10.0, ge=0.0, le=300.0, description="Seconds that open requests get at the end."
    )
    pin: int | None = Field(default=None, ge=0, description="CPU to stay on.")
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="Least level that is logged."
    )

    @property
    def blobs(self) -> Path:
        """The blob store, read only."""
        return self.state / "blobs"

    @property
    def deployment(self) -> Path:
        """What to serve after a restart."""
        return self.state / "deploy" / "deployment.json"

    @property
    def spool(self) -> Path:
        """Telemetry and samples."""
        return self.state / "spool"

    @property
    def admin_socket(self) -> Path:
        """Where control says what to serve."""
        return self.state / "run" / "serve.sock"

    @property
    def lock(self) -> Path:
        """Held by the one process that serves from this state."""
        return self.state / "run" / "serve.lock"

    @classmethod
    def from_args(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "ServeSettings":
        """Read flags, then ``INSTAR_*`` variables, then defaults; exits with usage on a wrong one."""
        parser = argparse.ArgumentParser(
            prog="instar-serve", description="Instar's data plane.", allow_abbrev=False
        )
        for name, field in cls.model_fields.items():
            variable = f"INSTAR_{name.upper()}"
            fallback = environ.get(variable, None if field.is_required() else field.default)
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                default=fallback,
                required=fallback is None and field.is_required(),
                help=f"{field.description} {variable}. [{fallback}]",
            )
        try:
            return cls.model_validate(vars(parser.parse_args(argv)))
        except ValueError as error:
            parser.error(str(error))
