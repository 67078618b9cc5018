"""Nothing that is loaded can run code: the source has no way to do it, and names of code are only read off the command
line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie

PACKAGE = Path(coterie.__file__).parent

MODULES = {
    **dict.fromkeys(("pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "yaml"), "runs code from data"),
    **dict.fromkeys(("tarfile", "zipfile", "gzip", "bz2", "lzma"), "unpacks archives"),
    **dict.fromkeys(("urllib", "http", "requests", "httpx", "ftplib", "smtplib", "aiohttp"), "fetches from a network"),
    **dict.fromkeys(("subprocess", "pty", "code", "codeop"), "runs other programs"),
}
"""Modules that the package must not import, and why."""

CALLS = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__"), "runs text"),
    **dict.fromkeys(("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv"), "runs other programs"),
    **dict.fromkeys(("torch.hub.load", "torch.hub.load_state_dict_from_url"), "fetches code or weights"),
    **dict.fromkeys(("numpy.load", "np.load", "shutil.unpack_archive"), "reads objects or archives"),
    **dict.fromkeys(("torch.distributed.checkpoint.load", "dcp.load", "torch.jit.load"), "runs code from data"),
    **dict.fromkeys(("metadata.entry_points", "importlib.metadata.entry_points"), "loads code nobody named"),
}
"""Calls that the package must not make, and why."""

ALLOWED = {
    ("data/archive.py", "pickle"),  # CIFAR's own format, by an unpickler that finds no function and no class
    ("core/plugins.py", "exec_module"),  # files that the user names on the command line
}


def dotted(node: ast.expr) -> str:
    """The name of what is called, such as `torch.load`; an empty text for what has none."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def offences(text: str) -> Iterator[tuple[str, str]]:
    """What of a source file could run code from data, as (name, why)."""
    for node in ast.walk(ast.parse(text)):
        for name in imported(node):
            if name.split(".")[0] in MODULES:
                yield name, MODULES[name.split(".")[0]]
        if isinstance(node, ast.Call):
            yield from wrong_calls(node)


def wrong_calls(node: ast.Call) -> Iterator[tuple[str, str]]:
    name = dotted(node.func)
    options = {option.arg: option.value for option in node.keywords}
    if name in CALLS:
        yield name, CALLS[name]
    if name.split(".")[-1] == "exec_module":
        yield "exec_module", "runs a file"
    if name == "torch.load":
        given = options.get("weights_only")
        if not (isinstance(given, ast.Constant) and given.value is True):
            yield name, "unpickles without weights_only=True"
    if any(option.arg in ("shell", "allow_pickle") for option in node.keywords):
        yield name, "asks for a shell or for objects"


@pytest.mark.case(78, 79, 80, 81, 85)
def test_no_code_path_can_run_code_from_data_unpack_or_fetch() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in files
        for name, _ in offences(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


WRONG = [
    "import pickle",
    "from pickle import loads",
    "import tarfile as t",
    "from urllib.request import urlopen",
    "def f():\n    import subprocess",
    "eval('1')",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=trusted)",
    "np.load(path)",
    "thing(path, allow_pickle=True)",
    "run(words, shell=True)",
    "loader.exec_module(module)",
    "os.system('ls')",
    "torch.hub.load('a', 'b')",
    "importlib.metadata.entry_points(group='x')",
]


@pytest.mark.case(78)
@pytest.mark.parametrize("text", WRONG)
def test_the_scan_finds_what_it_is_for(text: str) -> None:
    assert list(offences(text))


@pytest.mark.parametrize(
    "text", ["net.eval()", "torch.load(p, weights_only=True)", "import picklejar", "re.compile(x)"]
)
def test_the_scan_leaves_the_rest_alone(text: str) -> None:
    assert not list(offences(text))
