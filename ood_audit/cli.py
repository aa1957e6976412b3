"""The command line: a click group that imports a command when it is called."""

import _thread
import atexit
import errno
import importlib
import io
import keyword
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader
from threading import Timer
from types import FrameType

import click

from ood_audit._version import __version__
from ood_audit.errors import OodAuditError
from ood_audit.text import printable

COMMANDS = {
    "run": "Embed images, report, and say what was found.",
    "embed": "Embed images and sync the store with their sources.",
    "import": "Make a store of image features computed elsewhere.",
    "labels": "Suggest class names, and register labelled images.",
    "tune": "Tune on labelled images.",
    "report": "Rank the images by how little they belong, and write a report.",
    "compare": "Compare two sets of images: drift, classes, words.",
    "apply": "Act on the decisions made on the report's page.",
    "query": "Run SQL over the store.",
    "evaluate": "Measure every score against known answers.",
    "export": "List the images with findings, or the images to keep.",
    "quarantine": "Move images with findings to a folder, and back.",
    "compact": "Merge the store's small files into large ones.",
    "sources": "List where the images came from, or remove a source.",
    "status": "Show what the store holds.",
}


class _Group(click.Group):
    """Lists the commands without importing them."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; errors that name parameters of the API name its options."""
        try:
            return super().invoke(ctx)
        except OodAuditError as error:
            from ood_audit.commands.options import as_options

            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            error.args = (as_options(str(error), command),)
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        module = importlib.import_module(f"ood_audit.commands.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Group,
    epilog="Every option can also be set by a variable OOD_AUDIT_COMMAND_OPTION, and the store by OOD_AUDIT_STORE.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ood-audit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Find the images of a dataset that do not belong.

    \b
    ood-audit run ./images --labels classes.txt
    ood-audit embed ./images
    ood-audit report --labels classes.txt --top 100
    ood-audit query "SELECT label, count(*) FROM report WHERE rank <= 100 GROUP BY 1"
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted."""
    _open_standard_streams()
    code: list[int] = []
    is_own = arguments is None  # the process is this program's
    if is_own:
        atexit.register(_end, code)  # before all others are, so that it is called after them
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments or os.environ.get("OOD_AUDIT_DEBUG", "") not in ("", "0")
    try:
        code.append(_run(arguments, debug))
    except KeyboardInterrupt:  # another one, while the first was told
        code.append(130)
    if is_own and callable(signal.getsignal(signal.SIGINT)):  # the work is done, and only threads are waited for
        signal.signal(signal.SIGINT, lambda *_: _end(code))
    sys.exit(code[0])


def _end(code: list[int]) -> None:
    """End the process with its memory as it is, which takes a fifth of a second to free where there is a model."""
    if code:  # else there is a traceback
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, RuntimeError):  # the last where a Ctrl-C came while it was flushed
                stream.flush()
        os._exit(code[0])


def _open_standard_streams() -> None:
    """Give a stream that was closed (`>&-`) the null device.

    Otherwise, Python has no `sys.stdout`, and the next file that is opened gets the descriptor. What a library prints
    would then end up in that file.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  for good


def _run(arguments: Sequence[str], debug: bool) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Greek letters and file names on a terminal that is not UTF-8
            stream.reconfigure(errors="backslashreplace")
    interrupts: list[int] = []
    try:
        # Options work before and after the command's name alike.
        rest = [argument for argument in arguments if argument != "--debug"] if debug else list(arguments)
        with _showing_warnings(), _heeding_interrupts(interrupts):
            code: object = cli.main(rest, prog_name="ood-audit", standalone_mode=False, auto_envvar_prefix="OOD_AUDIT")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except SystemExit:
        if type(sys.stdout) is click.utils.PacifyFlushWrapper:  # `| head`: the reader has what it wanted
            return 0
        raise
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except Exception as error:
        if debug:
            raise
        return _interrupted() if interrupts and not _is_of_the_disk(error) else _explain(error)


def _is_of_the_disk(error: BaseException | None) -> bool:
    """Whether it says that a disk is full, so that what was to be kept on a Ctrl-C was not."""
    while error is not None and getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        error = error.__cause__
    return error is not None


def _explain(error: Exception) -> int:
    """Say in one line what went wrong, and give the exit code."""
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        _complain(error.format_message() + hint)
        return error.exit_code
    if isinstance(error, OodAuditError):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}")
    else:  # a defect of ours: still one line, and how to see more
        _complain(f"internal error, {type(error).__name__}: {error}; run it again with --debug for the traceback")
    return 1


class _Warnings(logging.Handler):
    """Shows what the library logs, such as that a GPU cannot be used, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"warning: {printable(record.getMessage())}", err=True)


@contextmanager
def _showing_warnings() -> Iterator[None]:
    logger, handler = logging.getLogger("ood_audit"), _Warnings(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False  # some dependencies set up the root logger
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def _heeding_interrupts(interrupts: list[int]) -> Iterator[None]:
    """Note each Ctrl-C in `interrupts`, as libraries make other exceptions of it, and let none be lost.

    One that came while Python cleaned up, as it does in imports, would only be printed: it is raised again. Where it
    would do harm, it is raised a moment later, see `_would_harm`.
    """
    hook, handler = sys.unraisablehook, signal.getsignal(signal.SIGINT)

    def heed(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            _interrupt_soon()  # when this is over: it would be lost here as well
        else:
            hook(lost)

    def note(number: int, frame: FrameType | None) -> None:
        if _would_harm(frame):
            _interrupt_soon()
            return
        interrupts.append(number)  # without a lock, as a second one may come meanwhile
        if callable(handler):
            handler(number, frame)

    handles = callable(handler) and threading.current_thread() is threading.main_thread()
    sys.unraisablehook = heed
    if handles:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if handles:
            signal.signal(signal.SIGINT, handler)


def _would_harm(frame: FrameType | None) -> bool:
    """Whether an exception would do harm where the main thread is.

    In Python's code for imports, it would leave locks that other threads then wait for. A library that is being loaded
    may end the process because of it, as DuckDB's does while it makes its enumerations.
    """
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        return True
    while frame is not None:
        if frame.f_code is _interrupt_soon.__code__ or isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _interrupt_soon() -> None:
    if sys.platform == "win32":
        Timer(0.02, _thread.interrupt_main).start()
    else:  # which also wakes the main thread where it waits for another one
        Timer(0.02, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()


def _interrupted() -> int:
    _complain("interrupted; finished work is kept, run the same command again to resume")
    return 130


def _complain(message: str) -> None:
    click.echo(f"error: {printable(message)}", err=True)
