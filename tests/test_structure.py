"""The rooms of the house, read from the imports: dependencies run one way."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "training", "data", "metrics", "benchmarks")
SCRIPTS = {p.stem for p in ROOT.glob("*.py")}
FILES = sorted([*ROOT.glob("*.py"), *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))])
PURE = {"data.labels", "data.io.pixels"}  # imported from everywhere


def imported(path):
    """The dotted names of all modules that a file imports, wherever in it."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{package}.{node.module}" if node.level else node.module
            yield from (f"{module}.{a.name}" if is_module(f"{module}.{a.name}") else module for a in node.names)


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.mark.parametrize(
    ("room", "may_import"),
    [
        ("model", {"model"}),
        ("data", {"data", "metrics", "cli"}),
        ("metrics", {"metrics"}),
        ("training", {"training", "model", "data", "metrics", "cli"}),
    ],
)
def test_dependencies_run_one_way(room, may_import):
    ours = {*ROOMS, *SCRIPTS, "tests"}
    files = list((ROOT / room).rglob("*.py"))
    assert len(files) > 4
    for path in files:
        names = {name for name in imported(path) if name.split(".")[0] in ours and name not in PURE}
        assert {name.split(".")[0] for name in names} <= may_import, path


def test_metrics_need_no_torch():
    for path in (ROOT / "metrics").glob("*.py"):
        assert not {"torch", "torchvision"} & {name.split(".")[0] for name in imported(path)}


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = set(imported(path))
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name in done or name not in graph:
            return
        open_.append(name)
        for other in graph[name] - {name}:
            visit(other)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_the_command_line_needs_the_standard_library_alone():
    assert {name.split(".")[0] for name in imported(ROOT / "cli.py")} <= sys.stdlib_module_names


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
