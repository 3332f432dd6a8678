"""Names of genes: those that index the data, and the symbols that people know genes by."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from bdm.data.columns import is_text
from bdm.errors import InputError

COLUMNS = ("feature_name", "gene_symbols", "gene_name", "symbol")  # of var, in which symbols are looked for
# Ensembl, FlyBase, WormBase, TAIR and the like end in many digits, perhaps with a version; Entrez has digits alone
IDENTIFIER = re.compile(r"\d+|.*\d{4,}(\.\d+)?|Y[A-P][LR]\d{3}[CW](-\w)?")
MISSING = ("", "nan", "NaN", "None", "NA", "<NA>")


@dataclass(frozen=True)
class GeneNames:
    """Genes by name, with the symbols that figures and tables show, and by which users may name genes too.

    Attributes
    ----------
    var
        Table of the genes, with their names as index.
    column
        Column of ``var`` with the symbols; None where the names are shown.
    """

    var: pd.DataFrame
    column: str | None = None

    @property
    def index(self) -> pd.Index:
        """Names of the genes, as the data have them."""
        return self.var.index

    @cached_property
    def symbols(self) -> pd.Series:
        """Symbol of each gene, or its name where it has none."""
        names = self.index.astype(str).to_series()
        if self.column is None:
            return names
        found = self.var[self.column].astype(object).map(lambda value: str(value).strip(), na_action="ignore")
        return found.mask(found.isna() | found.isin(MISSING), names).astype(str)

    @cached_property
    def labels(self) -> pd.Series:
        """What each gene is shown as: its symbol, as ``SYMBOL (NAME)`` where several genes have it."""
        repeated = self.symbols.duplicated(keep=False) & (self.symbols != self.symbols.index)
        return self.symbols.mask(repeated, self.symbols + " (" + self.symbols.index + ")")

    @property
    def differ(self) -> bool:
        """Whether any gene is shown as something else than its name."""
        return bool((self.labels != self.labels.index).any())

    def with_symbols(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the column ``symbol`` to a table, beside its column ``gene``, if these differ."""
        if not self.differ:
            return table
        table = table.copy()
        table.insert(table.columns.get_loc("gene") + 1, "symbol", table["gene"].map(self.labels).to_numpy())
        return table

    def find(self, names: Iterable[str], *, ignore_case: bool = False) -> dict[str, tuple[str, ...]]:
        """Find the genes that a user means by names or symbols; none where there are none, several of one symbol."""

        def folded(name: str) -> str:
            return name.casefold() if ignore_case else name

        known: list[dict[str, list[str]]] = []
        for texts in (self.index, self.labels, self.symbols):
            known.append(defaultdict(list))
            for text, gene in zip(texts, self.index, strict=True):
                known[-1][folded(text)].append(gene)
        return {name: tuple(next((by[folded(name)] for by in known if folded(name) in by), ())) for name in names}

    def example(self) -> str:
        """Give the first gene as an example of how genes may be named."""
        name, label = self.index[0], self.labels.iloc[0]
        return name if label == name else f"{name} or {self.symbols.iloc[0]}"


def display_names(table: pd.DataFrame) -> pd.Series:
    """Return what the genes of a table are shown as: its column ``symbol`` where it has one, else ``gene``."""
    return table["symbol" if "symbol" in table else "gene"]


def symbol_column(var: pd.DataFrame, column: str | None = None) -> str | None:
    """Choose the column of ``var`` with the symbols of genes.

    Parameters
    ----------
    column
        The one that a user names. Otherwise it is the first of ``COLUMNS`` that ``var`` has, if the names of genes look
        like identifiers, and the column does not.

    Returns
    -------
    None if the names are all that there is.

    Raises
    ------
    InputError
        If there is no such column, or it holds numbers.
    """
    if column is None:
        texts = [name for name in COLUMNS if name in var and is_text(var[name])]
        if share_of_identifiers(var.index) <= 0.5:
            return None
        return next((name for name in texts if share_of_identifiers(var[name].dropna()) <= 0.5), None)
    if column not in var:
        available = ", ".join(map(str, var)) or "none"
        raise InputError(f"var has no column {column!r}; choose another by `gene_symbols=` (there are: {available}).")
    if not is_text(var[column]):
        raise InputError(f"var[{column!r}] holds no text, but gene symbols are; choose another by `gene_symbols=`.")
    return column


def share_of_identifiers(names: Iterable[object]) -> float:
    """Share of names that look like identifiers in a database."""
    names = list(map(str, names))
    return sum(IDENTIFIER.fullmatch(name) is not None for name in names) / max(len(names), 1)
