"""A gate on a GPU that slows itself: it waits for it to cool, and takes samples in bursts, in both arms alike."""

import io
import json

import pytest
from fake_timer import FakeTimer
from gate_simulation import simulated_cells
from test_environment import HANDLE, nvml  # noqa: F401 - a fixture

from opbench.compare.verdicts import Verdict
from opbench.gate import arm, launcher
from opbench.gate.cooling import LONGEST_WAIT_S, MOST_WAITING_S, Cooling, Pauses, cooling_notes
from opbench.gate.launcher import Launcher
from opbench.gate.process import GateArm, OpenProcess
from opbench.gate.serve import Served, serve
from opbench.gate.session import SessionSettings, run_session
from opbench.results.measurement import Measurement, Status
from opbench.timing.bursts import BurstTimer
from opbench.timing.stopping import StoppingRule, collect_samples

CELLS = simulated_cells(4)
ARMS = {"base": GateArm("base"), "head": GateArm("head")}


class FakeGpu:
    """A card that slows itself from 85 C on; sleeping cools it. Its clock moves by what is done alone."""

    def __init__(self, heating_c=12.0, heating_in_bursts_c=1.0, cooling_c_per_s=1.0):
        self.seconds, self.temperature_c = 0.0, 40.0
        self.heating_c, self.heating_in_bursts_c, self.cooling_c_per_s = heating_c, heating_in_bursts_c, cooling_c_per_s
        self.log = []

    def sleep(self, seconds):
        self.seconds += seconds
        self.temperature_c = max(40.0, self.temperature_c - self.cooling_c_per_s * seconds)

    def conditions(self):
        slowed = self.temperature_c >= 85
        reasons = ["hw_thermal_slowdown", "sw_power_cap"] if slowed else ["sw_power_cap"]
        return {"temperature_c": self.temperature_c, "clock_event_reasons": reasons}

    def measure(self, cell, arm, in_bursts):
        before = self.conditions()
        self.seconds += 1
        self.temperature_c += self.heating_in_bursts_c if in_bursts else self.heating_c
        after = self.conditions()
        slowed = "hw_thermal_slowdown" in before["clock_event_reasons"]
        self.log.append((cell.key, arm, in_bursts, slowed))
        latency = 1.4 if slowed else 1.0
        found = {"before": before, "after": after}
        return Measurement(cell, Status.OK, latencies_ms=(latency * (1 + 1e-6 * len(self.log)),), conditions=found)


@pytest.fixture
def gpu(monkeypatch):
    """Every process of a round measures on one fake card."""
    card = FakeGpu()
    card.tells = True

    class Process(OpenProcess):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ready(self):
            pass

        def ask(self, request, limit_s):
            do = request["do"]
            if do == "plan":
                self._heard = {"identity": {}, "environment": {}}
                self.cells = {cell.key: cell for cell in CELLS}
                return {}
            if do == "conditions":
                return card.conditions() if card.tells else {}
            if do == "sentinel":
                return {"sentinel": {"matrix product": [1.0]}}
            cell = next(cell for cell in CELLS if cell.key == request["key"])
            measured = card.measure(cell, self._arm.label, request["bursts"])
            return {"measurement": json.loads(measured.to_json_line())}

    monkeypatch.setattr(launcher, "OpenProcess", Process)
    return card


def cooled(card):
    return Launcher({}, Cooling(sleep=card.sleep, clock=lambda: card.seconds))


def test_both_arms_wait_until_the_card_is_cool_and_then_sample_in_bursts(gpu):
    session = run_session(ARMS["base"], ARMS["head"], cooled(gpu).run, SessionSettings(same_source_allowed=True))
    assert session.comparison.verdict is Verdict.SAME
    assert not any(slowed for *_, slowed in gpu.log)  # it slows itself after a measurement, and has cooled by the next
    modes = {}
    for number, (key, label, in_bursts, _) in enumerate(gpu.log):
        modes.setdefault((number // 2, key), set()).add((label, in_bursts))
    pairs = [*modes.values()]
    assert all({label for label, _ in pair} == {"base", "head"} for pair in pairs)
    assert all(len({in_bursts for _, in_bursts in pair}) == 1 for pair in pairs)  # never one arm alone
    assert not next(iter(pairs[0]))[1]
    assert all(in_bursts for pair in pairs[3:] for _, in_bursts in pair)


def test_what_happened_is_in_the_data_and_a_note(gpu):
    session = run_session(ARMS["base"], ARMS["head"], cooled(gpu).run, SessionSettings(same_source_allowed=True))
    kept = [json.loads(record.to_json_line()).get("pauses") for record in session.records]
    told = [pauses for pauses in kept if pauses]
    waits, waited_s = (sum(pauses[name] for pauses in told) for name in ("waits", "waited_s"))
    in_bursts = sum(in_bursts for _, _, in_bursts, _ in gpu.log)
    assert (waits > 0, sum(pauses["cells_in_bursts"] for pauses in told)) == (True, in_bursts)
    [note] = cooling_notes([(r.process.pauses, r.process.measurements.values()) for r in session.records])
    slowed = sum("hw_thermal_slowdown" in m.conditions["after"]["clock_event_reasons"]
                 for r in session.records for m in r.process.measurements.values())  # fmt: skip
    assert note == (
        f"the GPU slowed itself (hw_thermal_slowdown) in {slowed} of {len(gpu.log)} measurements; the gate waited "
        f"{waits} times for it to cool, {waited_s:.0f} s in all, and took the samples of {in_bursts} measurements in "
        "bursts of 50 ms with rests of 200 ms, in both arms"
    )


def test_a_card_that_does_not_slow_itself_is_not_waited_for(gpu):
    gpu.heating_c = 0.0
    session = run_session(ARMS["base"], ARMS["head"], cooled(gpu).run, SessionSettings(same_source_allowed=True))
    assert gpu.seconds == len(gpu.log)
    assert not any(in_bursts for _, _, in_bursts, _ in gpu.log)
    assert [r.process.pauses for r in session.records] == [Pauses()] * len(session.records)
    assert "pauses" not in json.loads(session.records[0].to_json_line())
    assert cooling_notes([(r.process.pauses, r.process.measurements.values()) for r in session.records]) == []


def test_a_card_that_never_cools_is_waited_for_within_limits(gpu):
    gpu.cooling_c_per_s = 0.0
    session = run_session(ARMS["base"], ARMS["head"], cooled(gpu).run, SessionSettings(same_source_allowed=True))
    pauses = [record.process.pauses for record in session.records]
    waited_s = sum(each.waited_s for each in pauses)
    assert waited_s == MOST_WAITING_S == gpu.seconds - len(gpu.log)
    assert sum(each.waits for each in pauses) == sum(each.ended_warm for each in pauses) == waited_s / LONGEST_WAIT_S
    [note] = cooling_notes([(r.process.pauses, r.process.measurements.values()) for r in session.records])
    assert "10 times for it to cool, 600 s in all, 10 of them until their limit of 60 s" in note


def test_arms_that_cannot_tell_are_measured_as_before_and_the_note_says_so(gpu):
    gpu.tells = False
    session = run_session(ARMS["base"], ARMS["head"], cooled(gpu).run, SessionSettings(same_source_allowed=True))
    assert not any(in_bursts for _, _, in_bursts, _ in gpu.log)
    assert gpu.seconds == len(gpu.log)
    [note] = cooling_notes([(r.process.pauses, r.process.measurements.values()) for r in session.records])
    assert note.endswith("nothing was done about it, because an arm's opbench cannot tell the state of its GPU")


def test_a_card_at_its_power_limit_is_not_waited_for():
    cooling, pauses = Cooling(sleep=lambda seconds: 1 / 0), Pauses()
    cooling.look(Measurement(CELLS[0], Status.OK, conditions={"after": {"clock_event_reasons": ["sw_power_cap"]}}))
    cooling.next_cell()
    cooling.wait(dict, pauses)
    assert (pauses, cooling.in_bursts) == (Pauses(), False)


def test_a_card_without_a_thermometer_is_waited_for_until_it_is_no_longer_slowed():
    answers = [{"clock_event_reasons": ["sw_thermal_slowdown"]}] * 3 + [{"clock_event_reasons": ["gpu_idle"]}]
    seconds = [0.0]
    cooling = Cooling(sleep=lambda more: seconds.append(seconds[-1] + more), clock=lambda: seconds[-1])
    cooling.look(Measurement(CELLS[0], Status.OK, conditions={"after": answers[0]}))
    pauses = Pauses()
    cooling.wait(lambda: answers.pop(0), pauses)
    assert (pauses.waits, pauses.waited_s, pauses.ended_warm, answers) == (1, 3.0, 0, [])


# In an arm's process.


def test_an_arm_is_asked_for_bursts_and_for_conditions(monkeypatch):
    class Fake:
        device = "cuda:0"

        def measure(self, key):
            return {"measurement": f"{key} at once"}

        def measure_in_bursts(self, key):
            return {"measurement": f"{key} in bursts"}

        def conditions(self):
            return {"temperature_c": 50}

    monkeypatch.setattr(arm, "_open", lambda options, inject: Fake())
    out = io.StringIO()
    requests = [
        {"do": "conditions", "with": {}},
        *({"do": "cell", "key": "a", **bursts} for bursts in ({}, {"bursts": False}, {"bursts": True})),
    ]
    arm._serve({"options": {}, "inject": {}}, requests, out)
    assert [json.loads(line) for line in out.getvalue().splitlines()[1:]] == [
        {"temperature_c": 50},
        *({"measurement": f"a {how}"} for how in ("at once", "at once", "in bursts")),
    ]


def test_a_revision_tells_the_conditions_of_its_gpu_and_none_of_a_cpu(nvml):  # noqa: F811
    served = object.__new__(Served)
    served.device = "cuda:0"
    nvml.answers["nvmlDeviceGetTemperature", HANDLE, 0] = 88
    told = json.loads(json.dumps(served.conditions()))
    assert (told["temperature_c"], told["clock_event_reasons"][:2]) == (88, ["sw_power_cap", "hw_thermal_slowdown"])
    served.device = "cpu"
    assert served.conditions() == {}


def test_a_revision_measures_a_cell_in_bursts(tmp_path, monkeypatch):
    rests = []
    monkeypatch.setattr(BurstTimer.__init__, "__defaults__", (rests.append,))
    shapes = tmp_path / "one.yaml"
    shapes.write_text("shapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n")
    served = serve(1, {"shapes": [str(shapes)], "ops": ["conv3x3"], "dtypes": ["fp32"], "device": "cpu",
                       "time_budget": 0.001}, {})  # fmt: skip
    [key] = served._cells
    for measure, rested in ((served.measure, False), (served.measure_in_bursts, True)):
        measured = Measurement.from_json(measure(key)["measurement"])
        assert (measured.status, measured.timer) == (Status.OK, "wall-clock")
        assert measured.latencies_ms
        assert bool(rests) == rested


def test_samples_are_taken_in_bursts_and_rests_are_no_part_of_the_budget():
    inner, calls = FakeTimer([1.6]), []

    def rest(seconds):
        calls.append("rest")
        inner._seconds += seconds

    sample = inner.sample
    inner.sample = lambda launch, count: calls.append(count) or sample(launch, count)
    timer = BurstTimer(inner, rest)
    timer.prepare(lambda: None, 10.0)
    started = timer.now()
    assert timer.sample(lambda: None, 80) == [1.6] * 80
    assert calls == ["rest", 3, 1, "rest", 3, 31, "rest", 3, 31, "rest", 3, 17]
    assert timer.now() - started == pytest.approx(92 * 0.0016)
    assert (timer.name, timer.cache, timer.launches_per_sample, timer.resolution_ms) == ("fake", "warm", 1, 0.0)


def test_the_stopping_rule_counts_the_work_alone():
    inner = FakeTimer([1.0, 9.0])

    def rest(seconds):
        inner._seconds += seconds

    rule = StoppingRule(time_budget_s=0.5, relative_half_width=-1.0)
    timer = BurstTimer(inner, rest)
    taken = collect_samples(timer, lambda: None, rule)
    assert sum(taken.latencies_ms) / 1e3 > 0.25
    assert timer.now() >= 0.5
    assert inner.now() > timer.now() + 1
