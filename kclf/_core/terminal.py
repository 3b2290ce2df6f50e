"""Standard output and error of a command: they outlive their terminal, and no file name controls it."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO

# Colours and the step up of progress bars pass; whatever else controls a terminal is shown, not sent.
_CONTROL = re.compile(
    r"\x1b(?!\[[0-9;]*[mA])|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
)
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: object) -> str:
    r"""A name as it can be printed: without line ends, escape sequences and bytes that are no text.

    Example:
        >>> one_line("cat\n\x1b[2Jdog")
        'cat\\n\\x1b[2Jdog'
    """
    return _NOT_PRINTABLE.sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class TerminalStream:
    """Stands before a stream of text, such as `sys.stdout`.

    An error of writing, as of a pipe whose reader has gone or of a full disk, is kept in `error`, and what
    follows is dropped: a training does not end for a line of its table.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, with what could control a terminal made visible."""
        try:
            self._stream.write(_CONTROL.sub(_escaped, text))
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Send what waits."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # where the stream sends what it still holds
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Put a `TerminalStream` before standard output and error; open to nowhere those that are closed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if name != "stdin" and stream is not None and not isinstance(stream, TerminalStream):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # of letters that an ASCII terminal lacks
            setattr(sys, name, TerminalStream(stream))


def output_error() -> OSError | None:
    """What went wrong with standard output, but for a reader that has gone, as `head` does."""
    error = getattr(sys.stdout, "error", None)
    return None if isinstance(error, BrokenPipeError) else error
