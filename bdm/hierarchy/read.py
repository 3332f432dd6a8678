from pathlib import Path

from bdm.errors import InputError
from bdm.files import read_json
from bdm.hierarchy.newick import from_newick
from bdm.hierarchy.topology import Clade, from_nested


def read_tree(path: Path) -> Clade:
    """Read a user's tree: nested lists of cell types in ``.json``, or Newick in any other file.

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
