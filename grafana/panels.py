"""The few kinds of panel that the dashboards are made of, and the PromQL that they share.

Promises: every panel has a description, a unit and the dashboard's data source; the same code gives the same JSON;
every selector matches series without a `namespace` label too, because each variable's "All" is `.*`.

What a panel asks belongs in `on_call.py` and `single_stream.py`, not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

# What the labels of a metric let the variables choose.
REPLICA = 'namespace=~"$namespace"'
API = f'{REPLICA}, api=~"$api"'
GENERATION = f'{API}, upstream=~"$upstream", model=~"$model"'

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, ORANGE, RED = "#73BF69", "#FADE2A", "#FF9830", "#F2495C"
BLUE, PURPLE, GREY = "#5794F2", "#B877D9", "#8E8E8E"

PER_SECOND = "suffix:/s"
FOUND = "live|replay|complete|joined"
MISSED = "stream_not_found|stream_expired|position_unknown|response_id_ambiguous|store_unavailable|store_behind"
RESULTS = {
    "live": GREEN,
    "replay": BLUE,
    "complete": PURPLE,
    "joined": "#8AB8FF",
    "stream_not_found": RED,
    "stream_expired": ORANGE,
}
OUTCOMES = {"completed": GREEN, "stopped": BLUE, "abandoned": GREY, "failed": RED}

Steps = Sequence[tuple[float | None, str]]
Panel = Any  # the library has a builder class for each kind and no common base

_NAN = model.SpecialValueMap(
    model.DashboardSpecialValueMapOptions(
        match=model.SpecialValueMatch.NULL_AND_NAN, result=model.ValueMappingResult(text="–", color=GREY)
    )
)


@dataclass(frozen=True)
class Ask:
    """One query of a panel; `exemplar` asks for stream ids too."""

    expr: str
    legend: str = ""
    exemplar: bool = False

    def target(self, letter: str, *, instant: bool = False, form: PromQueryFormat | None = None) -> Any:
        query = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(self.expr).legend_format(self.legend)
        query = query.instant() if instant else query.range()
        if self.exemplar:
            query = query.exemplar(True)
        return query if form is None else query.format(form)


def rate(metric: str, selector: str, by: str = "", window: str = "$__rate_interval") -> str:
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{selector}}}[{window}]))"


def quantile(q: float, histogram: str, selector: str, by: str = "", window: str = "$__rate_interval") -> str:
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({grouping}) (rate({histogram}_bucket{{{selector}}}[{window}])))"


def share(part: str, whole: str) -> str:
    """Of two sums without labels; 0 while there is no series of the part yet."""
    return f"({part} or vector(0)) / {whole}"


def percentiles(histogram: str, selector: str, *, exemplar: bool = False) -> list[Ask]:
    asks = [Ask(quantile(q, histogram, selector), f"p{q * 100:.0f}") for q in (0.5, 0.95)]
    return [*asks, Ask(quantile(0.99, histogram, selector), "p99", exemplar)]


def number(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str,
    steps: Steps,
    words: Mapping[str, str] | None = None,
    decimals: int | None = None,
) -> Panel:
    """One value, coloured by its thresholds. `words` are shown instead of values."""
    panel = _base(stat.Panel(), title, description, unit, width=3, height=4)
    panel = panel.with_target(Ask(expr).target("A")).thresholds(_thresholds(steps))
    panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.color_mode(kinds.BigValueColorMode.BACKGROUND_SOLID).graph_mode(kinds.BigValueGraphMode.NONE)
    if decimals is not None:
        panel = panel.decimals(decimals)
    named = {value: model.ValueMappingResult(text=word) for value, word in (words or {}).items()}
    return panel.mappings([*([model.ValueMap(named)] if named else []), _NAN])


def graph(
    title: str,
    description: str,
    asks: Sequence[Ask],
    *,
    unit: str,
    width: int = 8,
    steps: Steps = (),
    stacked: bool = False,
    bounds: tuple[float | None, float | None] = (0, None),
    colors: Mapping[str, str] | None = None,
) -> Panel:
    """Lines over time; `steps` draw dashed lines where it gets bad, `colors` are of series by name."""
    panel = _base(timeseries.Panel(), title, description, unit, width=width, height=8)
    for letter, ask in zip("ABCDEF", asks, strict=False):
        panel = panel.with_target(ask.target(letter))
    legend = common.VizLegendOptions().show_legend(True).placement(kinds.LegendPlacement.BOTTOM)
    legend = legend.display_mode(kinds.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
    panel = panel.legend(legend.sort_by("Max").sort_desc(True))
    panel = panel.tooltip(
        common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
    )
    panel = panel.line_width(1).fill_opacity(60 if stacked else 8).show_points(kinds.VisibilityMode.NEVER)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    low, high = bounds
    panel = panel if low is None else panel.min(low)
    panel = panel if high is None else panel.max(high)
    if steps:
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        )
    for name, color in (colors or {}).items():
        fixed = {"mode": "fixed", "fixedColor": color}
        panel = panel.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
    return panel


def buckets(title: str, description: str, histogram: str, selector: str, *, width: int) -> Panel:
    """A histogram's buckets over time, with its exemplars: a dot is one stream."""
    panel = _base(heatmap.Panel(), title, description, "s", width=width, height=12)
    ask = Ask(rate(f"{histogram}_bucket", selector, "le"), "{{le}}", exemplar=True)
    panel = panel.with_target(ask.target("A", form=PromQueryFormat.HEATMAP))
    return panel.calculate(False).y_axis(heatmap.YAxisConfig().unit("s")).exemplars_color("rgba(255,120,10,0.9)")


def rows_of(
    title: str, description: str, asks: Mapping[str, Ask], *, units: Mapping[str, str], width: int, sort: str
) -> Panel:
    """A table: the labels of the series, then a column for each query, named by its key."""
    panel = _base(table.Panel(), title, description, "short", width=width, height=8)
    for letter, ask in zip("ABCDEF", asks.values(), strict=False):
        panel = panel.with_target(ask.target(letter, instant=True, form=PromQueryFormat.TABLE))
    names = {f"Value #{letter}": name for letter, name in zip("ABCDEF", asks, strict=False)}
    if len(asks) == 1:
        names = {"Value": next(iter(asks))}
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(
        model.DataTransformerConfig(
            id_val="organize", options={"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}
        )
    )
    for name, unit in units.items():
        panel = panel.override_by_name(name, [model.DynamicConfigValue(id_val="unit", value=unit)])
    return panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])


def words(title: str, markdown: str, *, width: int, height: int) -> Panel:
    return text.Panel().title(title).span(width).height(height).mode(TextMode.MARKDOWN).content(markdown)


def board(
    uid: str, title: str, description: str, other: tuple[str, str], rows: Sequence[tuple[str, Sequence[Panel]]]
) -> model.Dashboard:
    """A dashboard; `other` is the uid and the title of the one that goes with it."""
    made = dashboard.Dashboard(title).uid(uid).description(description).tags(["relay", "llm"]).editable()
    made = made.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
    link = dashboard.DashboardLink(other[1]).url(f"/d/{other[0]}").type(model.DashboardLinkType.LINK)
    made = made.link(link.icon("dashboard").include_vars(True).keep_time(True))
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, query in (
        ("namespace", "label_values(relay_build_info, namespace)"),
        ("api", f"label_values(relay_streams_active{{{REPLICA}}}, api)"),
        ("upstream", f"label_values(relay_streams_active{{{API}}}, upstream)"),
        ("model", f'label_values(relay_streams_active{{{API}, upstream=~"$upstream"}}, model)'),
    ):
        made = made.with_variable(_variable(name, query))
    number = 0
    for row, panels in rows:
        number += 1
        made = made.with_row(dashboard.Row(row).id(number))
        for panel in panels:
            number += 1
            made = made.with_panel(panel.id(number))
    return made.build()


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    every = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    made = dashboard.QueryVariable(name).label(name).query(query).datasource(SOURCE).current(every)
    made = made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    return made.include_all(True).all_value(".*").multi(True)


def _base(panel: Panel, title: str, description: str, unit: str, *, width: int, height: int) -> Panel:
    return panel.title(title).description(description).datasource(SOURCE).unit(unit).span(width).height(height)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [model.Threshold(value, color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(made)
