"""Measuring a design on the simulated crossbars: what ``evaluate --simulate`` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from epim_nas.data.base import Split
from epim_nas.datapath.simulator.counts import count_network
from epim_nas.datapath.simulator.layers import SimulatedLayer
from epim_nas.datapath.simulator.network import simulate
from epim_nas.datapath.simulator.options import AdcRange, Converter, Devices
from epim_nas.errors import InputError
from epim_nas.files import atomic_path, make_folder
from epim_nas.pipeline.evaluate import check_split, load_for, quantized_network
from epim_nas.pipeline.progress import Reporter
from epim_nas.report.figures import png_bytes
from epim_nas.report.simulation import simulation_figure
from epim_nas.supernet.evaluation import evaluate


def simulate_design(
    design_file: Path,
    run_file: str,
    *,
    adc_bits: Sequence[int],
    variations: Sequence[float],
    adc_range: AdcRange = "unit",
    devices: Devices | None = None,
    images: int = 256,
    weights: Path | None = None,
    split: str = "test",
    out: Path | None = None,
    overrides: list[str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Accuracy of one design through the crossbar simulator.

    Args:
        design_file: the design.
        run_file: run file that names network, data, chip and weights.
        adc_bits: resolutions of the ADCs.
        variations: standard deviations of the logarithm of a cell's conductance.
        adc_range: what the ADCs' codes are spread over.
        devices: the cells' other imperfections.
        images: images that are measured, at most; of every class alike.
        weights: its epitomes; without them, the run's network projected onto the design.
        split: ``validation`` or ``test``.
        out: folder of the figure; ``simulated/DESIGN`` by default.
        overrides: changes to the run file.
        reporter: shows the progress.

    Returns:
        The torch network's accuracy on the same images, a row for every resolution and variation,
        the events of one inference, and the figure's path.

    Raises:
        InputError: an option out of range, or a design with layers in floating point.
    """
    check_split(split)
    if images < 1:
        raise InputError("--images", f"got {images}", "1 or more")
    base = devices or Devices()
    # Options are checked before anything is loaded.
    settings = [
        (Converter(bits, adc_range), replace(base, variation=variation))
        for variation in dict.fromkeys(variations)
        for bits in dict.fromkeys(adc_bits)
    ]
    run, design = load_for(
        design_file, run_file, overrides, reporter, weights_needed=weights is None
    )
    events = count_network(run.network, design, run.chip)
    folder = make_folder(out if out is not None else Path("simulated") / design_file.stem, "--out")
    model = quantized_network(run, design, weights)
    config = run.config
    size = min(64, run.config.search.batch_size)
    batches = list(run.data.batches(cast(Split, split), size, images))
    # In float32: with bfloat16 the torch network itself would differ from the integers.
    score = evaluate(model, batches, config.device, "float32")
    rows = []
    with run.reporter.stage("Simulating", len(settings)) as advance:
        for done, (converter, cells) in enumerate(settings, 1):
            chip_model = simulate(model.cpu(), design, run.chip, converter, cells)
            accuracy = evaluate(chip_model, batches, config.device, "float32").accuracy
            layers = [m for m in chip_model.modules() if isinstance(m, SimulatedLayer)]
            rows.append(
                {
                    "adc_bits": converter.bits,
                    "variation": cells.variation,
                    "accuracy": accuracy,
                    "clipping_columns": sum(m.arrays.clipping_share() for m in layers)
                    / len(layers),
                    "exact_layers": sum(m.exact for m in layers),
                }
            )
            advance(done, f"{converter.bits} bits: {100 * accuracy:.2f} %")
    figure = folder / "accuracy.png"
    with atomic_path(figure) as temporary:
        temporary.write_bytes(png_bytes(simulation_figure(rows, score.accuracy, design_file.stem)))
    total: Counter[str] = Counter()
    for counts in events.values():
        total.update(counts)
    return {
        "schema": "epim-nas/simulation@1",
        "design": str(design_file),
        "network": design.network,
        "chip": run.chip.name,
        "weights": "projected" if weights is None else str(weights),
        "split": split,
        "images": score.images,
        "torch_accuracy": score.accuracy,
        "adc_range": adc_range,
        "seed": base.seed,
        "rows": rows,
        "events": dict(total),
        "layers": len(events),
        "figure": str(figure),
    }
