"""What a chapter must keep to, so that its module works on its own and after the earlier ones; used by extract.py.

Each check takes a `Chapter` and calls its `refuse`, which names the notebook and the cell.
"""

import ast
import re

from pyflakes.checker import Checker
from pyflakes.messages import UndefinedExport, UndefinedLocal, UndefinedName


class WithoutShapes(ast.NodeTransformer):
    """Drop the shape strings of jaxtyping annotations, which are no forward references."""

    def __init__(self, tree: ast.Module):
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "jaxtyping"]
        self.names = {alias.asname or alias.name for node in imports for alias in node.names}

    def visit_Subscript(self, node):
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in self.names and isinstance(node.slice, ast.Tuple):
            node.slice.elts = [e for e in node.slice.elts if not isinstance(e, ast.Constant)]
        return node


def check_names(chapter) -> None:
    """Refuse names that are used, or listed in `__all__`, but not defined."""
    tree = WithoutShapes(chapter.tree).visit(ast.parse(chapter.text))
    for message in Checker(tree, chapter.path.name).messages:
        if isinstance(message, (UndefinedName, UndefinedExport, UndefinedLocal)):
            chapter.refuse(chapter.lines[message.lineno], message.message % message.message_args)


def imported_names(tree: ast.AST):
    """Every dotted name that a cell imports, or imports from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = re.sub(r"^\.", "stt_lite.", base).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def check_imports(chapter, order: list[str]) -> None:
    """Refuse imports from a later chapter in any cell; in export cells also from the package as a whole."""
    exported = {index for index, _ in chapter.exported}
    own = order.index(chapter.module) if chapter.module else len(order)
    for index, tree in chapter.code_trees():
        for name in imported_names(tree):
            package, module = (name.split(".") + [""])[:2]
            if package != "stt_lite":
                continue
            if module in order and order.index(module) > own:
                chapter.refuse(index, f"imports stt_lite.{module}, which a later chapter builds")
            if index in exported and (module not in order or module == chapter.module):
                chapter.refuse(index, f"an export cell imports {name}: import from an earlier chapter's module")


def check_redefinitions(chapter, earlier: dict[str, str]) -> None:
    """Refuse a def or class, in any cell, with a name that an earlier chapter's module exports."""
    for index, tree in chapter.code_trees():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in earlier:
                chapter.refuse(index, f"defines {node.name} again, which stt_lite.{earlier[node.name]} exports")
