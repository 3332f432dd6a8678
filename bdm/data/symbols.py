"""Names of genes: the names that index the data, and the symbols that users read and write."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from bdm.data.columns import is_text
from bdm.errors import InputError
from bdm.validation import column_rejection

COLUMNS = ("feature_name", "gene_symbols", "gene_name", "symbol")  # of var, in which symbols are expected
# Ensembl, FlyBase, WormBase, TAIR and the like end in many digits, perhaps with a version; Entrez has digits alone
IDENTIFIER = re.compile(r"\d+|.*\d{4,}(\.\d+)?|Y[A-P][LR]\d{3}[CW](-\w)?")
MISSING_SYMBOLS = ("", "nan", "NaN", "None", "NA", "<NA>")


@dataclass(frozen=True)
class GeneNames:
    """Genes by name, with the symbols that figures and tables show and that users may use in place of names."""

    var: pd.DataFrame  # table of the genes, indexed by name
    column: str | None = None  # column of ``var`` with the symbols; None if names are shown

    @property
    def index(self) -> pd.Index:
        """Names of the genes in the data."""
        return self.var.index

    @cached_property
    def symbols(self) -> pd.Series:
        """Symbol of each gene, or its name if it has none."""
        names = self.index.astype(str).to_series()
        if self.column is None:
            return names
        symbols = self.var[self.column].astype(object).map(lambda value: str(value).strip(), na_action="ignore")
        return symbols.mask(symbols.isna() | symbols.isin(MISSING_SYMBOLS), names).astype(str)

    @cached_property
    def labels(self) -> pd.Series:
        """Label of each gene in figures and tables: its symbol, or ``SYMBOL (NAME)`` if genes share the symbol."""
        repeated = self.symbols.duplicated(keep=False) & (self.symbols != self.symbols.index)
        return self.symbols.mask(repeated, self.symbols + " (" + self.symbols.index + ")")

    @property
    def differ(self) -> bool:
        """Whether the label of any gene differs from its name."""
        return bool((self.labels != self.labels.index).any())

    def with_symbols(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the column ``symbol`` to a table, next to its column ``gene``, if labels differ from names."""
        if not self.differ:
            return table
        table = table.copy()
        table.insert(table.columns.get_loc("gene") + 1, "symbol", table["gene"].map(self.labels).to_numpy())
        return table

    def find(self, names: Iterable[str], *, ignore_case: bool = False) -> dict[str, tuple[str, ...]]:
        """Genes for each name, label or symbol that a user gives: none if unknown, several if they share the symbol."""

        def folded(name: str) -> str:
            return name.casefold() if ignore_case else name

        by_text: list[dict[str, list[str]]] = []
        for texts in (self.index, self.labels, self.symbols):
            by_text.append(defaultdict(list))
            for text, gene in zip(texts, self.index, strict=True):
                by_text[-1][folded(text)].append(gene)
        return {name: tuple(next((by[folded(name)] for by in by_text if folded(name) in by), ())) for name in names}

    def example(self) -> str:
        """Name and symbol of the first gene, as an example for messages."""
        name, label = self.index[0], self.labels.iloc[0]
        return name if label == name else f"{name} or {self.symbols.iloc[0]}"


def display_names(table: pd.DataFrame) -> pd.Series:
    """Labels of the genes of a table: its column ``symbol`` if it has one, otherwise ``gene``."""
    return table["symbol" if "symbol" in table else "gene"]


def symbol_column(var: pd.DataFrame, column: str | None = None) -> str | None:
    """Choose the column of ``var`` with the symbols of genes; returns None if genes have names only."""
    if column is None:
        texts = [name for name in COLUMNS if name in var and is_text(var[name])]
        if share_of_identifiers(var.index) <= 0.5:
            return None
        return next((name for name in texts if share_of_identifiers(var[name].dropna()) <= 0.5), None)
    if sentence := column_rejection(column, var, argument="gene_symbols", table="var"):
        raise InputError(sentence)
    if not is_text(var[column]):
        raise InputError(f"var[{column!r}] is not text, as gene symbols are; choose another by `gene_symbols=`.")
    return column


def share_of_identifiers(names: Iterable[object]) -> float:
    """Share of names that look like identifiers in a database."""
    texts = list(map(str, names))
    return sum(IDENTIFIER.fullmatch(text) is not None for text in texts) / max(len(texts), 1)
