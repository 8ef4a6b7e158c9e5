"""A chapter's first screen shows its first result, and folded code only after it."""

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode

PROMPTS = {"prompt_show": "Show the code so far", "prompt_hide": "Hide the code so far"}


def is_cell(node: nodes.Node) -> bool:
    return node.get("nb_element") == "cell_code"


def put_result_first(app, doctree: nodes.document, name: str) -> None:
    """Gather what is folded before a chapter's first result into one fold below it.

    Between them stays the text that follows the result, up to the next cell or heading.
    """
    opening = next(doctree.findall(nodes.section), None)
    if app.builder.format != "html" or opening is None:
        return
    folds = []
    for cell in filter(is_cell, opening.children):
        shown = [x for x in cell.children if not isinstance(x, HideCodeCellNode)]
        folds += [(cell, fold) for fold in cell.children if fold not in shown]
        if shown:
            break
    else:
        return  # nothing is shown before the first heading
    end = opening.index(cell) + 1
    while not (is_cell(opening[end]) or isinstance(opening[end], nodes.section)):
        end += 1
    whole = HideCodeCellNode(classes=["above-input"], **PROMPTS)
    opening.insert(end, nodes.container("", whole, classes=["cell", "tag_hide-input"]))
    for cell, fold in folds:
        cell.children.remove(fold)
        whole.extend(fold.children)
        if not cell.children:
            opening.remove(cell)


def connect(app) -> None:
    app.connect("doctree-resolved", put_result_first)
