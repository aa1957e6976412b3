"""The command line in this process: a process of its own takes seconds to import torch."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from ood_audit import cli


@dataclass(frozen=True)
class Done:
    """What a command printed and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def invoke(*arguments: object) -> Done:
    """`ood-audit ARGUMENTS…`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
    return Done(code if isinstance(code, int) else 0, *(_text(stream) for stream in (out, err)))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    written = stream.buffer
    assert isinstance(written, io.BytesIO)
    return written.getvalue().decode()
