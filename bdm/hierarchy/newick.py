import re

from bdm.errors import InputError
from bdm.hierarchy.topology import Clade
from bdm.hierarchy.tree import Hierarchy

TOKEN = re.compile(r"\s*(?:'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"|(\[[^]]*\])|([(),;:])|([^\s()\[\]',;:]+))")


def quoted(name: str) -> str:
    """Name as a quoted Newick label."""
    return "'" + name.replace("'", "''") + "'"


def to_newick(hierarchy: Hierarchy) -> str:
    """Hierarchy in Newick, branch lengths in noise levels, support as label of inner nodes."""
    written = {}
    for branch in reversed(hierarchy.branches):
        children = hierarchy.children[branch.name]
        if children:
            label = "" if branch.support is None else f"{branch.support:.2f}"
            text = f"({','.join(written.pop(child) for child in children)}){label}"
        else:
            text = quoted(branch.name)
        segment = hierarchy.segment(branch.name)
        written[branch.name] = f"{text}:{segment.high - segment.low:.6g}"
    return written[hierarchy.root.name] + ";\n"


def from_newick(text: str) -> Clade:
    """Shape of the first tree of a Newick text; lengths, comments and inner labels are passed over.

    Raises
    ------
    InputError
        If the text is not Newick.
    """
    open_nodes: list[list[Clade]] = [[]]
    position, name, skip, closed = 0, None, False, None
    while match := TOKEN.match(text, position):
        position = match.end()
        single, double, comment, sign, word = match.groups()
        if comment is not None:
            continue
        if sign is None:
            if not skip and closed is None:
                if single is not None:
                    label = single.replace("''", "'")
                elif double is not None:
                    label = double.replace('""', '"')
                else:
                    label = word.replace("_", " ")
                name = label if name is None else f"{name} {label}"
            continue
        if sign == ":":
            skip = True
            continue
        if sign == "(":
            if name is not None or closed or skip:
                break
            open_nodes.append([])
            continue
        node = closed or (Clade(name) if name is not None else None)
        if node is None:
            raise InputError("The Newick text has a branch without a name; name every leaf by its cell type.")
        open_nodes[-1].append(node)
        name, skip, closed = None, False, None
        if sign == ")" and len(open_nodes) > 1:
            children = tuple(open_nodes.pop())
            closed = Clade(children=children) if len(children) > 1 else children[0]
        elif sign == ";" and len(open_nodes) == 1 and len(open_nodes[0]) == 1:
            return open_nodes[0][0]
        elif sign != ",":
            break
    raise InputError(f"The Newick text cannot be read near character {position}; check brackets and the end ';'.")
