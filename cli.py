"""Command lines: flags from a visible block of defaults or from a dataclass, and errors that end a script in one line.

Only the standard library is imported here, so that a script can say how to activate the environment when a package
is missing.
"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import os
import re
import shutil
import sys
import traceback
import typing
from collections.abc import Callable, Iterable
from pathlib import Path

ACTIVATE = "run `bash setup.sh` once, then `source .venv/bin/activate`"


class UsageError(ValueError):
    """A wrong value or a missing file; the message says in one line what is wrong and what to do."""


@contextlib.contextmanager
def imports():
    """`with cli.imports(): import torch` ends the script with one line where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"the package {error.name!r} is missing: {ACTIVATE}")


def fail(message: str, status: int = 2) -> typing.NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def writable(folder: Path):
    """`with cli.writable(folder):` turns a failure to write there into one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to ({error.strerror})") from None


def run(main: Callable[[], int | None]) -> typing.NoReturn:
    """Call a script's main function; turn what goes wrong into one line and exit status 2.

    The errors of ours are told by their names, so that nothing heavy is imported here. Any other exception is a fault
    of the program or of a file that nobody thought of: its line names both, and TRACEBACK=1 shows the traceback.
    """
    ours = ("UsageError", "DataError", "CheckpointError", "ConfigError", "DownloadError")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except BrokenPipeError:  # whoever read our output has seen enough, as head does
        sys.stdout = None
        sys.exit(141)
    except FloatingPointError as error:  # a training that diverges
        fail(str(error), status=1)
    except OSError as error:  # a missing file, no permission, a full disk
        text = error.strerror or str(error).strip().rpartition("\n")[2]  # of a loader process, with its traceback
        room = "; make room and run the same command again" if error.errno == errno.ENOSPC else ""
        fail((f"{error.filename}: {error.strerror}" if error.filename else text) + room)
    except Exception as error:
        if os.environ.get("TRACEBACK"):
            raise
        # An error of a loader process arrives with that process's traceback as its text: its last line is the message.
        text = " ".join(str(error).rpartition(f"{type(error).__name__}: ")[2].split())
        if type(error).__name__ in ours:
            fail(text)
        *_, last = traceback.walk_tb(error.__traceback__)
        where = f"{Path(last[0].f_code.co_filename).name}, line {last[1]}"
        notes = "".join(f", at {note}" for note in getattr(error, "__notes__", ()))
        fail(
            f"{type(error).__name__}: {text[:300]} ({where}{notes}); TRACEBACK=1 before the command shows all", status=1
        )


# ---------------------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag: `--name` with a default, a help text and, where it is one of a few, its choices.

    The type is the default's: a bool becomes `--name / --no-name`, a tuple takes several values. `kind` gives the type
    where the default is None. `-h` leaves out what is rare; `-h all` shows it.
    """

    name: str
    default: object
    help: str
    choices: tuple = ()
    kind: type | None = None
    nargs: int | str | None = None
    metavar: str | tuple | None = None
    rare: bool = False


class ShowHelp(argparse.Action):
    """`-h`: the flags that people use; `-h all`: every flag."""

    def __call__(self, parser, namespace, values, option_string=None):
        for action in parser._actions:
            if values != "all" and getattr(action, "rare", False):
                action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and each flag on a line of its own where it fits, with its default at the end.

    What is one of a few is a NAME, and its choices stand with the text; a whole number is an N, any other number an X.
    """

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=min(118, shutil.get_terminal_size((118, 24)).columns))

    def _format_action_invocation(self, action):
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.dest}"
        return super()._format_action_invocation(action)

    def _format_args(self, action, default_metavar):
        one = super()._format_args(action, default_metavar)
        return f"{action.metavar} ..." if action.nargs == "+" else one  # not N [N ...]

    def _get_help_string(self, action):
        default = action.default if getattr(action, "shown", None) is None else action.shown
        default = " ".join(map(str, default)) if isinstance(default, tuple | list) else default
        return f"{action.help} (default: {'none' if default in (None, '') else default})".replace("%", "%%")

    def _split_lines(self, text, width):
        lines = super()._split_lines(text.replace("(default: ", "(default:\N{NO-BREAK SPACE}"), width)
        return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


# What people type for flags of other names; a pair counts where the script has its second.
MEANT = {
    "--learning_rate": "--lr", "--epochs": "--steps", "--data": "--data_root", "--workers": "--num_workers",
    "--model": "--checkpoint", "--weights": "--checkpoint", "--ckpt": "--checkpoint", "--gpu": "--device",
    "--input": "--input_folder", "--video": "--input_folder", "--output": "--output_folder", "--gt": "--ground_truth",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests the flag that was meant, and answers in one line with exit status 2."""

    def __init__(self, description: str | None):
        usage, description = "%(prog)s [--flag value ...]", (description or "").strip()
        super().__init__(
            usage=usage, description=description, formatter_class=HelpFormatter, allow_abbrev=False, add_help=False
        )
        self.add_argument("-h", "--help", action=ShowHelp, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def format_help(self) -> str:
        """Groups without empty lines between them."""
        return re.sub(r"\)\n\n(?=\S.*:\n  --)", ")\n", super().format_help())

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            meant = {flag: flag for action in self._actions for flag in action.option_strings}
            meant |= {name: flag for name, flag in MEANT.items() if flag in meant}
            flag = unknown[0].split("=")[0]
            close = [meant[name] for name in difflib.get_close_matches(flag, meant, n=1)]
            if not flag.startswith("-") and "--input_folder" in meant:
                close = [f"--input_folder {flag}"]
            self.error(
                f"unknown argument {unknown[0]}" + (f"; did you mean {close[0]}?" if close else f"; see {self.prog} -h")
            )
        return parsed

    def error(self, message: str):
        fail(message)


def add_options(parser: argparse.ArgumentParser, groups: dict[str, Iterable[Option]]) -> None:
    """Add a script's visible block of defaults: {group title: its options}."""
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, option)


def add_dataclass(
    parser: argparse.ArgumentParser, defaults: object, title: str, common: Iterable[str] = (), skip: Iterable[str] = ()
) -> None:
    """Add one flag for each field of a configuration dataclass: `name: Annotated[type, help, choices]`.

    defaults: an instance, whose values the help shows, or the class, where it shows none; common: fields that `-h`
    shows. A flag that is not given is None, so that `given` can tell.
    """
    group = parser.add_argument_group(title)
    cls = defaults if isinstance(defaults, type) else type(defaults)
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(defaults):
        if field.name not in skip:
            hint, text, choices = (*typing.get_args(hints[field.name]), ())[:3]
            kind, nargs = _value_type(hint)
            option = Option(field.name, None, text, tuple(choices), kind, nargs, rare=field.name not in common)
            _add(group, option, shown=None if defaults is cls else getattr(defaults, field.name))


def given(args: argparse.Namespace, cls: type) -> dict[str, object]:
    """The fields of a dataclass that the command line set, ready for `dataclasses.replace`."""
    values = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(cls)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def _value_type(hint) -> tuple[type, str | None]:
    """A field's annotation -> (type of one value, nargs)."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], "+"
    return (number_or_word if hint == int | str else hint), None


def number_or_word(text: str) -> int | str:
    """Of a flag that takes a whole number or a word, as --accumulate auto."""
    return int(text) if text.lstrip("-").isdecimal() else text


def _add(group, option: Option, shown: object = None) -> None:
    """Add one flag. shown: the default that the help shows, where argparse's is None."""
    default = option.default
    several = isinstance(default, tuple | list)
    sample = default[0] if several and default else default
    kind = option.kind or (str if sample is None or (several and not default) else type(sample))
    text = option.help + (f" {{{','.join(option.choices)}}}" if option.choices else "")
    if kind is bool:
        how: dict = {"action": argparse.BooleanOptionalAction}
    else:
        names = {int: "N", number_or_word: "N", float: "X", str: "NAME" if option.choices else "TEXT"}
        nargs = option.nargs or ("+" if several else None)
        how = {"type": kind, "nargs": nargs, "metavar": option.metavar or names.get(kind, "PATH")}
        how |= {"choices": option.choices} if option.choices else {}
    action = group.add_argument(f"--{option.name}", default=default, help=text, **how)
    action.shown, action.rare = shown, option.rare
