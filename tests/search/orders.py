"""A good order, the task and rows that it names, and a folder that looks as if a search had ended there."""

from pathlib import Path

import numpy as np

from policies.terms import Artefact, Evidence, Genome, SearchResult
from policies.wire import canonical, digest_bytes

TASK = """
name = "dials"
modality = "table"
model = "dials"
classes = ["low", "high"]
group_parameter = "id"
[input]
name = "reading"
datatype = "FP32"
shape = [-1, 4]
[[sources]]
path = "rows.npz"
first = 0
last = 30
[[sources]]
path = "rows.npz"
first = 50
last = 60
[augmentation]
"""

GOOD = """# An order.
task = "task.toml"
seed = 3
budget_cpu_s = 20

[data]
path = "rows.npz"
first = 10
last = 90
search_share = 0.2

[limits]
max_params = 1000
max_size_bytes = 20000
max_p99_ms = 2.0
"""

LATER = GOOD.replace('task = "task.toml"', 'task = "task.toml"\nkind = "data"\nparent = "earlier"').replace(
    "max_params", "max_edit_distance = 5\nmax_params"
)


def rows(n: int = 100, **changed: object) -> dict[str, object]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return {"x": x, "y": (np.arange(n) % 2).astype(np.uint8)} | changed


def lay(folder: Path, **changed: object) -> None:
    """Write the task and the rows into a folder; ``changed`` are arrays."""
    (folder / "task.toml").write_text(TASK)
    np.savez(folder / "rows.npz", **rows(**changed))


def earlier(folder: Path) -> SearchResult:
    """Let a folder look as if a search had ended there."""
    folder.mkdir()
    left = Artefact(path="state.safetensors", digest=digest_bytes(b""))
    result = SearchResult(
        brief="dials-founding",
        seed=0,
        winner=Genome(space="table", genes=(1, 0)),
        bundle=left.model_copy(update={"path": "bundle.onnx"}),
        state=left,
        archive=left.model_copy(update={"path": "archive.json"}),
        evidence=(Evidence(name="accuracy_search", value=0.75, unit="share", n=4),),
        points=(),
        cpu_s=1.0,
        wall_s=1.0,
        architectures=1,
        versions={},
        phases_s={},
    )
    (folder / "result.json").write_bytes(canonical(result))
    return result
