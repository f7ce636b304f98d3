"""Parameters of functions and fields of dataclasses, read from their source without importing it.

Help, completion and the check of a command's keys need what signatures and docstrings say, at once; importing the
modules that hold them takes torch and seconds. Tests compare what is read here with what Python itself says after
importing.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import operator
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

__all__ = ["REQUIRED", "Expression", "Parameter", "Signature", "find_file", "read_constant", "read_signature"]

REQUIRED = type("Required", (), {"__repr__": lambda _: "REQUIRED"})()
"""The default of what has none."""


class Expression(str):
    """The source of a default that is more than literals and constants."""


_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.BitOr: operator.or_,
}
_COLLECTIONS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "list": list, "frozenset": frozenset, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function, or one field of a dataclass.

    Attributes:
        name: Its name.
        type: Its annotation as it is written; empty without one.
        default: Its default, `REQUIRED` without one; an `Expression` where it is computed.
        meaning: What the docstring says of it, in one line; empty where it says nothing.
        choices: The names that it can have, where the code or the docstring lists them.
    """

    name: str
    type: str = ""
    default: Any = REQUIRED
    meaning: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """What can be given to a function or a dataclass.

    Attributes:
        summary: The first sentence of its docstring.
        parameters: Its parameters in their order, `self` left out.
        takes_more: Whether it takes any other keyword.
    """

    summary: str
    parameters: tuple[Parameter, ...] = field(default_factory=tuple)
    takes_more: bool = False


@cache
def read_signature(target: str) -> Signature:
    """Read a function, a method or a dataclass; one that wraps another function (`functools.wraps`) as that one.

    Args:
        target: Where it is, as `module:name` or `module:Class.method`; names that the module imports are followed.

    Raises:
        LookupError: If there is no such module or name.

    Examples:
        >>> read = read_signature("meddet_yolo.signatures:read_signature")
        >>> read.parameters[0].name, read.parameters[0].type, read.takes_more
        ('target', 'str', False)
    """
    module, _, path = target.partition(":")
    home, node = _find(module, path)
    if isinstance(node, ast.ClassDef):
        return _read_class(home, node)
    if isinstance(node, ast.FunctionDef):
        return _read_function(home, node)
    if isinstance(node, ast.Name):  # an attribute of a class that names another class
        return read_signature(f"{home}:{node.id}")
    raise LookupError(f"{target} is neither a function nor a class")


def read_constant(target: str) -> Any:
    """Read a constant, or an attribute of a class, that is written with literals and other constants.

    Examples:
        >>> read_constant("meddet_yolo.distill.method:METHODS")["cwd"]
        'meddet_yolo.distill.methods.cwd:CWD'
    """
    module, _, path = target.partition(":")
    home, node = _find(module, path)
    return _value(home, node)


@cache
def find_file(module: str) -> Path:
    """Return the file of a module, without importing more than its topmost package.

    Raises:
        LookupError: If there is no such module, or it has no file.
    """
    parts = module.split(".")
    spec = importlib.util.find_spec(".".join(parts[:2]))  # an import hook may know where the parts of a package are
    for end in range(3, len(parts) + 1):
        places = list(spec.submodule_search_locations or []) if spec else []
        spec = PathFinder.find_spec(".".join(parts[:end]), places)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise LookupError(f"there is no module {module}")
    return Path(spec.origin)


# Finding --------------------------------------------------------------------------------------------------------------


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(find_file(module).read_text(encoding="utf-8"))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Give a body's statements, those inside of `if` and `try` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _find(module: str, path: str) -> tuple[str, ast.AST]:
    """Return where a name is defined, and its definition; of an assignment the value."""
    name, _, rest = path.partition(".")
    for node in _statements(_tree(module).body):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, f"{alias.name}.{rest}" if rest else alias.name)
        elif (found := _defined(node, name)) is not None:
            if not rest:
                return module, found
            for inner in getattr(found, "body", []):
                if (attribute := _defined(inner, rest)) is not None:
                    return module, attribute
    raise LookupError(f"{module} has no {path}")


def _defined(node: ast.stmt, name: str) -> ast.AST | None:
    """Return what a statement gives a name, if it does."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
        return node
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id == name:
                return node.value
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
                if (value := next((v for t, v in pairs if ast.unparse(t) == name), None)) is not None:
                    return value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
        return node.value
    return None


# Reading --------------------------------------------------------------------------------------------------------------


def _read_function(module: str, node: ast.FunctionDef) -> Signature:
    for mark in node.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith("wraps"):
            return read_signature(f"{module}:{ast.unparse(mark.args[0])}")
    meanings, choices = _meanings(node, "Args"), _choices(module, node)
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    parameters = [
        _parameter(module, arg.arg, arg.annotation, default, meanings, choices)
        for arg, default in zip([*positional, *given.kwonlyargs], [*defaults, *given.kw_defaults], strict=True)
        if arg.arg not in {"self", "cls"}
    ]
    return Signature(_summary(node), tuple(parameters), given.kwarg is not None)


def _read_class(module: str, node: ast.ClassDef) -> Signature:
    found: dict[str, Parameter] = {}
    for base in node.bases:
        try:
            inherited = read_signature(f"{module}:{ast.unparse(base)}")
        except LookupError:  # of another package
            continue
        found |= {parameter.name: parameter for parameter in inherited.parameters}
    meanings, choices = {**_meanings(node, "Args"), **_meanings(node, "Attributes")}, _choices(module, node)
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation):
            name = ast.unparse(each.target)
            found[name] = _parameter(module, name, each.annotation, each.value, meanings, choices)
    return Signature(_summary(node), tuple(found.values()))


def _parameter(
    module: str,
    name: str,
    annotation: ast.expr | None,
    default: ast.expr | None,
    meanings: dict[str, str],
    choices: dict[str, tuple[str, ...]],
) -> Parameter:
    kind, meaning = ast.unparse(annotation) if annotation else "", meanings.get(name, "")
    value = REQUIRED if default is None else _value(module, default)
    listed = choices.get(name)
    if listed is None and re.search(r"\bstr\b", kind):
        listed = _quoted(meaning)
    return Parameter(name, kind, value, meaning, listed or ())


def _value(module: str, node: ast.AST) -> Any:
    """Return the value of an expression of literals and constants; of any other its source."""
    try:
        return _constant(module, node)
    except (LookupError, ValueError, TypeError):
        return Expression(ast.unparse(node))


def _constant(module: str, node: ast.AST) -> Any:
    if isinstance(node, ast.Name):
        return _constant(*_find(module, node.id))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_constant(module, node.left), _constant(module, node.right))
    if isinstance(node, ast.Call):
        function, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        if function == "field" and "default" in keywords:
            return _constant(module, keywords["default"])
        if function == "field" and "default_factory" in keywords:
            return _COLLECTIONS[ast.unparse(keywords["default_factory"])](())
        if function in _COLLECTIONS and len(node.args) == 1:
            return _COLLECTIONS[function](_constant(module, node.args[0]))
    if isinstance(node, ast.Dict) and None not in node.keys:  # whose values may be anything
        pairs = zip(node.keys, node.values, strict=True)
        return {_constant(module, key): _value(module, value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)


# Docstrings -----------------------------------------------------------------------------------------------------------


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "")


def _summary(node: ast.FunctionDef | ast.ClassDef) -> str:
    return " ".join(_docstring(node).partition("\n\n")[0].split())


def _meanings(node: ast.FunctionDef | ast.ClassDef, title: str) -> dict[str, str]:
    """Return the entries of a section of a docstring in Google's style, a line each."""
    section = re.search(rf"^{title}:\n((?:[ ]{{4}}.*\n?|\n)*)", _docstring(node), re.MULTILINE)
    entries = re.findall(r"^ {4}\**(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _choices(module: str, node: ast.FunctionDef | ast.ClassDef) -> dict[str, tuple[str, ...]]:
    """Return the names that the code itself checks for: `choice("name", value, NAMES)` and `name not in NAMES`."""
    found: dict[str, tuple[str, ...]] = {}
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "choice" and len(each.args) == 3:
            key, names = ast.unparse(each.args[0]).strip("'\""), _value(module, each.args[2])
        elif isinstance(each, ast.Compare) and isinstance(each.ops[0], ast.NotIn):
            key, names = ast.unparse(each.left).removeprefix("self."), _value(module, each.comparators[0])
        else:
            continue
        if not isinstance(names, str) and isinstance(names, Collection) and {type(name) for name in names} == {str}:
            found.setdefault(key, tuple(names))
    if isinstance(node, ast.ClassDef):  # functions of the same module, which a dataclass checks itself with
        called = {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
        for helper in _tree(module).body:
            if isinstance(helper, ast.FunctionDef) and helper.name in called:
                found = {**_choices(module, helper), **found}
    return found


def _quoted(meaning: str) -> tuple[str, ...]:
    """Return the values that a string can have by its meaning: words in "...", or several in `...`."""
    strings, code = (re.findall(rf"{mark}([a-z][\w-]*){mark}", meaning) for mark in ('"', "`"))
    return tuple(dict.fromkeys(strings or (code if len(code) > 1 else ())))
