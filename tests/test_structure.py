"""Data flows one way: files -> data/ -> scripts -> model/ -> scripts -> files. Read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {p.stem for p in ROOT.glob("*.py")}
FILES = sorted(p for folder in (".", "model", "data", "metrics", "benchmarks") for p in (ROOT / folder).glob("*.py"))


def imported(path):
    """The top-level names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.parent.name if node.level else node.module.split(".")[0]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("model", {"metrics", "benchmarks", "tests", *SCRIPTS}),
        ("data", {"model", "metrics", "benchmarks", "tests", *SCRIPTS} - {"cli"}),
        ("metrics", {"model", "data", "benchmarks", "tests", "torch", "torchvision", *SCRIPTS}),
    ],
)
def test_no_folder_imports_what_stands_above_or_beside_it(folder, forbidden):
    files = list((ROOT / folder).glob("*.py"))
    assert len(files) > 4 and "numpy" in set().union(*map(imported, files))
    for path in files:
        assert not set(imported(path)) & forbidden, path


def test_the_command_line_needs_the_standard_library_alone():
    import sys

    assert set(imported(ROOT / "cli.py")) <= sys.stdlib_module_names


def test_no_file_is_run():
    """No shell, which would read a file's name as a command; no pickle but tensors, no eval, no code out of a file."""
    forbidden = {"os.system", "os.popen", "pickle.load", "pickle.loads", "eval", "exec", "joblib.load", "np.load"}
    calls = [node for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [ast.unparse(call.func) for call in calls]
    assert "torch.load" in names and not forbidden & set(names)
    for call, name in zip(calls, names, strict=True):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name != "torch.load" or given.get("weights_only") == "True"
        assert given.get("shell", "False") == "False" and given.get("allow_pickle", "False") == "False"


def test_a_file_is_one_thing():
    """About 400 lines at most, functions about 60."""
    assert len(FILES) > 40
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 420, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 66, f"{path}: {node.name}"
