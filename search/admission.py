"""What lets a brief in: everything that can be refused before any training.

* Bytes are what their digests say; the data fit the task; the parent's state and archive fit the space.
* A refusal is a ``PermanentError`` with a sentence: the same brief will be refused again.
* Limits that no genome meets are refused by ``bounds.nearest``, once the latency of this machine is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from policies.errors import PermanentError, TamperError, first_fault
from policies.terms import Artefact, Brief, Heirloom, Modality, Precision, TriggerKind
from policies.wire import canonical, digest_bytes, parse_canonical
from search.archive import Archive, read_archive
from search.dataset import Dataset, read_dataset
from search.profile import Profile, read_profile
from search.space import Genes, Space, SpaceFactory, to_genes


@dataclass(frozen=True)
class Parent:
    """What a later search starts from."""

    genes: Genes
    state: dict[str, Tensor]
    archive: Archive

    def points(self, space: Space) -> Genes:
        """Return the genomes of its archive; (n, genes)."""
        rows = [to_genes(space, point.genome) for point in self.archive.points]
        return np.stack(rows) if rows else np.empty((0, len(space.cardinalities)), dtype=np.int64)


@dataclass(frozen=True)
class Ancestor:
    """What an earlier regime left, by its generation."""

    generation: int
    genes: Genes
    state: dict[str, Tensor]
    accuracy: float


@dataclass(frozen=True)
class Admission:
    """A brief with all that it names, read and checked.

    Args:
        brief: The brief.
        space: Of its task.
        data: Its rows.
        parent: None at founding.
        library: Earlier regimes.
        profile: What this device costs, where that is known.
    """

    brief: Brief
    space: Space
    data: Dataset
    parent: Parent | None
    library: tuple[Ancestor, ...]
    profile: Profile | None


def read_brief(path: Path) -> Brief:
    """Return the brief in a file.

    Raises:
        PermanentError: It is not the canonical JSON of a brief (an unknown modality among others).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PermanentError(f"expected a brief at {path}, got {error}") from error
    parse_canonical(raw, str(path))
    try:
        return Brief.model_validate_json(raw)
    except ValidationError as error:
        raise PermanentError(f"expected a brief in {path}, got {first_fault(error)}") from error


def admit(brief: Brief, folder: Path, spaces: Mapping[Modality, SpaceFactory]) -> Admission:
    """Read and check all that a brief names.

    Args:
        brief: The brief.
        folder: Where relative paths of its artefacts begin.
        spaces: By modality.

    Raises:
        PermanentError: Something is not as the brief says.
    """
    modality = brief.task.modality
    if modality not in spaces:
        raise PermanentError(
            f"expected a modality among {', '.join(spaces)}, got {modality} in {brief.task.name}"
        )
    if Precision.FP32 not in brief.precisions:
        raise PermanentError(
            f"expected fp32 among the precisions, got {', '.join(brief.precisions)}; supernets learn in fp32"
        )
    space = spaces[modality](brief.task, brief.precisions)
    data = read_dataset(
        read_artefact(brief.data, folder), brief.task, split_regimes=brief.kind is TriggerKind.DATA
    )
    if not data.labelled and brief.kind is not TriggerKind.DATA:
        raise PermanentError(
            f"expected labels in the data of a {brief.kind} search, got none: it has to rank; label some rows"
        )
    parent = None if brief.kind is TriggerKind.FOUNDING else _parent(brief, folder, space)
    library = tuple(_ancestor(one, folder, space) for one in brief.library)
    profile = parent.archive.profile if parent else None
    if brief.profile is not None:
        profile = read_profile(read_artefact(brief.profile, folder), space)
    return Admission(brief, space, data, parent, library, profile)


def _ancestor(one: Heirloom, folder: Path, space: Space) -> Ancestor:
    try:
        genes = to_genes(space, one.genome)
        state = load(read_artefact(one.state, folder))
    except (ValueError, SafetensorError) as error:
        raise PermanentError(
            f"expected an earlier regime of space {space.name} in generation {one.generation}, got {error}"
        ) from error
    return Ancestor(one.generation, genes, state, one.accuracy)


def read_artefact(artefact: Artefact, folder: Path) -> bytes:
    """Return an artefact's bytes.

    Raises:
        TamperError: They are missing, or not what the digest says.
    """
    try:
        raw = (folder / artefact.path).read_bytes()
    except OSError as error:
        raise TamperError(f"expected the artefact {artefact.path}, got {error}") from error
    found = digest_bytes(raw)
    if found != artefact.digest:
        raise TamperError(f"expected {artefact.digest} in {artefact.path}, got {found}; export it again")
    return raw


def _parent(brief: Brief, folder: Path, space: Space) -> Parent:
    if brief.parent_genome is None or brief.parent_state is None or brief.parent_archive is None:
        raise PermanentError(
            f"expected a parent's genome, state and archive in a brief of kind {brief.kind}, "
            f"got genome {brief.parent_genome is not None}, state {brief.parent_state is not None}, "
            f"archive {brief.parent_archive is not None}; found a first generation before"
        )
    try:
        genes = to_genes(space, brief.parent_genome)
        state = load(read_artefact(brief.parent_state, folder))
    except (ValueError, SafetensorError) as error:
        raise PermanentError(f"expected a parent of space {space.name}, got {error}") from error
    archive = read_archive(read_artefact(brief.parent_archive, folder))
    if archive.space != space.name:
        raise PermanentError(f"expected an archive of space {space.name}, got one of {archive.space}")
    read_profile(canonical(archive.profile), space)
    parent = Parent(genes, state, archive)
    try:
        parent.points(space)
    except ValueError as error:
        raise PermanentError(f"expected an archive of space {space.name}, got {error}") from error
    return parent
