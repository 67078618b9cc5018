from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "measure.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module
    spec.loader.exec_module(module)
    return module


measure = load()

# Within all limits: 7 docstring lines on 9 code lines, no comment.
GOOD = '''"""A module.

It has a long enough docstring.
"""


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def sign(value: int) -> int:
    """Tell the sign."""
    if value < 0:
        return -1
    return 1


def twice(value: int) -> int:
    """Double."""
    doubled = 2 * value
    return doubled
'''


class Tree:
    """A package and its tests in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "src" / "pack"
        self.tests = folder / "tests"
        self.write("good.py", GOOD)
        self.tests.mkdir(parents=True)
        (self.tests / "test_pack.py").write_text("assert True\n" * 40)

    def write(self, name: str, text: str) -> None:
        path = self.package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def rows(self) -> dict[str, object]:
        return {row.name: row for row in measure.measure(self.package, self.tests)}

    def broken(self) -> dict[str, tuple[str, ...]]:
        return {name: row.breaches for name, row in self.rows().items() if row.breaches}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def function(body: str, *, head: str = "def work() -> None:", doc: str = '    """Work."""\n') -> str:
    return f'"""A module."""\n\n\n{head}\n{doc}{body}'


def test_a_tree_within_all_limits_has_no_breach(tree: Tree) -> None:
    assert tree.broken() == {}


@pytest.mark.parametrize(
    ("name", "text", "row", "place"),
    [
        ("long.py", GOOD + '"""Note."""\n' * 501, "lines/file, largest", "pack/long.py: 523 > 500"),
        ("body.py", function("    x = 1\n" * 51), "bodies > 50 lines", "pack/body.py:4 work: 51 > 50"),
        (
            "args.py",
            function("    pass\n", head=f"def work({', '.join(f'a{k}: int' for k in range(9))}) -> None:"),
            "args, largest",
            "pack/args.py:4 work: 9 > 8",
        ),
        (
            "complex.py",
            function("".join(f"    if {k}:\n        pass\n" for k in range(10))),
            "CC > 10",
            "pack/complex.py:4 work: 11 > 10",
        ),
        ("bare.py", "def work() -> None:\n    pass\n", "doc, top level", "pack/bare.py: no docstring"),
        (
            "method.py",
            '"""M."""\n\n\nclass Thing:\n    """T."""\n\n    def work(self) -> None:\n        pass\n',
            "doc, all public",
            "pack/method.py:7 Thing.work: no docstring",
        ),
        (
            "untyped.py",
            function("    pass\n", head="def work(value) -> None:"),
            "typed, parameters",
            "pack/untyped.py:4 work: parameter 'value' has no type",
        ),
        (
            "returns.py",
            function("    pass\n", head="def work(value: int):"),
            "typed, returns",
            "pack/returns.py:4 work: the return has no type",
        ),
        (
            "special.py",
            '"""M."""\n\n\nclass Thing:\n    """T."""\n\n    def __init__(self, value):\n        pass\n',
            "typed, returns",
            "pack/special.py:7 Thing.__init__: the return has no type",
        ),
    ],
)
def test_a_breach_is_named_with_its_place(tree: Tree, name: str, text: str, row: str, place: str) -> None:
    tree.write(name, text)
    assert place in tree.broken()[row]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("lines/file, median", '"""M."""\n' + "x = 1\n" * 120),
        ("lines/file, p90", '"""M."""\n' + "x = 1\n" * 300),
        ("body, median", function("    x = 1\n" * 10) * 9),
        ("body, p90", function("    x = 1\n" * 26) * 2),
        ("args, p90", function("    pass\n", head="def work(a: int, b: int, c: int, d: int, e: int, f: int) -> None:")),
        ("CC, mean", function("".join(f"    if {k}:\n        pass\n" for k in range(8)))),
        ("comment lines / 100 code lines", "# why\n" * 4),
        ("docstring lines / 100 code lines", "x = 1\n" * 40),
    ],
)
def test_a_typical_value_past_its_limit_is_a_breach(tree: Tree, row: str, text: str) -> None:
    assert row not in tree.broken()
    for copy in range(3):
        tree.write(f"copy{copy}.py", text)
    assert any("copy0.py" in place for place in tree.broken()[row])


def test_too_many_docstring_lines_are_a_breach(tree: Tree) -> None:
    tree.write("wordy.py", '"""' + "Words.\n" * 40 + '"""\n')
    assert "docstring lines / 100 code lines" in tree.broken()


def test_limits_themselves_are_allowed(tree: Tree) -> None:
    head = f"def work({', '.join(f'a{k}: int' for k in range(8))}) -> None:"
    tree.write("edge.py", function("    x = 1\n" * 50, head=head))
    tree.write("edges.py", function("".join(f"    if {k}:\n        pass\n" for k in range(9))))
    assert not {"args, largest", "bodies > 50 lines", "CC > 10"} & set(tree.broken())


def test_functions_alike_but_for_local_names_are_duplicates(tree: Tree) -> None:
    body = "    {a} = [1]\n    for {b} in {a}:\n        {a}.append({b})\n    {a}.sort()\n    return {a}\n"
    first = function(body.format(a="x", b="y"), head="def one() -> list[int]:")
    second = function(body.format(a="u", b="v"), head="def two() -> list[int]:", doc="")
    tree.write("first.py", first)
    tree.write("second.py", second)
    assert tree.broken()["dup"] == ("pack/first.py:4 one: repeated by pack/second.py:4 two",)
    tree.write("second.py", second.replace("append", "remove"))
    assert "dup" not in tree.broken()


def test_short_functions_and_stubs_are_no_duplicates(tree: Tree) -> None:
    for name in ("first.py", "second.py"):
        tree.write(name, function("    x = 1\n    y = 2\n    print(x)\n    print(y)\n"))
    stub = "def work(\n    a: int,\n    b: int,\n    c: int,\n    d: int,\n) -> None:"
    for name in ("third.py", "fourth.py"):
        tree.write(name, function("", head=stub))
    assert "dup" not in tree.broken()


def test_a_cycle_at_import_time_is_a_breach(tree: Tree) -> None:
    tree.write("a/__init__.py", '"""A."""\n\nfrom pack.b import thing\n')
    tree.write("b/__init__.py", '"""B."""\n')
    tree.write("b/thing.py", '"""B."""\n\nfrom ..c import other\n')
    tree.write("c.py", '"""C."""\n\nimport pack.a\n')
    assert tree.rows()["largest cycle"].value == "3"  # type: ignore[attr-defined]
    places = tree.broken()["largest cycle"]
    assert [place.split(" imports")[0] for place in places] == [
        "pack/a/__init__.py:3: a",
        "pack/b/thing.py:3: b",
        "pack/c.py:3: c",
    ]


@pytest.mark.parametrize(
    "late",
    [
        "def f() -> None:\n    '''F.'''\n    import pack.a\n",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import pack.a\n",
        "import json\n",
        "from . import d\n",
    ],
)
def test_imports_that_do_not_run_at_import_time_make_no_cycle(tree: Tree, late: str) -> None:
    tree.write("a.py", '"""A."""\n\nfrom pack import c\n')
    tree.write("c.py", f'"""C."""\n\n{late}')
    tree.write("d.py", '"""D."""\n')
    assert "largest cycle" not in tree.broken()


def test_a_cycle_through_the_package_itself_is_seen(tree: Tree) -> None:
    tree.write("__init__.py", '"""P."""\n\nfrom pack.a import f\n\nversion = "1"\n')
    tree.write("a.py", '"""A."""\n\nfrom pack import version\n')
    assert tree.rows()["largest cycle"].value == "2"  # type: ignore[attr-defined]


def test_too_few_test_lines_are_a_breach(tree: Tree) -> None:
    (tree.tests / "test_pack.py").write_text("assert True\n" * 13)
    assert tree.broken()["test lines / library lines"] == ("tests: 1 lines short",)


def test_body_counts_from_the_first_statement_after_the_docstring(tree: Tree) -> None:
    tree.write("stub.py", function("", head="def stub() -> None:"))
    tree.write("three.py", function("    x = 1\n\n    print(x)\n"))
    sizes = {
        found.place.split()[1]: found.body
        for name in ("stub.py", "three.py")
        for found in measure.read_source(tree.package / name, tree.package).functions
    }
    assert sizes == {"stub": 0, "work": 3}


@pytest.mark.parametrize(
    ("body", "number"),
    [
        ("x = 1", 1),
        ("x = 1 if y else 2", 2),
        ("x = a and b or c", 3),
        ("x = [i for i in y if i if i > 1]", 4),
        ("assert y", 2),
        ("with y:\n        pass", 1),
        ("if y:\n        pass\n    elif z:\n        pass\n    else:\n        pass", 3),
        ("for i in y:\n        pass\n    else:\n        pass", 3),
        ("while y:\n        pass", 2),
        ("try:\n        pass\n    except A:\n        pass\n    except B:\n        pass\n    else:\n        pass", 4),
        (
            "match y:\n        case 1:\n            pass\n        case 2:\n            pass\n"
            "        case _:\n            pass",
            3,
        ),
        ("x = lambda: 1", 1),
        ("def inner() -> int:\n        return 1 if y else 2", 1),
    ],
)
def test_complexity_follows_mccabe(tree: Tree, body: str, number: int) -> None:
    tree.write("one.py", function(f"    {body}\n", head="def work(y, z, a, b, c):"))
    work = measure.read_source(tree.package / "one.py", tree.package).functions[0]
    assert work.complexity == number


def test_a_nested_function_is_measured_by_itself(tree: Tree) -> None:
    tree.write("one.py", function("    def inner(y: int) -> int:\n        return 1 if y else 2\n"))
    found = measure.read_source(tree.package / "one.py", tree.package).functions
    assert {one.place.split()[1]: one.complexity for one in found} == {"work": 1, "work.inner": 2}


def test_self_and_cls_are_no_arguments(tree: Tree) -> None:
    methods = (
        "    def f(self, a, *b, c, **d): pass\n"
        "    @classmethod\n    def g(cls, a): pass\n"
        "    @staticmethod\n    def h(a): pass\n"
    )
    tree.write("one.py", f"class Thing:\n{methods}\ndef free(self): pass\n")
    found = measure.read_source(tree.package / "one.py", tree.package).functions
    assert [one.args for one in found] == [4, 1, 1, 1]


def test_private_names_need_no_docstring_and_no_types(tree: Tree) -> None:
    text = '"""M."""\n\n\ndef _helper(a):\n    return a\n\n\nclass _Thing:\n    def work(self, a):\n        return a\n'
    tree.write("private.py", text)
    assert not {"doc, top level", "doc, all public", "typed, parameters", "typed, returns"} & set(tree.broken())


def test_p90_is_the_nearest_rank() -> None:
    assert measure.p90([*range(1, 10), 1000]) == 9
    assert measure.p90([*range(1, 9), 999, 1000]) == 999
    assert measure.p90([7]) == 7


def run(tree: Tree) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), "--package", str(tree.package), "--tests", str(tree.tests)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_leaves_with_one_past_a_limit(tree: Tree) -> None:
    within = run(tree)
    assert within.returncode == 0 and within.stdout.endswith("within all limits\n")
    tree.write("bare.py", "def work() -> None:\n    pass\n")
    past = run(tree)
    assert past.returncode == 1
    assert "doc, all public: pack/bare.py:1 work: no docstring" in past.stdout.splitlines()


def test_a_file_that_is_not_python_is_one_line(tree: Tree) -> None:
    tree.write("broken.py", "def (:\n")
    result = run(tree)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "broken.py" in result.stderr


def test_an_empty_package_is_one_line(tree: Tree) -> None:
    (tree.package / "good.py").unlink()
    result = run(tree)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
