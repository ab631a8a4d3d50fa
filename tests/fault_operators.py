"""An operator whose providers misbehave on purpose, one fault each; workers find it through an entry point.

The provider `lottery` draws a fault for each case from OPBENCH_FAULT_SEED; without the variable it is always well.
"""

import ctypes
import json
import os
import random
import signal
import sys
import time

import torch
from builders import doubling

from opbench.workload.operator import Provider

HEALTHY = "healthy"


def segfault(x):
    ctypes.string_at(0)


def abort(x):
    os.abort()


def hang(x):
    time.sleep(1000)


def hang_in_c(x):
    ctypes.PyDLL(None).pause()  # holds the interpreter's lock, so that no Python code of the worker runs any more


def leave(x):
    sys.exit(3)


def leave_at_once(x):
    os._exit(4)


def be_killed(x):
    os.kill(os.getpid(), signal.SIGKILL)


def allocate(x):
    kept = []
    while True:
        kept.append(torch.ones(2**24))


def nan(x):
    return x * float("nan")


def wrong(x):
    return x * 2.5


def wrong_shape(x):
    return (x * 2)[:, 1:]


def raise_at_length(x):
    raise ValueError("long " * 200_000)


def raise_unprintable(x):
    raise ValueError("bad \udcff\x1b[2J\x00 text\nof two lines")


class MuteError(Exception):
    def __str__(self):
        raise ValueError("no words")


def raise_mute(x):
    raise MuteError


def chatter(x):
    print(json.dumps({"stage": "lies"}))
    os.write(1, b'{"measurement": {"status": "ok"}}\n' * 1000)
    os.write(2, b"\xff\xfe\n")
    return x * 2


def change_flags(x):
    result = x * 2
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch._C._set_deterministic_algorithms(True)  # the public function imports torch's compiler, for seconds
    torch.backends.cudnn.benchmark = True
    torch.autograd.set_grad_enabled(False)
    os.environ["OMP_NUM_THREADS"] = "99"
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return result


def change_seed(x):
    torch.manual_seed(0)
    random.seed(0)
    return x * 2


def fork(x):
    os.fork()  # both go on
    return x * 2


def fork_a_daemon(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        while True:
            time.sleep(1000)
    return x * 2


def close_files(x):
    os.closerange(3, 100)
    return x * 2


# What the row of each fault must say; None stands for one that does no harm, but may have to be told.
EXPECTED = {
    segfault: ("error", r"the worker process died in \w+: signal SIGSEGV"),
    abort: ("error", r"the worker process died in \w+: signal SIGABRT"),
    hang: ("timeout", r"no result after [\d.]+ s, in \w+"),
    hang_in_c: ("timeout", r"no result after [\d.]+ s, in \w+"),
    leave: ("error", r"SystemExit in \w+: 3"),
    leave_at_once: ("error", r"the worker process died in \w+: exit code 4"),
    be_killed: ("out_of_memory", r"the worker process died in \w+: signal SIGKILL, which the system sends when"),
    # Where Python has no memory left to handle the error with, it ends.
    allocate: ("out_of_memory", r"RuntimeError in \w+: .*can't allocate memory|exit code 1 \(MemoryError\)"),
    nan: ("wrong", r"values of the output are not finite"),
    wrong: ("wrong", r"output is off by"),
    wrong_shape: ("wrong", r"output has shape \(\d+, \d+, \d+, \d+\), expected"),
    raise_at_length: ("error", r"ValueError in \w+: (long ){50}.*…, at fault_operators.py:\d+$"),
    raise_unprintable: (
        "error",
        r"ValueError in \w+: bad \\udcff\\x1b\[2J\\x00 text of two lines, at fault_operators.py:\d+$",
    ),
    raise_mute: ("error", r"MuteError in \w+: no message"),
    chatter: ("ok", None),
    change_flags: ("ok", None),
    change_seed: ("ok", None),
    fork: ("ok", None),
    fork_a_daemon: ("ok", None),
    close_files: ("error", r"the worker process (answered nonsense|died) in \w+: "),
}
# They happen at the first launch alone: later ones are not compared with the reference.
IN_VALUES = (nan, wrong, wrong_shape)


def healthy(x):
    return x * 2


def launches(fault, x, at):
    """A closure that behaves until its launch number `at`."""
    count = 0

    def launch():
        nonlocal count
        count += 1
        return fault(x) if count == at else healthy(x)

    return launch


def build_fault(fault):
    return lambda case, tensors: launches(fault, tensors["x"], 1)


def drawn_fault(case_key, seed):
    """The fault of a case and the launch at which it happens: healthy in half of all cases."""
    draw = random.Random(f"{seed}/{case_key}")  # noqa: S311 - a lottery, no secret
    if not seed or draw.random() < 0.5:
        return healthy, 1
    fault = draw.choice(list(EXPECTED))
    if fault in (hang, hang_in_c) and draw.random() < 0.7:  # each costs a whole time limit
        fault = leave
    return fault, 1 if fault in IN_VALUES else draw.choice([1, 3])


def build_drawn(case, tensors):
    fault, at = drawn_fault(case.key, os.environ.get("OPBENCH_FAULT_SEED"))
    return launches(fault, tensors["x"], at)


OPERATOR = doubling(
    name="faulty",
    settings={},
    providers=(
        Provider("lottery", build_drawn, "draws a fault"),
        Provider(HEALTHY, build_fault(healthy), "none"),
        *(Provider(fault.__name__, build_fault(fault), fault.__name__) for fault in EXPECTED),
        # A fault may not leak into what comes after it.
        Provider("healthy_again", build_fault(healthy), "none"),
    ),
)
