#!/usr/bin/env python3
"""The Grafana board, built as code: ``views.toml`` says what it shows, ``instar.json`` is what this writes.

* Two rows: Overview (rate, errors, duration of serving) and Adaptation (what the loop sees and does).
* Every panel has a unit, a description and the datasource variable; every expression names known metrics.
* The same source gives the same bytes. ``tests/monitoring`` holds all of it, and has promtool parse every
  expression. What no test holds: that Grafana draws it, for no Grafana was at hand.

Run it after an edit: ``python monitoring/grafana/board.py``. Needs grafana-foundation-sdk (extra ``dev``).
"""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models

VIEWS = Path(__file__).with_name("views.toml")
TARGET = Path(__file__).with_name("instar.json")
UID = "instar"
COLUMNS = 24
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
MODEL = '{model="$model"}'


@dataclass(frozen=True)
class View:
    """One panel: what it asks (``expr`` and ``legend``), in which unit, and what its reader should know.

    ``limit`` draws a line that must not be crossed, upwards or, with ``below``, downwards; ``now`` shows
    the last value in large, under the name that ``words`` gives it.
    """

    title: str
    unit: str
    description: str
    queries: list[dict[str, str]]
    limit: float | None = None
    below: bool = False
    now: bool = False
    width: int = 8
    words: dict[str, str] = field(default_factory=dict)


def views(path: Path = VIEWS) -> dict[str, tuple[View, ...]]:
    """Return the views of each row, in order.

    Raises:
        TypeError: A view has a key that is not one, or lacks one.
    """
    rows: dict[str, list[dict[str, Any]]] = tomllib.loads(path.read_text(encoding="utf-8"))
    return {row.capitalize(): tuple(View(**view) for view in found) for row, found in rows.items()}


def _thresholds(view: View) -> dashboard.ThresholdsConfig:
    low, high = ("red", "green") if view.below else ("green", "red")
    steps = [models.Threshold(value=None, color=low)]
    if view.limit is not None:
        steps.append(models.Threshold(value=view.limit, color=high))
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _queries(view: View) -> Iterator[prometheus.Dataquery]:
    for number, asked in enumerate(view.queries):
        query = prometheus.Dataquery().expr(asked["expr"]).legend_format(asked["legend"])
        query.ref_id(chr(ord("A") + number))
        yield query.datasource(DATASOURCE).instant() if view.now else query.datasource(DATASOURCE).range()


def _place(view: View, x: int, y: int) -> models.GridPos:
    return models.GridPos(h=6, w=view.width, x=x, y=y)


def _draw(view: View, number: int, place: models.GridPos) -> stat.Panel | timeseries.Panel:
    panel: stat.Panel | timeseries.Panel
    if view.now:
        # An info metric's value is always 1: what it says stands in the label.
        named = view.queries[0]["expr"].partition("{")[0].endswith("_info")
        panel = (
            stat.Panel()
            .text_mode(shapes.BigValueTextMode.NAME if named else shapes.BigValueTextMode.VALUE)
            .graph_mode(shapes.BigValueGraphMode.NONE)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        )
        if view.words:
            texts = {value: models.ValueMappingResult(text=text) for value, text in view.words.items()}
            panel.mappings([models.ValueMap(options=texts)])
    else:
        line = (
            shapes.GraphTresholdsStyleMode.OFF if view.limit is None else shapes.GraphTresholdsStyleMode.LINE
        )
        panel = (
            timeseries.Panel()
            .line_width(1)
            .fill_opacity(8)
            .show_points(shapes.VisibilityMode.NEVER)
            .thresholds_style(common.GraphThresholdsStyleConfig().mode(line))
            # Unset, the builder would write "options: null", which Grafana's own schema refuses.
            .legend(
                common.VizLegendOptions()
                .display_mode(shapes.LegendDisplayMode.LIST)
                .placement(shapes.LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI))
        )
    panel.id(number).title(view.title).description(view.description).unit(view.unit).datasource(DATASOURCE)
    panel.thresholds(_thresholds(view)).grid_pos(place)
    for query in _queries(view):
        panel.with_target(query)
    return panel


def _annotation(name: str, expression: str, color: str) -> dashboard.AnnotationQuery:
    query = dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True)
    return query.expr(expression).icon_color(color)


def board() -> dict[str, Any]:
    """Return the board as Grafana's JSON model."""
    built = (
        dashboard.Dashboard("Instar")
        .uid(UID)
        .description("What a model that re-searches itself serves, sees, and does. Built by board.py.")
        .tags(["instar"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("model")
            .label("Model")
            .datasource(DATASOURCE)
            .query("label_values(instar_serve_requests_total, model)")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
        .annotation(
            _annotation(
                "Swap", f"changes(instar_serve_model_loaded_timestamp_seconds{MODEL}[1m]) > 0", "blue"
            )
        )
        .annotation(_annotation("Alarm", f"increase(instar_drift_alarms_total{MODEL}[1m]) > 0", "orange"))
        .annotation(_annotation("Taken back", "increase(instar_guard_rollbacks_total[1m]) > 0", "red"))
        .annotation(_annotation("Frozen", "instar_frozen > 0", "purple"))
        .link(dashboard.DashboardLink("Console").url("http://127.0.0.1:8090").target_blank(True))
    )
    number, y = 1, 0
    for title, row in views().items():
        built.with_row(dashboard.Row(title).id(number).grid_pos(models.GridPos(h=1, w=COLUMNS, x=0, y=y)))
        number, y, x = number + 1, y + 1, 0
        for view in row:
            if x + view.width > COLUMNS:
                x, y = 0, y + 6
            built.with_panel(_draw(view, number, _place(view, x, y)))
            number, x = number + 1, x + view.width
        y += 6
    model: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(built.build()))
    return model


def text() -> str:
    """Return the board's bytes: keys in order, one newline at the end."""
    return json.dumps(board(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    print(f"wrote {TARGET}")
