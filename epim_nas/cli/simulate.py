"""``epim-nas evaluate --simulate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import typer

from epim_nas.cli.output import console, print_json
from epim_nas.errors import InputError

T = TypeVar("T", int, float)


def simulate_command(
    design: Path,
    run: str,
    *,
    weights: Path | None,
    split: str,
    adc_bits: str,
    variation: str,
    adc_range: str,
    imperfections: Mapping[str, float],
    drift: str,
    seed: int,
    images: int,
    out: Path | None,
    overrides: list[str] | None,
    json_: bool,
) -> None:
    """Print what the simulator measures; arguments are those of the command."""
    from epim_nas.datapath.simulator.options import AdcRange, Devices
    from epim_nas.pipeline.simulate import simulate_design
    from epim_nas.report.simulation import simulation_table

    exponent, spread, time = _numbers("--drift", drift, float, 3)
    result = simulate_design(
        design,
        run,
        adc_bits=_numbers("--adc-bits", adc_bits, int),
        variations=_numbers("--variation", variation, float),
        adc_range=cast(AdcRange, adc_range),
        devices=Devices(
            **imperfections,
            drift_exponent=exponent,
            drift_spread=spread,
            drift_time=time,
            seed=seed,
        ),
        images=images,
        weights=weights,
        split=split,
        out=out,
        overrides=overrides,
    )
    if json_:
        print_json(result)
        return
    typer.echo(
        f"{result['network']} on {result['chip']}, {result['images']} {split} images; in torch "
        f"{100 * result['torch_accuracy']:.2f} %"
    )
    console().print(simulation_table(result["rows"]))
    events = result["events"]
    typer.echo(
        f"One inference: {events['activations']:,} crossbar reads, "
        f"{events['dac_conversions']:,} DAC and {events['adc_conversions']:,} ADC conversions"
    )
    typer.echo(f"Figure in {result['figure']}")


def _numbers(option: str, text: str, kind: Callable[[str], T], count: int | None = None) -> list[T]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        allowed = "numbers with commas between them"
        raise InputError(option, f"got `{text}`", f"{count} {allowed}" if count else allowed)
    return values
