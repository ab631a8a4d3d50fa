"""Everything that a GPU is needed for, in three commands that each end before a deadline and lose nothing.

usage: python tools/gpu/on_gpu.py --out DIR [--part A,B,C] [--deadline S] [--steps NAMES] [--list] [--rehearse]
       python tools/gpu/on_gpu.py --prepare      where git is: notes the revision, for a copy that travels without .git

gpu_steps.py is the table of the steps. They are carried out in the order of their ranks; one whose estimate no longer
fits before the deadline is skipped and named. What a step does and how it ends stops no other. A step that ends by a
fault of one cell, or hangs in it, is run again and goes on after that cell.

Everything is written below build/gpu, which git ignores. After each step, and on SIGTERM, DIR/results.tgz has it all.
A later command goes on from there: on the same machine as it is, on another one from build/gpu/results.tgz, the archive
copied back. What is complete is not done again, unless --steps names it.

--rehearse does the same without a GPU: the sweeps by a timer that makes up its latencies, at one small shape; the
other programs dry. It keeps apart from what is measured, in build/gpu-rehearsal.

Exit codes: 0 every chosen step is complete, and well; 1 some are not, or found something (each is named); 2 usage;
143 terminated.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_folder import ARCHIVE, ARCHIVE_LIMIT_BYTES, WorkFolder
from gpu_process import GRACE_S, Ended, Ending, run_program
from gpu_steps import CELL_STALL_S, PARTS, Step, chosen
from rehearsal import rehearsed

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "gpu"
REHEARSAL = ROOT / "build" / "gpu-rehearsal"
DEADLINE_S = 560.0
RESERVE_S = GRACE_S + 5.0
"""Of the deadline, for ending the last step and writing the archive."""
ATTEMPTS = 8
CANNOT_RUN = 77
TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step: `ok`, or why it is not."""

    step: Step
    said: str
    well: bool


class Command:
    """One command: some steps until a deadline.

    Args:
        work: the folder that the commands share.
        out: where the archive and the log go.
        deadline_s: seconds for the whole command.
        variables: environment of every step.
        stall_s: seconds that a cell of a step that resumes may take.
        again: steps that are carried out although they are complete.
        clock: seconds.
    """

    def __init__(
        self,
        work: WorkFolder,
        out: Path,
        deadline_s: float,
        variables: dict[str, str],
        *,
        stall_s: float = CELL_STALL_S,
        again: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.terminated = False
        self._work, self._out, self._variables = work, out, variables
        self._stall_s, self._again, self._clock = stall_s, again, clock
        self._end = clock() + deadline_s - RESERVE_S

    def terminate(self, *_: object) -> None:
        """End after what is being done; for a signal's handler."""
        self.terminated = True

    def carry_out(self, steps: Sequence[Step]) -> int:
        """Every step that fits; the exit code."""
        outcomes = []
        for step in steps:
            if self.terminated:
                break
            outcomes.append(self._one(step))
            self.say(f"   {outcomes[-1].said}")
            self._pack()
        not_well = [outcome for outcome in outcomes if not outcome.well]
        for outcome in not_well:
            self.say(f"{outcome.step.name}: {outcome.said}")
        if self.terminated:
            missing = [step.name for step in steps[len(outcomes) :]]
            self.say(f"terminated; not begun: {', '.join(missing) or 'none'}")
            self._pack()
            return TERMINATED
        self.say(f"{len(outcomes) - len(not_well)} of {len(outcomes)} steps are complete and well")
        return int(bool(not_well))

    def say(self, text: str) -> None:
        """Print a line, and add it to the log beside the archive and to the one inside."""
        print(text, flush=True)
        for path in (self._out / "on_gpu.log", self._work.log("on_gpu")):
            with path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def _one(self, step: Step) -> Outcome:
        self.say(f"== {step.name} (about {step.estimate_s} s, {self._left_s():.0f} s left)")
        done = self._work.completed(step.name, here=step.local)
        if done and step.name not in self._again:
            return Outcome(step, f"complete since {done.at}, exit code {done.code}", done.code == 0)
        if step.needs and not ((needed := self._work.completed(step.needs, here=True)) and needed.code == 0):
            self._work.note(step.name, "skipped", note=f"{step.needs} is not done here")
            return Outcome(step, f"SKIPPED: it needs {step.needs}, which is not done here", False)
        if step.estimate_s > self._left_s():
            self._work.note(step.name, "skipped", note=f"{self._left_s():.0f} s were left")
            return Outcome(step, f"SKIPPED: {self._left_s():.0f} s are left, it takes about {step.estimate_s} s", False)
        return self._attempts(step)

    def _attempts(self, step: Step) -> Outcome:
        """Run a step, and again as long as only a cell ended it."""
        started = self._clock()
        for attempt in range(1, ATTEMPTS + 1):
            before = self._work.progress(step.name)
            ended = self._run(step, limit_s=min(step.limit_s - (self._clock() - started), self._left_s()))
            by_a_cell = ended.ending is Ending.STALLED or (
                ended.ending is Ending.ITSELF and ended.code not in (0, 1, CANNOT_RUN)
            )
            if not (step.resumes and by_a_cell) or self._work.progress(step.name) == before or self._left_s() <= 0:
                break
            self.say(f"   {ended.ending}, exit code {ended.code}: again, after the cell that ended it ({attempt})")
        return self._outcome(step, ended, self._clock() - started)

    def _run(self, step: Step, limit_s: float) -> Ended:
        folder, log = self._work.step(step.name), self._work.log(step.name)
        places = {"out": str(folder), "local": str(self._work.local)}
        command = [sys.executable, *(word.format(**places) for word in step.command)]
        self._work.note(step.name, "started")
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
        started = self._clock()
        ended = run_program(
            command, log, {**self._variables, **step.variables}, limit_s=limit_s, stall_s=self._stall_s,
            progress=(lambda: self._work.progress(step.name)) if step.resumes else None,
            terminated=lambda: self.terminated, clock=self._clock,
        )  # fmt: skip
        self._work.note(step.name, ended.ending, ended.code, round(self._clock() - started, 1))
        return ended

    def _outcome(self, step: Step, ended: Ended, seconds: float) -> Outcome:
        if ended.ending is not Ending.ITSELF:
            return Outcome(step, f"STOPPED, {ended.ending} after {seconds:.0f} s; see {step.name}.log", False)
        if ended.code == 0:
            return Outcome(step, f"ok, {seconds:.0f} s", True)
        lines = self._work.log(step.name).read_text(encoding="utf-8", errors="replace").splitlines()
        what = "NOT RUN" if ended.code == CANNOT_RUN else f"exit code {ended.code}"
        return Outcome(step, f"{what}, {seconds:.0f} s: {lines[-1][:200]}", False)

    def _left_s(self) -> float:
        return max(0.0, self._end - self._clock())

    def _pack(self) -> None:
        size = self._work.pack(self._out / ARCHIVE)
        if size > ARCHIVE_LIMIT_BYTES:
            self.say(f"{ARCHIVE} has {size / 2**20:.1f} MiB, more than the {ARCHIVE_LIMIT_BYTES >> 20} that come back")


def environment(work: WorkFolder, *, rehearse: bool) -> dict[str, str]:
    """Of every step: caches that travel in the archive, compilers' caches that stay, and no test that skips."""
    variables = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "XDG_CACHE_HOME": str(work.path / "cache"),
        "TRITON_CACHE_DIR": str(work.local / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(work.local / "inductor"),
        "MPLCONFIGDIR": str(work.local / "matplotlib"),
    }
    return variables if rehearse else {**variables, "OPBENCH_REQUIRE_GPU": "1"}


def prepare() -> int:
    """Note the revision of this checkout for a copy without .git."""
    from opbench.host.checkout import REVISION_FILE, git_revision

    revision = git_revision(Path(__file__))
    if revision is None:
        print("no git revision is known here", file=sys.stderr)
        return 2
    (ROOT / REVISION_FILE).write_text(revision + "\n", encoding="ascii")
    print(f"{REVISION_FILE}: {revision}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", default=",".join(PARTS), help="of A, B and C; all by default")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="for the whole command")
    parser.add_argument("--steps", default="", metavar="NAMES", help="these alone, complete or not; by comma or blank")
    parser.add_argument("--list", action="store_true", help="print the steps and run nothing")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU; measures nothing")
    parser.add_argument("--work", type=Path, help="folder that the commands share [default: build/gpu]")
    parser.add_argument("--stall", type=float, default=CELL_STALL_S, metavar="S", help="that a cell may take")
    parser.add_argument("--prepare", action="store_true", help="note the git revision and end")
    given = parser.parse_args(arguments)
    if given.prepare:
        return prepare()
    names = given.steps.replace(",", " ").split()
    try:
        steps = chosen(given.part.split(","), names)
    except ValueError as error:
        parser.error(str(error))
    steps = [rehearsed(step) for step in steps] if given.rehearse else steps
    if given.list:
        for step in steps:
            times = f"about {step.estimate_s} s, at most {step.limit_s} s"
            words = (*(f"{name}={value}" for name, value in step.variables.items()), *step.command)
            print(f"{step.parts} {step.name}: {times}: {' '.join(words)}")
        return 0
    if given.out is None:
        parser.error("--out is needed")
    out, work = given.out.absolute(), WorkFolder((given.work or (REHEARSAL if given.rehearse else WORK)).absolute())
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    command = Command(
        work, out, given.deadline, environment(work, rehearse=given.rehearse),
        stall_s=given.stall, again=names,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, command.terminate)
    carried = work.path / ARCHIVE
    if work.is_new and carried.exists():
        work.restore(carried)
        command.say(f"goes on from {carried}")
    return command.carry_out(steps)


if __name__ == "__main__":
    sys.exit(main())
