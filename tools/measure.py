"""Measure the library against the limits of its style: sizes, complexity, documentation, types, repetition, cycles.

    python3 tools/measure.py [--package src/coterie] [--tests tests]

Prints one line per quantity and its limit, then every place past one, and leaves with 1 if there is any. It counts:

- lines: all lines of a file. body: lines of a function from its first statement after the docstring to its end; a
  function that is a docstring only has body 0. p90 is the nearest rank: at most 10 % of the values are larger.
- args: parameters without `self` and `cls`. CC: McCabe's number as radon counts it, nested functions for themselves.
- doc: modules and public names at the top level / all public names, with a docstring. typed: parameters / returns of
  public functions that are annotated. Special methods need types and no docstring.
- comment lines | docstring lines: per 100 lines of code. dup: share of the lines of functions of 6 lines or more whose
  syntax tree, with local names replaced by numbers, repeats that of another function.
- cycle: size of the largest cycle of imports, run when a module is imported, between first-level parts of the package.
"""

from __future__ import annotations

import argparse
import ast
import io
import math
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(__file__).resolve().parents[1]
DUPLICATE_LINES = 6
WORST = 5  # places named when it is a typical value that is past its limit


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function or method, measured."""

    place: str
    body: int
    lines: int
    args: int
    complexity: int
    untyped: tuple[str, ...]
    has_return: bool
    is_public: bool
    shape: str


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """One public module, class, function or method, and whether it has a docstring."""

    place: str
    top_level: bool
    documented: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file, measured."""

    place: str
    part: str
    lines: int
    code: int
    comments: int
    docstrings: int
    functions: tuple[Function, ...]
    symbols: tuple[Symbol, ...]
    imports: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity: what was measured, its limit, and the places that break it."""

    name: str
    value: str
    limit: str
    breaches: tuple[str, ...] = ()


def read_source(path: Path, package: Path) -> Source:
    """Parse and measure one file of a package.

    Args:
        path: the file.
        package: the folder of the package, whose parent the places are relative to.

    Raises:
        SyntaxError: the file is not Python.
    """
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    place = path.relative_to(package.parent).as_posix()
    docstrings = _docstring_lines(tree)
    code, comments = _count_tokens(text, docstrings)
    return Source(
        place=place,
        part=path.relative_to(package).parts[0].removesuffix(".py"),
        lines=len(text.splitlines()),
        code=code,
        comments=comments,
        docstrings=len(docstrings),
        functions=tuple(_functions(tree, place)),
        symbols=tuple(_symbols(tree, place)),
        imports=tuple((part, f"{place}:{line}") for part, line in _imports(tree, path.relative_to(package), package)),
    )


def _docstring_node(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return first
    return None


def _docstring_lines(tree: ast.AST) -> set[int]:
    nodes = [docstring for node in ast.walk(tree) if (docstring := _docstring_node(node))]
    return {line for node in nodes for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def _count_tokens(text: str, docstrings: set[int]) -> tuple[int, int]:
    silent = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type not in silent:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings), comments


def _functions(tree: ast.Module, place: str) -> Iterator[Function]:
    for names, node in _walk_named(tree):
        if not isinstance(node, FunctionNode):
            continue
        params = _parameters(node, len(names) > 1 and names[-2][1] is ast.ClassDef)
        yield Function(
            place=f"{place}:{node.lineno} {'.'.join(name for name, _ in names)}",
            body=_body_lines(node),
            lines=_own_lines(node),
            args=len(params),
            complexity=1 + sum(map(_decisions, _own_nodes(node.body))),
            untyped=tuple(f"parameter {arg.arg!r}" for arg in params if arg.annotation is None),
            has_return=node.returns is not None,
            is_public=all(_is_public(name) or name.endswith("__") for name, _ in names)
            and all(kind is ast.ClassDef for _, kind in names[:-1]),
            shape=_shape(node),
        )


def _walk_named(
    node: ast.AST, names: tuple[tuple[str, type], ...] = ()
) -> Iterator[tuple[tuple[tuple[str, type], ...], ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (*names, (child.name, type(child)))
            yield inner, child
        yield from _walk_named(child, inner)


def _parameters(node: FunctionNode, is_method: bool) -> list[ast.arg]:
    found = [*node.args.posonlyargs, *node.args.args]
    if is_method and found and found[0].arg in ("self", "cls"):
        found = found[1:]
    return [*found, *node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]


def _body_lines(node: FunctionNode) -> int:
    statements = node.body[1:] if _docstring_node(node) else node.body
    return (node.end_lineno or node.lineno) - statements[0].lineno + 1 if statements else 0


def _own_lines(node: FunctionNode) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1 - len(_docstring_lines(node))


def _own_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if not isinstance(node, FunctionNode):
            yield node
            yield from _own_nodes(ast.iter_child_nodes(node))


def _decisions(node: ast.AST) -> int:
    match node:
        case ast.If() | ast.IfExp() | ast.Assert():
            return 1
        case ast.For() | ast.AsyncFor() | ast.While():
            return 1 + bool(node.orelse)
        case ast.Try() | ast.TryStar():
            return len(node.handlers) + bool(node.orelse)
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.Match():
            return len(node.cases) - any(_is_wildcard(case) for case in node.cases)
    return 0


def _is_wildcard(case: ast.match_case) -> bool:
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None


def _shape(node: FunctionNode) -> str:
    """Write the body of a function so that two functions that differ in local names only are written alike."""
    local = {child.arg for child in ast.walk(node.args) if isinstance(child, ast.arg)}
    local |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}
    numbers: dict[str, str] = {}

    def write(value: object) -> str:
        if isinstance(value, ast.Name) and value.id in local:
            return numbers.setdefault(value.id, f"_{len(numbers)}")
        if isinstance(value, ast.arg):
            return numbers.setdefault(value.arg, f"_{len(numbers)}")
        if isinstance(value, ast.AST):
            fields = [name for name in value._fields if name not in ("annotation", "ctx", "returns", "type_comment")]
            return f"{type(value).__name__}({','.join(write(getattr(value, name, None)) for name in fields)})"
        if isinstance(value, list):
            return f"[{','.join(map(write, value))}]"
        return repr(value)

    return write(node.args) + write(node.body[1:] if _docstring_node(node) else node.body)


def _symbols(tree: ast.Module, place: str) -> Iterator[Symbol]:
    yield Symbol(place=place, top_level=True, documented=_docstring_node(tree) is not None)
    for names, node in _walk_named(tree):
        kinds = [kind for _, kind in names[:-1]]
        if not all(kind is ast.ClassDef for kind in kinds) or not all(_is_public(name) for name, _ in names):
            continue
        yield Symbol(
            place=f"{place}:{getattr(node, 'lineno', 0)} {'.'.join(name for name, _ in names)}",
            top_level=len(names) == 1,
            documented=_docstring_node(node) is not None,
        )


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _imports(tree: ast.Module, relative: Path, package: Path) -> Iterator[tuple[str, int]]:
    for node in _import_time(tree.body):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, relative, package.name)
            modules = [f"{base}.{alias.name}" for alias in node.names] if base == package.name else [base]
        else:
            continue
        for module in modules:
            names = module.split(".")
            if names[0] == package.name:
                yield _known_part(names, package), node.lineno


def _import_time(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, FunctionNode | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _import_time(node.orelse)
            continue
        yield node
        yield from _import_time(ast.iter_child_nodes(node))


def _absolute(node: ast.ImportFrom, relative: Path, package: str) -> str:
    if not node.level:
        return node.module or ""
    inside = [package, *relative.parent.parts]
    base = inside[: len(inside) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _known_part(names: Sequence[str], package: Path) -> str:
    if len(names) > 1 and ((package / names[1]).is_dir() or (package / f"{names[1]}.py").is_file()):
        return names[1]
    return "__init__"


def measure(package: Path, tests: Path) -> list[Row]:
    """Measure a package and its tests.

    Args:
        package: folder of the package.
        tests: folder of its tests.

    Returns:
        One row per quantity, with the places past its limit.
    """
    sources = [read_source(path, package) for path in sorted(package.rglob("*.py"))]
    functions = [function for source in sources for function in source.functions]
    test_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(tests.rglob("*.py")))
    return [
        *_size_rows(sources, functions),
        *_function_rows(functions),
        *_doc_rows([symbol for source in sources for symbol in source.symbols]),
        *_typed_rows([function for function in functions if function.is_public]),
        *_comment_rows(sources),
        _duplicate_row(functions),
        _cycle_row(sources),
        _test_row(test_lines, sum(source.lines for source in sources)),
    ]


def _size_rows(sources: Sequence[Source], functions: Sequence[Function]) -> list[Row]:
    lines = {source.place: source.lines for source in sources}
    body = {function.place: function.body for function in functions}
    return [
        Row(name="files", value=str(len(sources)), limit="-"),
        _typical("lines/file, median", lines, statistics.median, 120),
        _typical("lines/file, p90", lines, p90, 300),
        _largest("lines/file, largest", lines, 500),
        _typical("body, median", body, statistics.median, 9),
        _typical("body, p90", body, p90, 25),
        _none_past("bodies > 50 lines", body, 50),
    ]


def _function_rows(functions: Sequence[Function]) -> list[Row]:
    args = {function.place: function.args for function in functions}
    complexity = {function.place: function.complexity for function in functions}
    return [
        _typical("args, p90", args, p90, 5),
        _largest("args, largest", args, 8),
        _typical("CC, mean", complexity, statistics.fmean, 2.5),
        _none_past("CC > 10", complexity, 10),
    ]


def _doc_rows(symbols: Sequence[Symbol]) -> list[Row]:
    rows = []
    for name, chosen in (("top level", [symbol for symbol in symbols if symbol.top_level]), ("all public", symbols)):
        missing = tuple(f"{symbol.place}: no docstring" for symbol in chosen if not symbol.documented)
        rows.append(_complete(f"doc, {name}", len(chosen), missing))
    return rows


def _typed_rows(functions: Sequence[Function]) -> list[Row]:
    params = tuple(f"{function.place}: {name} has no type" for function in functions for name in function.untyped)
    returns = tuple(f"{function.place}: the return has no type" for function in functions if not function.has_return)
    return [
        _complete("typed, parameters", sum(function.args for function in functions), params),
        _complete("typed, returns", len(functions), returns),
    ]


def _comment_rows(sources: Sequence[Source]) -> list[Row]:
    code = max(1, sum(source.code for source in sources))
    comments = 100 * sum(source.comments for source in sources) / code
    docstrings = 100 * sum(source.docstrings for source in sources) / code
    many = {source.place: source.comments for source in sources}
    off = {source.place: abs(source.code - source.docstrings) for source in sources}
    return [
        Row(
            name="comment lines / 100 code lines",
            value=f"{comments:.1f}",
            limit="<= 8",
            breaches=_worst(many, "comment lines") if comments > 8 else (),
        ),
        Row(
            name="docstring lines / 100 code lines",
            value=f"{docstrings:.1f}",
            limit="40 to 100",
            breaches=() if 40 <= docstrings <= 100 else _worst(off, "difference of code and docstring lines"),
        ),
    ]


def _duplicate_row(functions: Sequence[Function]) -> Row:
    long = [function for function in functions if function.lines >= DUPLICATE_LINES and function.body]
    by_shape: dict[str, list[Function]] = defaultdict(list)
    for function in long:
        by_shape[function.shape].append(function)
    repeated = [same for same in by_shape.values() if len(same) > 1]
    share = _percent(sum(function.lines for same in repeated for function in same), sum(f.lines for f in long))
    breaches = tuple(f"{same[0].place}: repeated by {', '.join(f.place for f in same[1:])}" for same in repeated)
    return Row(name="dup", value=f"{share:.1f} %", limit="0 %", breaches=breaches)


def _cycle_row(sources: Sequence[Source]) -> Row:
    edges: dict[str, dict[str, str]] = defaultdict(dict)
    for source in sources:
        for part, place in source.imports:
            if part != source.part:
                edges[source.part].setdefault(part, place)
    cycle = max((_cycle_of(part, edges) for part in sorted(edges)), key=len, default=set())
    breaches = tuple(
        f"{place}: {part} imports {other} and is imported by it, directly or through others"
        for part in sorted(cycle)
        for other, place in sorted(edges[part].items())
        if other in cycle
    )
    return Row(name="largest cycle", value=str(len(cycle)), limit="0", breaches=breaches)


def _cycle_of(part: str, edges: dict[str, dict[str, str]]) -> set[str]:
    onward = _reachable(part, edges)
    return {other for other in onward if part in _reachable(other, edges)} if part in onward else set()


def _reachable(start: str, edges: dict[str, dict[str, str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in edges.get(waiting.pop(), {}):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def _test_row(test_lines: int, library_lines: int) -> Row:
    ratio = test_lines / max(1, library_lines)
    short = math.ceil(0.6 * library_lines) - test_lines
    breaches = (f"tests: {short} lines short",) if ratio < 0.6 else ()
    return Row(name="test lines / library lines", value=f"{ratio:.2f}", limit=">= 0.6", breaches=breaches)


def p90(values: Iterable[float]) -> float:
    """Return the smallest value that at least 90 % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(0.9 * len(ordered)) - 1]


def _typical(name: str, values: dict[str, int], summary: Callable[[Iterable[float]], float], limit: float) -> Row:
    value = summary(values.values()) if values else 0
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    breaches = _worst(values, name.split(",")[0]) if value > limit else ()
    return Row(name=name, value=shown, limit=f"<= {limit}", breaches=breaches)


def _largest(name: str, values: dict[str, int], limit: int) -> Row:
    largest = max(values.values(), default=0)
    return Row(name=name, value=str(largest), limit=f"<= {limit}", breaches=_past(values, limit))


def _none_past(name: str, values: dict[str, int], limit: int) -> Row:
    breaches = _past(values, limit)
    return Row(name=name, value=f"{_percent(len(breaches), len(values)):.1f} %", limit="0 %", breaches=breaches)


def _past(values: dict[str, int], limit: int) -> tuple[str, ...]:
    return tuple(f"{place}: {value} > {limit}" for place, value in values.items() if value > limit)


def _worst(values: dict[str, int], unit: str) -> tuple[str, ...]:
    largest = sorted(values.items(), key=lambda item: -item[1])[:WORST]
    return tuple(f"{place}: {unit} {value}, among the largest" for place, value in largest)


def _complete(name: str, total: int, missing: tuple[str, ...]) -> Row:
    return Row(name=name, value=f"{100 - _percent(len(missing), total):.1f} %", limit="100 %", breaches=missing)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows and the breaches.

    Args:
        arguments: command line without the program's name; that of the process by default.

    Returns:
        0 within all limits, 1 past one, 2 if the package cannot be read.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, default=ROOT / "src" / "coterie", help="folder of the package")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="folder of its tests")
    options = parser.parse_args(arguments)
    try:
        rows = measure(options.package.resolve(), options.tests.resolve())
    except (SyntaxError, UnicodeDecodeError) as error:
        print(f"measure: cannot read the package: {error}; mend that file first", file=sys.stderr)
        return 2
    if rows[0].value == "0":
        print(f"measure: no Python files in {options.package}; give the package with --package", file=sys.stderr)
        return 2
    for row in rows:
        print(f"{row.name:<34}{row.value:>9}   limit {row.limit}{'   PAST' if row.breaches else ''}")
    breaches = [f"{row.name}: {breach}" for row in rows for breach in row.breaches]
    print("\n".join(["", *breaches]) if breaches else "within all limits")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
