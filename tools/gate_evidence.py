"""The tables of docs/gate.md, from the sessions under results/gate: `make gate-evidence`.

Nothing is measured here. Live rates come from the self-test's own sessions; resampled ones draw rounds from its raw
data and from a long A/A run; simulated ones run the gate's own session code on a scripted clock.
"""

import gzip
import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gate_effort import effort_rows, normal
from gate_effort import resampled as draws_of
from gate_simulation import Noise, SimulatedProcesses, simulated_cells
from scipy import stats

from opbench.compare.rules import Rules, decide, moved, screen
from opbench.compare.verdicts import Verdict, overall_verdict
from opbench.gate.process import GateArm
from opbench.gate.selftest import rate, read_outcomes, summarise
from opbench.gate.session import SessionSettings, run_session

SESSIONS = 1000
SIMULATED_CELLS = 100
TOLERANCES = (0.01, 0.02, 0.03, 0.05)
TYPICAL = Noise(process=0.0, cell=0.007, spike_rate=0.03, spike=0.03)
"""A quiet device: 0.7 % from process to process, and 3 % of the cells disturbed by up to 3 %."""


@dataclass
class Round:
    """One pair of processes: samples of base and head per cell, and the sentinel's medians."""

    cells: dict[str, tuple[list[float], list[float]]]
    sentinel: dict[str, float]

    def ratio(self, key):
        base, head = self.cells[key]
        return math.log(statistics.median(head) / statistics.median(base))


def read_rounds(path, stages=("screen",)):
    """Rounds of one session's raw data."""
    data = path.read_bytes()
    pairs = defaultdict(dict)
    for line in (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines():
        process = json.loads(line)
        if process["stage"] in stages:
            pairs[process["stage"], process["round"]][process["arm"]] = process
    rounds = []
    for pair in pairs.values():
        if set(pair) != {"base", "head"}:
            continue
        base, head = pair["base"], pair["head"]
        cells = {
            key: (cell["latencies_ms"], head["cells"][key]["latencies_ms"])
            for key, cell in base["cells"].items()
            if cell["latencies_ms"] and head["cells"].get(key, {}).get("latencies_ms")
        }
        sentinel = {name: math.log(head["sentinel"][name] / ms) for name, ms in base["sentinel"].items()}
        rounds.append(Round(cells, sentinel))
    return rounds


def table(heading, rows):
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


# Live sessions.


def live(outcomes):
    rows = []
    for fraction in sorted({o.inject for o in outcomes}):
        kind = [o for o in outcomes if o.inject == fraction]
        rows.append([
            f"{fraction:.0%}" if fraction else "A/A",
            rate(sum(o.alarmed for o in kind), len(kind)),
            rate(sum(o.caught for o in kind), len(kind)) if fraction else "",
            f"{statistics.fmean(o.seconds for o in kind) / 60:.1f}",
        ])  # fmt: skip
    return table(["slow-down", "alarms", "alarm names the operator", "minutes"], rows)


# Resampled sessions.


def resampled(pool, injected, rules, settle, generator):
    """How SESSIONS sessions drawn from real rounds end.

    Args:
        pool: A/A rounds, whose arms are exchangeable: each is turned round with probability 1/2.
        injected: log ratios by operator and cell; of one operator, drawn anew, the head's figures come from there.
    """
    keys = sorted(pool[0].cells)
    ratios = np.array([[r.ratio(key) for key in keys] for r in pool])
    sentinels = np.array([list(r.sentinel.values()) for r in pool])
    count = rules.screen_rounds + rules.confirm_rounds
    ends, caught = Counter(), 0
    for _ in range(SESSIONS):
        chosen = generator.choice(len(pool), count, replace=False)
        signs = generator.choice((-1.0, 1.0), (count, 1))
        drawn, moving = ratios[chosen] * signs, sentinels[chosen] * signs
        operator = generator.choice(sorted(injected)) if injected else None
        slow = [index for index, key in enumerate(keys) if operator and key.startswith(f"{operator}/")]
        for index in slow:
            drawn[:, index] = generator.choice(injected[operator][keys[index]], count)
        first, second = drawn[: rules.screen_rounds], drawn[rules.screen_rounds :]
        kept = screen(first, rules).kept(settle=settle)
        decision = decide(first, second[:, kept] if kept.any() else None, kept, rules)
        verdict = Verdict.SLOWER if decision.suite_slower else overall_verdict(decision.verdicts)
        rounds = count if kept.any() else rules.screen_rounds
        if any(moved(column, rules) for column in moving[:rounds].T):
            verdict = Verdict.INCONCLUSIVE
        ends[verdict] += 1
        caught += verdict is Verdict.SLOWER and any(decision.verdicts[i] is Verdict.SLOWER for i in slow)
    return ends, caught


def resampled_table(pool, injected, rules, confirm_rounds):
    rows = []
    for tolerance in TOLERANCES:
        changed = replace(rules, tolerance=tolerance, confirm_rounds=confirm_rounds)
        row = [f"{tolerance:.0%}"]
        for size in (0.0, *sorted(injected)):
            ends, caught = resampled(pool, injected.get(size, {}), changed, True, np.random.default_rng(1))
            if size:
                row.append(rate(caught, SESSIONS))
            else:
                row += [rate(ends[Verdict.SLOWER], SESSIONS), f"{ends[Verdict.SAME] / SESSIONS:.0%}"]
        rows.append(row)
    heading = ["tolerance", "A/A: alarms", "A/A: shown the same", *(f"{size:.0%} caught" for size in sorted(injected))]
    return table(heading, rows)


# Peers' rules on the same pairs of processes.

PEERS = {
    "minimum, fixed threshold of 5 % (pytest-benchmark `min:5%`)": lambda b, h: min(h) / min(b) > 1.05,
    "mean, fixed threshold of 5 % (pytest-benchmark `mean:5%`)": lambda b, h: (
        statistics.fmean(h) / statistics.fmean(b) > 1.05
    ),
    "Mann-Whitney p < 0.002 and a factor of 1.1 (asv continuous)": lambda b, h: (
        statistics.median(h) / statistics.median(b) > 1.1 and stats.mannwhitneyu(b, h).pvalue < 0.002
    ),
    "Mann-Whitney p < 0.002 and a factor of 1.03": lambda b, h: (
        statistics.median(h) / statistics.median(b) > 1.03 and stats.mannwhitneyu(b, h).pvalue < 0.002
    ),
    "Student's t-test at 95 % on the samples (pyperf compare_to)": lambda b, h: (
        statistics.fmean(h) > statistics.fmean(b) and stats.ttest_ind(b, h).pvalue < 0.05
    ),
}


def peers_table(unchanged, slowed):
    rows = []
    for name, alarm in PEERS.items():
        alarms = [any(alarm(*r.cells[key]) for key in r.cells) for r in unchanged]
        row = [name, rate(sum(alarms), len(alarms))]
        for size in sorted(slowed):
            hits = [
                any(alarm(*r.cells[key]) for key in r.cells if key.startswith(f"{operator}/"))
                for operator, rounds in slowed[size]
                for r in rounds
            ]
            row.append(rate(sum(hits), len(hits)))
        rows.append(row)
    return table(
        ["rule, on one process per arm", "A/A: alarms", *(f"{size:.0%} caught" for size in sorted(slowed))], rows
    )


# Simulated sessions.


def fitted_noise(pool):
    """Standard deviations of a process's and of a cell's factor, from A/A rounds: a round's ratio has two of each."""
    ratios = np.array([[r.ratio(key) for key in sorted(pool[0].cells)] for r in pool])
    covariance = np.cov(ratios.T)
    cells = len(covariance)
    common = (covariance.sum() - np.trace(covariance)) / (cells * (cells - 1))
    own = float(np.median(np.diag(covariance))) - common
    return Noise(process=math.sqrt(max(common, 0) / 2), cell=math.sqrt(max(own, 0) / 2))


def simulated_table(noises, sizes):
    cells = simulated_cells(SIMULATED_CELLS)
    rows = []
    for name, noise in noises.items():
        row = [name]
        for size in (0.0, *sizes):
            hits = 0
            for seed in range(SESSIONS):
                slow = cells[seed % len(cells)].key
                changes = {slow: math.log1p(size)} if size else {}
                processes = SimulatedProcesses(cells, noise, seed=seed, slower=changes)
                session = run_session(GateArm("base"), GateArm("head"), processes, SessionSettings(settle=False))
                alarmed = session.comparison.verdict is Verdict.SLOWER
                hits += alarmed and (not size or _verdict(session, slow) is Verdict.SLOWER)
            row.append(rate(hits, SESSIONS))
        rows.append(row)
    return table(["noise", "A/A: alarms", *(f"{size:.0%} caught" for size in sizes)], rows)


def _verdict(session, key):
    return next(row.verdict for row in session.comparison.cells if row.cell.key == key)


def spread_table(kinds):
    """Standard deviation of a round's log ratio per cell, for rounds that were run in different ways."""
    keys = sorted(next(iter(kinds.values()))[0].cells)
    rows = [
        [key.partition("/fp32")[0], *(f"{statistics.stdev(r.ratio(key) for r in kind):.1%}" for kind in kinds.values())]
        for key in keys
    ]
    return table(["cell", *kinds], rows)


def effort_table(pool):
    """Simulated cells, and those of the pool with the rounds that it has."""
    random = np.random.default_rng(1)
    draws = {
        f"simulated, change {mean:+.1%}, scatter {spread:.0%}": normal(math.log1p(mean), spread, random)
        for mean, spread in ((0.0, 0.02), (0.0, 0.05), (0.003, 0.02), (0.02, 0.02), (0.03, 0.03), (0.05, 0.06))
    } | {
        key.partition("/fp32")[0]: draws_of(np.array([r.ratio(key) for r in pool]), random)
        for key in sorted(pool[0].cells)
    }
    heading = ["cell", "undecided", "rounds needed", "estimate, median", "estimates within a factor of 2"]
    return table(heading, effort_rows(draws))


def _data(folder):
    return next(iter(folder.glob("processes.jsonl*")))


def main(folder, sections):
    rules = Rules()
    pool = read_rounds(_data(folder / "pool"))
    noise = fitted_noise(pool)
    if "simulated" in sections:
        print(f"## Simulated\n\nfitted: process {noise.process:.2%}, cell {noise.cell:.2%}\n")
        print(simulated_table({"typical": TYPICAL, "fitted": noise}, (0.03, 0.05, 0.1)))
    outcomes = list(read_outcomes(folder / "selftest"))
    unchanged, slowed = list(pool), defaultdict(list)
    injected = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for outcome in outcomes:
        path = folder / "selftest" / f"session-{outcome.number:02}-{outcome.inject:g}.jsonl.gz"
        if not outcome.inject:
            unchanged += read_rounds(path)
            continue
        slowed[outcome.inject].append((outcome.operator, read_rounds(path)))
        for r in read_rounds(path, ("screen", "confirm")):
            for key in r.cells:
                if key.startswith(f"{outcome.operator}/"):
                    injected[outcome.inject][outcome.operator][key].append(r.ratio(key))
    if "live" in sections:
        result = summarise(outcomes, rules)
        print("## Live\n\n" + live(outcomes))
        print(
            f"advice: tolerance {result.tolerance:.1%}, detectable {result.detectable[0]:.1%} to "
            f"{result.detectable[1]:.1%}, {result.minutes:.0f} minutes\n"
        )
    if "resampled" in sections:
        print(f"## Resampled\n\nA/A rounds: {len(unchanged)}, that is {2 * len(unchanged)} processes\n")
        print(resampled_table(unchanged, injected, rules, rules.confirm_rounds))
    if "peers" in sections:
        print("## Peers\n\n" + peers_table(unchanged, slowed))
    if "effort" in sections:
        print("## What would decide\n\n" + effort_table(pool))
    if "spread" in sections:
        kinds = {"in turns": pool, "one after the other": read_rounds(_data(folder / "sequential"))}
        print("## Spread of a round's log ratio\n\n" + spread_table(kinds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ("live", "resampled", "peers", "effort", "spread", "simulated"))
