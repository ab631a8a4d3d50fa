"""Starts the processes that run cells, and leaves nothing of them behind; run as a program.

It imports torch once and forks a worker from itself for each group of cells, which takes milliseconds where a new
interpreter takes seconds. It never touches a device: a CUDA context does not survive a fork. Where a fork is not safe,
on macOS, a worker is a new interpreter, and this process imports nothing.

Standard input is a socket to the sweep. In: "w" with the worker's own socket starts a worker, "k" kills it, "i" and a
line of names imports modules for all workers to come; end of file means that the sweep is gone, in whatever way. Out:
one line per worker that ended, with its return code as in subprocess. Before that line is written every process that
the worker started is dead too, and their temporary files go when this process ends.
"""

import gc
import getpass
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from opbench.host.system import child_pids

__all__ = ["PR_SET_PDEATHSIG", "Supervisor", "can_fork", "main", "prctl"]

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

Serve = Callable[[socket.socket], None]


def can_fork() -> bool:
    """Whether a process that has imported torch may fork: on macOS its frameworks abort the child."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def main() -> None:
    """Serve the sweep at standard input; the argument is the worker as module:function.

    With two more, its socket and the process that watches it, this process is itself a worker that was not forked.
    """
    worker, *place = sys.argv[1:]
    if place:
        connection, parent = map(int, place)
        _become_worker(parent, connection, _function(worker))
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a dead worker leaves running becomes a child of this process
    _no_core_files()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = _private_temporary_folder()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if can_fork():
            _import(worker.partition(":")[0])
        Supervisor(control, worker).serve()
    finally:
        kill_children()
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """One worker at a time.

    Args:
        control: socket to the sweep.
        name: what a worker does with its own socket, as module:function.
    """

    def __init__(self, control: socket.socket, name: str) -> None:
        self._control = control
        self._name = name
        self._worker: int | None = None
        self._wake, wake = os.pipe()
        for end in (self._wake, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Follow the sweep's orders until it is gone."""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._wake], [], [])
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self._control.fileno() in ready:
                order, sockets, _, _ = socket.recv_fds(self._control, 1, 1)
                if not order:
                    return
                if order == b"k":
                    self._kill()
                elif order == b"i":
                    names = self._line().split()
                    with suppress(Exception):  # the cells that need it will say what is wrong with it
                        if can_fork():
                            _import(*names)
                else:
                    self._start(sockets[0])

    def _line(self) -> str:
        line = b""
        while (byte := self._control.recv(1)) not in (b"", b"\n"):
            line += byte
        return line.decode()

    def _start(self, connection: int) -> None:
        parent = os.getpid()
        if not can_fork():
            os.set_inheritable(connection, True)
            command = [
                sys.executable,
                "-P",
                "-m",
                "opbench.sweeps.isolation.supervisor",
                self._name,
                str(connection),
                str(parent),
            ]
            self._worker = os.posix_spawn(sys.executable, command, os.environ)
            os.close(connection)
            return
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            # Python warns of threads that may hold a lock; those here are OpenBLAS's, which knows of forks.
            pid = os.fork()
        if pid:
            self._worker = pid
        else:
            self._control.close()
            _become_worker(parent, connection, _function(self._name))
        os.close(connection)

    def _kill(self) -> None:
        """Kill the worker, if it has not ended by itself a moment ago."""
        if self._worker is not None:
            # What it started is in its group; where none can be adopted or listed, this alone finds them.
            for kill in (os.kill, os.killpg):
                with suppress(ProcessLookupError, PermissionError):
                    kill(self._worker, signal.SIGKILL)
            _, status = os.waitpid(self._worker, 0)
            self._ended(status)

    def _reap(self) -> None:
        """Collect who ended; not only workers, since orphans of theirs are adopted."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self._worker:
                    self._ended(found[1])

    def _ended(self, status: int) -> None:
        self._worker = None
        kill_children()
        with suppress(BrokenPipeError):  # the sweep is gone; its end of file comes next
            self._control.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def kill_children() -> None:
    """Kill every process below this one, and wait until each is gone; where the system lists none, collect the dead."""
    while True:
        children = child_pids()
        for child in children or ():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            # Its own children are this process's now, and die in the next round.
            if os.waitpid(-1, 0 if children is not None else os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _become_worker(parent: int, connection: int, serve: Serve) -> NoReturn:
    """Serve in this process, forked or new; it never returns into the supervisor's stack."""
    code = 1
    try:
        os.set_inheritable(connection, False)
        with suppress(OSError):
            os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else the parent died before it could be watched
            serve(socket.socket(fileno=connection))
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            _end_output()
            print(end.code, file=sys.stderr)
    except BaseException:
        _end_output()
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _end_output() -> None:
    """Write out what waits in a buffer, so that last words on standard error are a line of their own."""
    with suppress(Exception):
        sys.stdout.flush()


def _function(name: str) -> Serve:
    module, _, function = name.partition(":")
    found: Serve = getattr(importlib.import_module(module), function)
    return found


def _import(*names: str) -> None:
    # torch.cuda.is_available() starts CUDA, unless told to ask NVML, and no fork of this process could use it then.
    with _variable("PYTORCH_NVML_BASED_CUDA_CHECK", "1"):
        for name in names:
            importlib.import_module(name)
    gc.freeze()  # a collection in a worker then neither walks what was imported nor copies its pages


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable that is set where the user set none."""
    ours = name not in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if ours:
            del os.environ[name]


def _private_temporary_folder() -> str:
    """A folder for the temporary files of every worker, since a killed one removes none."""
    # The compilers' caches under the temporary folder are worth keeping from run to run.
    with suppress(Exception):  # whose name is not known: no cache is kept
        cache = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
    folder = tempfile.mkdtemp(prefix="opbench-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    return folder


def _no_core_files() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere the call does not exist, and a killed sweep's worker ends when it next answers."""
    import ctypes

    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
