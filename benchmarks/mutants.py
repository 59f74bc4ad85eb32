"""Small faults in a module's source, one at a time: what tests should notice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import singledispatch
from typing import Any, NamedTuple

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMBINED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
TOLD = ("log", "logging", "say", "warnings")
"""What only tells something is called on these names: that it is left out changes no result."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Mutant(NamedTuple):
    """A module's source with one fault."""

    line: int
    """Line of the fault."""
    lines: range
    """Lines of the statement that it is in, without those of a block below it."""
    what: str
    """The text that is replaced, and what by."""
    is_in_function: bool
    """False: it takes effect when the module is imported."""
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module; all have its number of lines."""
    text = source.encode()
    starts = [0, *(i + 1 for i, byte in enumerate(text) if byte == ord("\n"))]
    for node, statement, is_in_function in _nodes(ast.parse(source)):
        for new in [*_faults(node), *_turned(node, statement)]:
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            old = text[begin:end].decode()
            padding = "\n" * old.count("\n")
            is_statement = isinstance(node, ast.stmt)
            words = f"{new}{padding}" if is_statement else f"({new}{padding})"
            block = getattr(statement, "body", None)
            last = block[0].lineno - 1 if isinstance(block, list) else statement.end_lineno
            yield Mutant(
                node.lineno,
                range(statement.lineno, max(last, statement.lineno) + 1),
                f"{' '.join(old.split())} -> {new}",
                is_in_function,
                (text[:begin] + words.encode() + text[end:]).decode(),
            )


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.stmt, bool]]:
    """Yield nodes that may be replaced, each with its statement and whether a function has it."""

    def below(node: ast.AST, statement: ast.stmt, inside: bool) -> Iterator[Any]:
        if isinstance(node, ast.JoinedStr):  # the places of its parts are not known exactly
            return
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, ast.expr | ast.stmt):
            yield node, statement, inside
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            is_body = isinstance(node, FUNCTIONS) and name == "body"
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_for_types(child):
                    yield from below(child, statement, inside or is_body)

    for statement in tree.body:
        if not _is_for_types(statement):
            yield from below(statement, statement, False)


def _is_for_types(node: ast.AST) -> bool:
    """True for what is not run, or is a type: an alias such as ``Loss = Literal[...]`` too."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Literal", "Annotated")


@singledispatch
def _faults(node: ast.AST) -> Iterator[str]:
    """Yield what may stand in a node's place."""
    yield from ()


@_faults.register
def _(node: ast.Compare) -> Iterator[str]:
    for i, kind in enumerate(node.ops):
        for other in COMPARED[type(kind)]:
            ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
            yield ast.unparse(ast.Compare(node.left, ops, node.comparators))


@_faults.register
def _(node: ast.BinOp) -> Iterator[str]:
    is_text = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
    if type(node.op) in COMBINED and not is_text:
        yield ast.unparse(ast.BinOp(node.left, COMBINED[type(node.op)](), node.right))


@_faults.register
def _(node: ast.BoolOp) -> Iterator[str]:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield ast.unparse(ast.BoolOp(other, node.values))


@_faults.register
def _(node: ast.UnaryOp) -> Iterator[str]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield ast.unparse(node.operand)


@_faults.register
def _(node: ast.IfExp) -> Iterator[str]:
    yield ast.unparse(ast.IfExp(node.test, node.orelse, node.body))


@_faults.register
def _(node: ast.Call) -> Iterator[str]:
    if isinstance(node.func, ast.Name) and node.func.id in SWAPPED:
        yield ast.unparse(ast.Call(ast.Name(SWAPPED[node.func.id]), node.args, node.keywords))


@_faults.register
def _(node: ast.Constant) -> Iterator[str]:
    value = node.value
    if isinstance(value, bool):
        yield repr(not value)
    elif isinstance(value, int):
        yield repr(value + 1)
    elif isinstance(value, float):
        yield from (repr(3 * value), "0.0") if value else ("1.0",)


@_faults.register
def _(node: ast.Expr) -> Iterator[str]:
    call = node.value.value if isinstance(node.value, ast.Await) else node.value
    if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[0] not in TOLD:
        yield "pass"


@_faults.register(ast.AugAssign)
@_faults.register(ast.Raise)
def _(node: ast.AST) -> Iterator[str]:
    yield "pass"


@_faults.register
def _(node: ast.Break) -> Iterator[str]:
    yield "continue"


@_faults.register
def _(node: ast.Continue) -> Iterator[str]:
    yield "break"


def _turned(node: ast.AST, statement: ast.stmt) -> Iterator[str]:
    """Yield the contrary of a condition that is no comparison, which has contraries already."""
    is_condition = isinstance(statement, ast.If | ast.While) and node is statement.test
    if is_condition and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield f"not ({ast.unparse(node)})"
