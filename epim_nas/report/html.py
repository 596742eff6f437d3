"""``report.html``: one self-contained page that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from epim_nas._version import __version__
from epim_nas.errors import missing_extra
from epim_nas.files import dump_yaml
from epim_nas.network.spec import Network
from epim_nas.records import RunResult
from epim_nas.report import notes
from epim_nas.report.layers import NetworkCostLike
from epim_nas.report.page_data import headline, page_data
from epim_nas.report.tables import front_rows, table_texts
from epim_nas.solver.pareto import ReferenceBox
from epim_nas.units import duration

TEMPLATE = "report.html.j2"


def render_report(
    result: RunResult,
    *,
    costs: Mapping[int, NetworkCostLike] | None = None,
    network: Network | None = None,
    reference: ReferenceBox | None = None,
    run_folder: str | None = None,
) -> str:
    """The page as text.

    Args:
        result: the run, finished or interrupted.
        costs: trial number -> cost, for the crossbars, latency and energy of layers; at least of
            the selected design.
        network: the network, for weight shapes, epitome sizes and rounds.
        reference: box of the hypervolume; by default set by the baseline's costs.
        run_folder: the run folder as the commands should name it; ``runs/NAME`` by default.

    Raises:
        InputError: jinja2 or plotly is not installed.
    """
    reference = reference or ReferenceBox.from_baseline(result.baseline.totals, result.objectives)
    headings, cells = table_texts(result)
    text: str = _template().render(
        result=result,
        headline=headline(result),
        data=page_data(result, reference, network, costs),
        headings=headings,
        table=list(zip(front_rows(result), cells, strict=True)),
        reference=reference.describe(),
        measured=notes.measured(result),
        commands=notes.commands(result, run_folder),
        seeds=notes.seeds(result.config),
        config=dump_yaml(_plain(result.config)),
        version=__version__,
        plotly_js=_plotly_js(),
    )
    return text


@lru_cache(maxsize=1)
def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise missing_extra("jinja2", "plot", "writing report.html") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is not JSON: fail here rather than in the reader's browser.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["duration"] = duration
    return environment.get_template(TEMPLATE)


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise missing_extra("plotly", "plot", "writing report.html") from None
    return str(get_plotlyjs())


def _plain(value: Any) -> Any:
    """``value`` with only what YAML can hold: other objects become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
