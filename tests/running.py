"""Call a script as its user does, in this process: its exit status and what it printed."""

import importlib
import sys
from typing import NamedTuple

import pytest

import cli


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What a refused command says: at most three lines on stderr, and nothing of a traceback."""
        lines = self.err.strip().splitlines()
        assert 1 <= len(lines) <= 3 and "error: " in lines[0] and "Traceback" not in self.err, self.err
        return self.err


def call(capfd, script: str, *arguments) -> Result:
    """script: the name of a script of the repository, without .py."""
    main = importlib.import_module(script).main
    before, sys.argv = sys.argv, [f"{script}.py", *map(str, arguments)]
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as end:
            cli.run(main)
    finally:
        sys.argv = before
    status = end.value.code
    return Result(0 if status is None else status, *capfd.readouterr())
