"""A program in a terminal of its own: a pseudoterminal, whose Ctrl-C reaches the program."""

import os
import pty
import select
import subprocess
import sys
import termios
import time

DEADLINE = 30.0
# A terminal sends Ctrl-C to the session that controls it.
_IN_A_SESSION = (
    "import fcntl, os, sys, termios;"
    "os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """Context manager that runs a program in a terminal.

    Args:
        command: The program, with its path, and its arguments.
        environment: Its environment.
    """

    def __init__(self, command, environment):
        self.output = ""
        self._command = command
        self._environment = {**environment, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}

    def __enter__(self):
        self._ours, theirs = pty.openpty()
        self.settings = termios.tcgetattr(self._ours)
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _IN_A_SESSION, *self._command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=self._environment,
        )
        os.close(theirs)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def wait_for(self, text, times=1):
        """Read until a text was shown, this number of times."""
        deadline = time.monotonic() + DEADLINE
        while self.output.count(text) < times:
            assert time.monotonic() < deadline, self.output
            assert self._read() or self.output.count(text) >= times, self.output

    def type(self, text):
        """Press keys."""
        os.write(self._ours, text.encode())

    def wait_ended(self):
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + DEADLINE
        while self._read():
            assert time.monotonic() < deadline, self.output
        return self.process.wait(timeout=DEADLINE)

    def settings_now(self):
        """Return the settings of the terminal: whether it echoes, for instance."""
        return termios.tcgetattr(self._ours)

    def _read(self):
        """Read what there is, or wait for it; return False at the end."""
        if not select.select([self._ours], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux: all that had opened it have ended
            return False
        self.output += data.decode(errors="replace")
        return bool(data)
