from collections.abc import Sequence
from pathlib import Path

from bdm.errors import InputError
from bdm.files import read_json
from bdm.hierarchy.newick import from_newick
from bdm.hierarchy.topology import Clade, from_nested

Tree = Clade | Path | str | Sequence  # a shape, a file, Newick text, or nested lists of cell types


def as_clade(tree: Tree) -> Clade:
    """Turn a user's tree, in any form of :data:`Tree`, into its shape.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    if isinstance(tree, Clade):
        return tree
    if isinstance(tree, Path) or (isinstance(tree, str) and not tree.lstrip().startswith("(")):
        return read_tree(tree)
    return from_newick(tree) if isinstance(tree, str) else from_nested(tree)


def read_tree(path: Path | str) -> Clade:
    """Read a tree of cell types: nested lists in ``.json``, or Newick in any other file.

    Of Newick, names in single or double quotes and without quotes are read, where an underscore stands for a space;
    branch lengths, comments and names of inner nodes make no difference.

    Returns
    -------
    Shape of the tree, for the argument ``tree`` of :class:`bdm.BranchedDiffusion`.

    Raises
    ------
    InputError
        If there is no such file or it holds no tree.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            return from_nested(read_json(path))
        return from_newick(path.read_bytes().decode("utf-8-sig"))  # as text, it would lose the line breaks in names
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a tree ({error}); give nested lists in .json, or Newick.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
