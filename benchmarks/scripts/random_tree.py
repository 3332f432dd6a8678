"""Draw a random binary tree of the cell types."""

from pathlib import Path

import typer

from bdm.data.prepare import read_prepared
from bdm.files import atomic_write, write_json
from bdm.seeds import numpy_generator


def random_tree(cell_types: list[str], *, seed: int) -> list:
    """Join two branches drawn at random until one is left; as nested lists."""
    rng = numpy_generator(seed, "random tree")
    branches = list(cell_types)
    while len(branches) > 1:
        pair = [branches.pop(rng.integers(len(branches))) for _ in range(2)]
        branches.append(pair)
    return branches[0]


def main(prepared: Path, out: Path, *, seed: int = 0) -> None:
    """Write the tree in the form that `bdm hierarchy --tree` reads."""
    cell_types = read_prepared(prepared).obs["cell_type"].cat.categories.tolist()
    with atomic_write(out) as path:
        write_json(path, random_tree(cell_types, seed=seed))


if __name__ == "__main__":
    typer.run(main)
