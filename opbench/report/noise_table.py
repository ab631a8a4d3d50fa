"""How far processes of the same code differ on a device, as a table."""

from opbench.compare.noise import Noise
from opbench.device.interference import OTHER_LOAD
from opbench.report.render import Table
from opbench.report.value_text import three_digits
from opbench.stats import median
from opbench.text import percent_text

__all__ = ["noise_table"]


def noise_table(noise: Noise) -> Table:
    """Every cell with the range of its processes' medians; what `opbench compare` takes from it is the first note."""
    rows = tuple(
        (
            key,
            str(len(medians)),
            *(three_digits(value) for value in (min(medians), median(medians), max(medians))),
            percent_text(round(max(medians) / min(medians) - 1, 4)),
        )
        for key, medians in noise.medians_ms.items()
    )
    share = noise.conditions.get("other_cpu_share") or 0.0
    busy = (
        f"Other processes used up to {share:.0%} of all cores meanwhile: measure again when they have ended, with "
        "`opbench noise --again`."
    )
    return Table(
        name="noise",
        title=f"Medians of processes of the same code on {noise.device_name}",
        columns=("Cell", "Processes", "least, ms", "median, ms", "most, ms", "most / least - 1"),
        rows=rows,
        notes=(
            f"`opbench compare` calls no change slower or faster that is within {percent_text(noise.spread)}: of two "
            "processes of the same code, one pair in a thousand differs by more.",
            f"Measured {noise.measured_at} with "
            + ", ".join(f"{name} {value}" for name, value in noise.identity.items() if name != "device")
            + ".",
            *([busy] if share > OTHER_LOAD else []),
        ),
        text_columns=1,
    )
