"""The sweep's end of a worker process: start it through the supervisor, talk to it, learn how it died."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

__all__ = ["SupervisorLost", "WorkerDied", "Workers"]

KILL_LIMIT_S = 30.0
"""Most that the kernel may take to end a killed process; a driver that hangs can hold one for ever."""

DEATH_REPORT_S = 5.0
"""Most that may pass between a worker's end of file and its death."""

KEPT_OUTPUT_BYTES = 2**14
LAST_WORDS_LENGTH = 300


class WorkerDied(Exception):  # noqa: N818 - an event, not an error of the caller
    """The worker ended without an answer.

    Attributes:
        returncode: as subprocess gives it: negative for a signal.
    """

    def __init__(self, returncode: int, last_words: str) -> None:
        self.returncode = returncode
        how = f"signal {_signal_name(-returncode)}" if returncode < 0 else f"exit code {returncode}"
        hint = ", which the system sends when memory runs out" if returncode == -signal.SIGKILL else ""
        super().__init__(f"{how}{hint}" + (f" ({last_words})" if last_words else ""))


class SupervisorLost(Exception):  # noqa: N818 - likewise
    """The supervisor itself ended, or cannot kill a worker."""


class Workers:
    """Workers, one at a time, behind one supervisor that is started when needed.

    Args:
        worker: what serves, as module:function.

    Attributes:
        preload: modules that the supervisor imports for all workers, before the first of them starts.
    """

    def __init__(self, worker: str = "opbench.sweeps.isolation.worker:serve") -> None:
        # -P keeps the current folder off the path: a stray torch.py there must not be imported.
        self._command = (sys.executable, "-P", "-m", "opbench.sweeps.isolation.supervisor", worker)
        self._supervisor: _Supervisor | None = None
        self._connection: socket.socket | None = None
        self._unread = b""
        self.preload: tuple[str, ...] = ()

    def launch(self) -> None:
        """Start the supervisor, if there is none; it imports torch while this process does something else."""
        self._supervisor = self._supervisor or _Supervisor(self._command)

    def start(self) -> None:
        """Have a new worker; the one before must have ended."""
        self.launch()
        assert self._supervisor is not None  # noqa: S101 - launched
        self._disconnect()
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._supervisor.start(theirs, self.preload)

    def send(self, message: dict[str, Any]) -> None:
        """Write one line to the worker."""
        assert self._connection is not None  # noqa: S101 - start() came before
        try:
            self._connection.settimeout(KILL_LIMIT_S)
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self._raise_death()

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next line from the worker.

        Raises:
            TimeoutError: none came before the deadline.
            ValueError: it is not JSON.
            WorkerDied, SupervisorLost: there will be none.
        """
        assert self._connection is not None  # noqa: S101
        while b"\n" not in self._unread:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self._connection.settimeout(remaining)
            try:
                chunk = self._connection.recv(2**16)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                self._raise_death()
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise TypeError(f"must be an object, got {type(message).__name__}")
        return message

    def kill(self) -> None:
        """End the worker and everything that it started; returns when they are gone, and with them their memory."""
        self._disconnect()
        if self._supervisor:
            try:
                self._supervisor.kill()
            except SupervisorLost:
                self._lose_supervisor()

    def close(self) -> None:
        """End the supervisor too."""
        self._disconnect()
        self._lose_supervisor()

    def _raise_death(self) -> None:
        """Say how the worker ended, once the supervisor knows; ValueError if it did not."""
        self._disconnect()
        assert self._supervisor is not None  # noqa: S101
        try:
            returncode = self._supervisor.wait(DEATH_REPORT_S)
        except TimeoutError:
            raise ValueError("it closed its connection and lives on") from None
        except SupervisorLost:
            self._lose_supervisor()
            raise
        raise WorkerDied(returncode, self._supervisor.last_words())

    def _disconnect(self) -> None:
        self._unread = b""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _lose_supervisor(self) -> None:
        if self._supervisor:
            self._supervisor.close()
            self._supervisor = None


class _Supervisor:
    """The supervisor's process, its control socket, and the end of what it and the workers print."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._control, theirs = socket.socketpair()
        output, their_output = os.pipe()
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=their_output,
                stderr=their_output,
                start_new_session=True,  # Ctrl-C reaches only the sweep, which then ends the worker
            )
        os.close(their_output)
        self._output = os.fdopen(output, "rb", buffering=0)
        self._printed = b""
        self._reading = threading.Lock()
        self._served = self._has_worker = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, connection: socket.socket, preload: tuple[str, ...]) -> None:
        """Fork a worker that serves this socket; before the first one, import modules for all of them."""
        self._drain()
        self._printed = b""
        try:
            if preload and not self._served:
                self._control.sendall(f"i{' '.join(preload)}\n".encode())
            socket.send_fds(self._control, [b"w"], [connection.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            return  # the worker's socket will say so
        self._served = self._has_worker = True

    def kill(self) -> None:
        """Kill the worker, if there is one."""
        if not self._has_worker:
            return
        try:
            self._control.sendall(b"k")
        except (BrokenPipeError, ConnectionResetError):
            raise SupervisorLost(self._ending()) from None
        try:
            self.wait(KILL_LIMIT_S)
        except TimeoutError:
            raise SupervisorLost(f"it does not end {KILL_LIMIT_S:g} s after being killed") from None

    def wait(self, seconds: float) -> int:
        """The return code of a worker that has ended; TimeoutError if the supervisor does not say so in time."""
        self._control.settimeout(seconds)
        line = b""
        try:
            while not line.endswith(b"\n"):
                byte = self._control.recv(1)
                if not byte:
                    raise SupervisorLost(self._ending())
                line += byte
        except ConnectionResetError:
            raise SupervisorLost(self._ending()) from None
        self._has_worker = False
        return int(line)

    def last_words(self) -> str:
        """The last line printed by the worker, or by the supervisor if it did not come that far."""
        self._drain()
        lines = self._printed.decode(errors="replace").strip().splitlines()
        return lines[-1][:LAST_WORDS_LENGTH] if lines else ""

    def close(self) -> None:
        """End the process; it kills what is below it first."""
        if not self._served:
            self._process.terminate()  # it may be importing, and would not see the end of file for seconds
        self._control.close()
        try:
            self._process.wait(KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=1.0)  # longer only if someone who could not be killed holds the other end
        if not self._reader.is_alive():
            self._output.close()

    def _ending(self) -> str:
        """How the supervisor ended."""
        try:
            returncode = self._process.wait(KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            return "the supervisor does not answer"
        self._reader.join(timeout=1.0)
        return f"the supervisor ended: {WorkerDied(returncode, self.last_words())}"

    def _read(self) -> None:
        """Keep reading: a full pipe would stop whoever prints."""
        while select.select([self._output], [], []) and self._drain():
            pass

    def _drain(self) -> bool:
        """Keep the end of what was printed up to now, however much it is; False at the end of the file."""
        with self._reading:
            while select.select([self._output], [], [], 0)[0]:
                chunk = self._output.read(2**16)
                if not chunk:
                    return False
                self._printed = (self._printed + chunk)[-KEPT_OUTPUT_BYTES:]
        return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
