"""What a chapter must keep to, so that its modules work; used by extract.py.

Each check refuses with the notebook's name, the cell's number and the reason.
"""

import ast
import re

from pyflakes.checker import Checker
from pyflakes.messages import UndefinedExport, UndefinedLocal, UndefinedName

CELL = 60  # lines of an exported cell
COLUMNS = 88
APPENDIX = 91  # the number of the first notebook that any chapter may import
CLI = "cli"  # the module that nothing imports
MAGIC = re.compile(r"^\s*[%!]|get_ipython", re.MULTILINE)
CONTINUED = re.compile(r"class (\w+)\(\1\):(  # continued)?")
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
METHOD = (ast.FunctionDef, ast.AsyncFunctionDef)


class ExtractionError(Exception):
    """A notebook breaks a rule; the message names the notebook and the cell."""


def check_cell(notebook, index: int, source: str) -> None:
    """Refuse an exported cell with IPython magic, too many lines or a line too long."""
    if magic := MAGIC.search(source):
        found = magic[0].strip()
        notebook.refuse(index, f"an export cell holds IPython magic ({found!r})")
    lines = source.split("\n")
    if len(lines) > CELL:
        notebook.refuse(
            index, f"an export cell of {len(lines)} lines, more than {CELL}: cut it"
        )
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            notebook.refuse(
                index, f"line {number} has {len(line)} columns, more than {COLUMNS}"
            )


def is_continuation(node: ast.stmt) -> bool:
    bases = getattr(node, "bases", [])
    return isinstance(node, ast.ClassDef) and [ast.unparse(b) for b in bases] == [
        node.name
    ]


def continues(notebook, index, source, tree: ast.Module, before) -> bool:
    """Whether a cell begins with a further piece of the class before.

    `before` is the syntax tree of the file's previous cell, or None.
    """
    pieces = [node for node in tree.body if is_continuation(node)]
    if not pieces:
        return False
    name = pieces[0].name
    if not CONTINUED.fullmatch(source.split("\n")[0]) or pieces != tree.body[:1]:
        notebook.refuse(
            index,
            f'"class {name}({name}):" continues a class: it must be the first line',
        )
    last = before.body[-1] if before and before.body else None
    if not isinstance(last, ast.ClassDef) or last.name != name:
        notebook.refuse(
            index, f"continues class {name}, which does not end the export cell before"
        )
    for node in pieces[0].body:
        if not isinstance(node, METHOD):
            notebook.refuse(
                index, f"continues class {name} with something that is no method"
            )
    return True


class WithoutShapes(ast.NodeTransformer):
    """Drop the shapes of jaxtyping annotations, which are no forward references."""

    def __init__(self, tree: ast.Module):
        self.names = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
            for alias in node.names
        }

    def visit_Subscript(self, node):
        self.generic_visit(node)
        shaped = isinstance(node.value, ast.Name) and node.value.id in self.names
        if shaped and isinstance(node.slice, ast.Tuple):
            kept = [e for e in node.slice.elts if not isinstance(e, ast.Constant)]
            node.slice.elts = kept
        return node


def check_names(source) -> None:
    """Refuse names that are used, or listed in `__all__`, but not defined."""
    tree = source.tree
    for message in Checker(WithoutShapes(tree).visit(tree), source.file).messages:
        if isinstance(message, (UndefinedName, UndefinedExport, UndefinedLocal)):
            source.refuse(message.lineno, message.message % message.message_args)


def check_twice(source) -> None:
    """Refuse a function or class, or a method of a class, that is defined twice."""
    tree = source.tree
    for place in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]:
        seen = set()
        for node in place.body:
            if not isinstance(node, DEFINITION):
                continue
            if node.name in seen and not node.decorator_list:
                source.refuse(node.lineno, f"defines {node.name} a second time")
            seen.add(node.name)


def is_all(node: ast.stmt) -> bool:
    targets = [ast.unparse(target) for target in getattr(node, "targets", [])]
    return isinstance(node, ast.Assign) and targets == ["__all__"]


def all_names(node: ast.Assign) -> list[str] | None:
    """The names that an assignment to `__all__` lists; None if it's no plain list."""
    try:
        names = ast.literal_eval(node.value)
    except ValueError:
        return None
    plain = isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)
    return list(names) if plain else None


def imported_names(tree: ast.AST):
    """Every dotted name that a tree imports, or imports from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = re.sub(r"^\.", "stt_lite.", base).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def package_imports(tree: ast.AST):
    """(dotted name, module, name or "") of all that a tree imports of stt_lite."""
    for dotted in imported_names(tree):
        package, module, name = (dotted.split(".") + ["", ""])[:3]
        if package == "stt_lite":
            yield dotted, module, name


def check_imports(notebook, numbers: dict[str, int]) -> None:
    """Refuse imports upwards, of private names and of what no notebook builds.

    `numbers`: the number of each module's notebook. A cell of any kind may import what
    earlier notebooks and the appendix build, one of the appendix what any builds, but
    never `cli`. A module's cells don't import the package as a whole, or the module.
    """
    chapter = notebook.number < APPENDIX
    cells = dict(notebook.code)
    for index, tree in notebook.code_trees():
        file = notebook.file_of(index, cells[index]) or ""
        for dotted, module, name in package_imports(tree):
            if re.match(r"_(?!_)", name):
                notebook.refuse(index, f"imports {dotted}, a private name")
            if module == CLI and CLI not in notebook.modules:
                notebook.refuse(index, "imports stt_lite.cli, which nothing may import")
            if chapter and notebook.number < numbers.get(module, 0) < APPENDIX:
                notebook.refuse(
                    index, f"imports stt_lite.{module}, which a later chapter builds"
                )
            if not file.startswith("stt_lite/"):
                continue
            if module not in numbers or file == f"stt_lite/{module}.py":
                notebook.refuse(
                    index,
                    f"an export cell imports {dotted}: import from another module",
                )


def check_exported_once(modules, exports: dict[str, list[str]]) -> None:
    """Refuse a name that two modules export."""
    owner = {}
    for module in modules:
        for name in exports[module.name]:
            if name in owner:
                module.notebooks[0].refuse(
                    None, f"__all__ holds {name}, which stt_lite.{owner[name]} exports"
                )
            owner[name] = module.name


def check_redefinitions(notebook, numbers: dict, exports: dict[str, list[str]]) -> None:
    """Refuse a def or class, in any cell, that a module it could import exports."""
    owner = {
        name: module
        for module, names in exports.items()
        if module not in notebook.modules and module != CLI
        if numbers[module] < notebook.number or numbers[module] >= APPENDIX
        for name in names
    }
    for index, tree in notebook.code_trees():
        for node in tree.body:
            if isinstance(node, DEFINITION) and node.name in owner:
                module = owner[node.name]
                notebook.refuse(
                    index, f"defines {node.name} again, which stt_lite.{module} exports"
                )


def import_graph(modules) -> dict[str, dict[str, int]]:
    """Module -> the modules that it imports -> the line of the first such import."""
    graph = {}
    for module in modules:
        edges = graph[module.name] = {}
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for _, target, _ in package_imports(node):
                    edges.setdefault(target, node.lineno)
    return graph


def check_cycles(modules) -> None:
    """Refuse modules that import each other in a circle."""
    graph = import_graph(modules)
    by_name = {module.name: module for module in modules}
    done = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            circle = way[way.index(name) :] + [name]
            line = graph[circle[-2]][name]
            by_name[circle[-2]].refuse(line, f"import cycle: {' -> '.join(circle)}")
        if name in done or name not in graph:
            return
        for target in graph[name]:
            visit(target, [*way, name])
        done.add(name)

    for name in graph:
        visit(name, [])


def importable(texts: dict[str, str]) -> dict[str, list[str]]:
    """`__all__` of those modules (name -> text) whose imports of each other exist."""
    trees = {}
    for name, text in texts.items():
        try:
            trees[name] = ast.parse(text)
        except SyntaxError:
            continue
    exports, defined = {}, {}
    for name, tree in trees.items():
        if name.startswith("__") or name == CLI:
            continue
        for node in tree.body:
            if is_all(node):
                exports[name] = all_names(node) or []
        stores = [n for n in ast.walk(tree) if isinstance(n, (ast.Name, *DEFINITION))]
        defined[name] = {
            getattr(n, "name", None) or getattr(n, "id", "") for n in stores
        }
        defined[name] |= {d.split(".")[-1] for d in imported_names(tree)}
    while True:
        broken = {
            name
            for name in exports
            for _, target, used in package_imports(trees[name])
            if target not in exports or (used and used not in defined[target])
        }
        if not broken:
            return exports
        for name in broken:
            del exports[name]
