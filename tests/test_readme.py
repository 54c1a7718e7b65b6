"""The README: each command is one that its script takes, each path exists, and its Python runs."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line.partition("  #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
PROSE = " ".join(re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL).split())
IN_TABLES = re.findall(r"`((?:python|bash|torchrun) [^`]*)`", PROSE)
COMMANDS = sorted({line for line in [*LINES, *IN_TABLES] if line and not line.startswith("#")})
LAUNCHERS = ("python", "torchrun", "accelerate")
OTHERS = ("source", "mamba", "jupyter", "tensorboard")


class Parsed(Exception):
    pass


def script_of(command: str) -> tuple[str, list[str]] | None:
    """The Python file or module that a command runs, and what it is given."""
    words = shlex.split(command)
    if words[0] == "python" and words[1] == "-m":
        return words[2].replace(".", "/") + ".py", words[3:]
    scripts = [n for n, word in enumerate(words) if word.endswith(".py")]
    return (words[scripts[0]], words[scripts[0] + 1 :]) if scripts and words[0] in LAUNCHERS else None


def test_there_is_something_to_check():
    scripts = {found[0] for command in COMMANDS if (found := script_of(command))}
    assert {"train.py", "pretrain.py", "inference.py", "evaluate.py", "benchmarks/quality.py"} <= scripts


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_its_script_takes(command, monkeypatch):
    if found := script_of(command):
        path, words = found
        words = [word for word in words if word not in ("...", "-h")]
        if words and words[-1] in ("--init", "--reference"):  # cut short in the text
            words = words[:-1]

        for parser in (cli.Parser, argparse.ArgumentParser):

            def parse(self, *rest, original=parser.parse_args):
                original(self, *rest)
                raise Parsed

            monkeypatch.setattr(parser, "parse_args", parse)
        monkeypatch.setattr(sys, "argv", [path, *words])
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        assert (ROOT / path).is_file()
        with pytest.raises(Parsed):
            importlib.import_module(path.removesuffix(".py").replace("/", ".")).main()
    elif command.startswith("bash setup.sh"):
        task = command.split()[2:]
        assert not task or re.search(rf"^ +{task[0]}\)", (ROOT / "setup.sh").read_text(), flags=re.MULTILINE)
    else:
        assert command.startswith(OTHERS), command


def test_files_that_are_named_exist():
    linked = re.findall(r"\]\((?!http)([^)#]+)\)|src=\"([^\"]+)\"", TEXT)
    named = re.findall(r"`((?:model|data|metrics|benchmarks|docs|env|results/streets)/[\w./]*)`", TEXT)
    paths = [a or b for a, b in linked] + named
    assert len(paths) > 15
    made = ("data/output", "data/input", "data/Streets", "data/Cityscapes", "data/KittiSTEP")
    assert [p for p in paths if not (ROOT / p).exists() and not p.startswith(made)] == []


def test_its_python_runs():
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    frames = [np.full((48, 160, 3), 90 + n, np.uint8) for n in range(2)]
    scope = {"frames": frames}
    exec(code.replace('"results/', f'"{ROOT}/results/'), scope)
    assert scope["panoptic"].semantic.shape == (48, 160) and scope["predictor"].state.frame == 0


def test_what_setup_verifies_is_fine(capsys):
    exec(re.search(r"<<'PY'\n(.*?)\nPY\n", (ROOT / "setup.sh").read_text(), flags=re.DOTALL)[1], {})
    assert "one forward pass is fine" in capsys.readouterr().out
