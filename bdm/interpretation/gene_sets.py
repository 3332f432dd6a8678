from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from bdm.data.symbols import GeneNames
from bdm.errors import InputError

GeneSets = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class GivenGenes:
    """Genes that a user names, those alone that the model has; each by the name of a cell type or a set.

    Attributes
    ----------
    markers
        Marker genes, by cell type; the types need not be the model's.
    """

    markers: GeneSets = field(default_factory=dict)
    sets: GeneSets = field(default_factory=dict)


def read_given(markers: Path | None, gene_sets: Path | None, names: GeneNames) -> GivenGenes:
    """Read a list of markers and a file of gene sets, if there are any, with genes by name or symbol.

    Raises
    ------
    InputError
        If a file cannot be read, is of another form, or names none of the model's genes.
    """
    return GivenGenes(
        {} if markers is None else of_model(read_markers(markers), names, markers),
        {} if gene_sets is None else of_model(read_gmt(gene_sets), names, gene_sets),
    )


def read_markers(path: Path) -> GeneSets:
    """Read a CSV table with the columns ``type`` and ``gene``."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}.") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as a CSV table ({error}).") from error
    if not {"type", "gene"} <= set(table):
        raise InputError(f"{path} is no list of markers: it needs the columns type and gene, one gene a row.")
    return joined(table[["type", "gene"]].itertuples(index=False))


def read_gmt(path: Path) -> GeneSets:
    """Read gene sets, one a line: name, description and genes between tabs."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as text ({error}).") from error
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, row in rows:
        if len(row) < 3:
            raise InputError(f"{path}, line {number}: a gene set needs a name, a description and genes between tabs.")
    return joined((row[0], gene) for _, row in rows for gene in row[2:])


def joined(pairs: Iterable[tuple[str, str]]) -> GeneSets:
    """Genes by set, each once, in their order."""
    found: dict[str, dict[str, None]] = {}
    for name, gene in pairs:
        if gene.strip():
            found.setdefault(name.strip(), {})[gene.strip()] = None
    return {name: tuple(genes) for name, genes in found.items()}


def of_model(sets: GeneSets, names: GeneNames, path: Path) -> GeneSets:
    """Keep the genes that the model has, by the names of the data, and the sets that have any."""
    found = names.find({gene for members in sets.values() for gene in members})
    kept = {
        name: tuple(dict.fromkeys(gene for member in members for gene in found[member]))
        for name, members in sets.items()
    }
    kept = {name: members for name, members in kept.items() if members}
    if not kept:
        raise InputError(
            f"{path} names none of the model's {len(names.index)} genes, such as {names.example()}; name genes as the "
            "data do."
        )
    return kept
