"""Gene names and symbols, and gene selection: variable genes, lists and markers."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from skmisc.loess import loess

from bdm._core.errors import InputError, counted
from bdm._core.validation import column_rejection
from bdm.data.columns import is_text
from bdm.data.counts import CellCounts
from bdm.settings import PrepareSettings

logger = logging.getLogger(__name__)

SYMBOL_COLUMNS = ("feature_name", "gene_symbols", "gene_name", "symbol")  # columns of var that may hold symbols
LIKE_SYMBOLS = re.compile(r"gene[ _.](short[ _.])?names?|.*symbols?", re.IGNORECASE)  # names of other such columns
# Entrez; Ensembl, FlyBase, WormBase, TAIR and the like (many digits, perhaps a version); yeast
IDENTIFIER = re.compile(r"\d+|.*\d{4,}(\.\d+)?|Y[A-P][LR]\d{3}[CW](-\w)?")
MISSING_SYMBOLS = ("", "nan", "NaN", "None", "NA", "<NA>")


@dataclass(frozen=True)
class GeneNames:
    """Names and symbols of genes; users may refer to genes by either."""

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
        """Label of each gene in figures: symbol, or ``SYMBOL (NAME)`` if shared."""
        repeated = self.symbols.duplicated(keep=False) & (self.symbols != self.symbols.index)
        return self.symbols.mask(repeated, self.symbols + " (" + self.symbols.index + ")")

    @property
    def differ(self) -> bool:
        """Whether the label of any gene differs from its name."""
        return bool((self.labels != self.labels.index).any())

    def with_symbols(self, table: pd.DataFrame) -> pd.DataFrame:
        """Insert a column ``symbol`` after ``gene``, if any label differs."""
        if not self.differ:
            return table
        table = table.copy()
        table.insert(table.columns.get_loc("gene") + 1, "symbol", table["gene"].map(self.labels).to_numpy())
        return table

    def find(self, names: Iterable[str], *, ignore_case: bool = False) -> dict[str, tuple[str, ...]]:
        """Find genes by name, label or symbol, in this order.

        Returns the genes with each of ``names``: none if it is unknown, several if they share a symbol.
        """

        def folded(name: str) -> str:
            return name.casefold() if ignore_case else name

        lookups: list[dict[str, list[str]]] = []
        for texts in (self.index, self.labels, self.symbols):
            genes_by_text = defaultdict(list)
            for text, gene in zip(texts, self.index, strict=True):
                genes_by_text[folded(text)].append(gene)
            lookups.append(genes_by_text)
        return {
            name: tuple(next((lookup[folded(name)] for lookup in lookups if folded(name) in lookup), ()))
            for name in names
        }

    def example(self) -> str:
        """Return the name and symbol of the first gene, for messages."""
        name, label = self.index[0], self.labels.iloc[0]
        return name if label == name else f"{name} or {self.symbols.iloc[0]}"


def display_names(table: pd.DataFrame) -> pd.Series:
    """Return a table's column ``symbol``, or ``gene`` if it has no symbols."""
    return table["symbol" if "symbol" in table else "gene"]


def symbol_column(var: pd.DataFrame, column: str | None = None) -> str | None:
    """Choose the column of ``var`` with gene symbols, or None.

    Without ``column``, symbols are looked for if most gene names are database identifiers.
    """
    if column is None:
        columns = [*SYMBOL_COLUMNS, *(name for name in var if LIKE_SYMBOLS.fullmatch(str(name)))]
        texts = [name for name in columns if name in var and is_text(var[name])]
        if share_of_identifiers(var.index) <= 0.5:
            return None
        return next((name for name in texts if share_of_identifiers(var[name].dropna()) <= 0.5), None)
    if sentence := column_rejection(column, var, argument="gene_symbols", table="var"):
        raise InputError(sentence)
    if not is_text(var[column]):
        raise InputError(f"var[{column!r}] is not text, as gene symbols are; choose another by `gene_symbols=`.")
    return column


def hint_at_symbols(names: GeneNames) -> None:
    """Log how to show symbols of genes that have identifiers only."""
    if names.column is None and share_of_identifiers(names.index) > 0.5:
        logger.info(
            "Genes are shown as identifiers (%s); to show symbols, add a column `gene_symbols` to var.", names.index[0]
        )


def share_of_identifiers(names: Iterable[object]) -> float:
    """Return the share of names that look like database identifiers."""
    texts = list(map(str, names))
    return sum(IDENTIFIER.fullmatch(text) is not None for text in texts) / max(len(texts), 1)


# ---- selection

GeneList = str | Path | Sequence[str]  # a file with one name per line, or names


def choose_genes(
    train: CellCounts,
    names: GeneNames,
    batch: pd.Series | None,
    settings: PrepareSettings,
    *,
    listed: pd.Index | None,
    kept: pd.Index | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the highly variable genes, and of the other genes to keep, using only training cells.

    Highly variable genes are the most variable of all genes, or the ``listed`` ones (all if None). The others are those
    in ``kept`` (all if None).
    """
    genes, min_cells = names.index, settings.min_cells_per_gene
    batches = pd.Categorical(["all"] * len(train.rows) if batch is None else batch.astype(str))
    sums = BatchSums.from_cells(train, batches, n_genes=len(genes))
    seen = sums.n_seen.sum(axis=0) >= min_cells
    if not seen.all():
        n_dropped = counted(int((~seen).sum()), "gene")
        logger.info("Dropped %s detected in fewer than %d training cells.", n_dropped, min_cells)
    is_listed, is_kept = (np.ones(len(genes), bool) if some is None else genes.isin(some) for some in (listed, kept))
    is_named = genes.isin([name for some in (listed, kept) if some is not None for name in some])
    if len(rare := names.labels[is_named & ~seen]):
        logger.warning("Left out listed genes seen in fewer than %d training cells: %s.", min_cells, ", ".join(rare))
    chosen = seen & is_listed
    if not chosen.any():
        raise InputError(f"no gene is seen in {min_cells} training cells; lower `min_cells_per_gene=`.")
    if settings.genes == "seurat_v3" and settings.n_genes < chosen.sum():
        chosen = most_variable(train, batches, sums, among=chosen, n_genes=settings.n_genes)
    return np.flatnonzero(chosen), np.flatnonzero(seen & is_kept & ~chosen)


def gene_lists(settings: PrepareSettings) -> tuple[pd.Index | None, pd.Index | None]:
    """Read the lists of highly variable genes, and of other genes to keep; None for all."""
    listed = read_gene_list(settings.genes, option="genes=", words={"seurat_v3": None, "all": None})
    kept = read_gene_list(settings.keep_genes, option="keep_genes=", words={"all": None, "none": pd.Index([])})
    return listed, kept


def read_gene_list(genes: GeneList, *, option: str, words: Mapping[str, pd.Index | None]) -> pd.Index | None:
    """Read gene names from a file, or return given names, or what a word stands for."""
    if isinstance(genes, str) and genes in words:
        return words[genes]
    in_words = ", ".join(map(repr, words))
    if not isinstance(genes, str | Path):
        if not genes:
            raise InputError(f"`{option}` lists no genes; list at least one, or give {in_words}.")
        return pd.Index(genes).unique()
    try:
        lines = Path(genes).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`{option}` takes {in_words} or a text file of names; {genes} is none of these.") from error
    names = pd.Index([line.strip() for line in lines if line.strip()]).unique()
    if names.empty:
        raise InputError(f"{genes} names no genes; write one per line.")
    return names


def listed_genes(listed: pd.Index, names: GeneNames) -> pd.Index:
    """Find listed genes in the data by name or symbol."""
    genes_by_name = names.find(listed)
    absent = [name for name, genes in genes_by_name.items() if not genes]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(listed)} listed genes are not in the data, for example "
            f"{', '.join(absent[:3])}; its genes are named like {names.example()}."
        )
    return pd.Index([gene for genes in genes_by_name.values() for gene in genes])


# ---- variable genes

MIN_RANKED = 30  # the local regression fails on fewer cells or genes, and may crash the process


def most_variable(
    cells: CellCounts, batch: pd.Categorical, sums: BatchSums, *, among: np.ndarray, n_genes: int
) -> np.ndarray:
    """Return a mask of the genes that vary more than their mean explains.

    Selects the same genes as ``seurat_v3`` in scanpy (Stuart et al. 2019, Cell 177:1888), with one block of cells in
    memory at a time. Genes are ranked within each batch with at least 30 cells and variable genes, and selected by
    their median rank.
    """
    n = np.maximum(sums.n_cells[:, None], 1)
    varies = sums.squares[:, among] / n > (sums.counts[:, among] / n) ** 2
    large = np.minimum(sums.n_cells, varies.sum(axis=1)) >= MIN_RANKED
    if not large.any():
        raise InputError(
            f"genes cannot be ranked by variability on fewer than {MIN_RANKED} training cells or genes"
            f"{' a batch' if len(large) > 1 else ''}, or where fewer genes vary; give `genes='all'`."
        )
    if not large.all():
        small = ", ".join(batch.categories[~large])
        logger.warning("Batches too small to rank genes in: %s.", small)

    ranked = np.flatnonzero(large)
    n_cells, chosen = sums.n_cells[ranked, None], np.ix_(ranked, among)
    means = sums.counts[chosen] / n_cells
    variances = (sums.squares[chosen] / n_cells - means**2) * (n_cells / (n_cells - 1))
    expected = np.stack([expected_deviation(*moments) for moments in zip(means, variances, strict=True)])
    limits = np.full(sums.counts.shape, np.inf)
    limits[chosen] = expected * np.sqrt(n_cells) + means
    counts, squares = (total[chosen] for total in limited_sums(cells, batch, limits))
    normalised = (n_cells * means**2 + squares - 2 * counts * means) / ((n_cells - 1) * expected**2)

    selected = among.copy()
    selected[among] = first_by_median_rank(normalised, n_genes)
    return selected


def expected_deviation(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Predict standard deviations from means by local regression over genes."""
    varies = variance > 0
    fitted = np.zeros(len(mean))
    model = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=0.3, degree=2)
    try:
        model.fit()
    except ValueError as error:  # for example if many genes have the same mean
        raise InputError(f"genes cannot be ranked by variability ({error}); give `genes='all'`.") from error
    fitted[varies] = model.outputs.fitted_values
    return np.sqrt(10**fitted)


@dataclass(frozen=True)
class BatchSums:
    """Sums over the cells of each batch, exact because all terms are integers."""

    n_cells: np.ndarray  # number of cells, batches
    n_seen: np.ndarray  # number of cells with counts of the gene, batches x genes
    counts: np.ndarray  # sum of counts, batches x genes
    squares: np.ndarray  # sum of squared counts, batches x genes

    @classmethod
    def from_cells(cls, cells: CellCounts, batch: pd.Categorical, *, n_genes: int) -> BatchSums:
        """Compute all sums in one pass over the cells."""
        n_batches = len(batch.categories)
        n_seen, counts, squares = np.zeros((3, n_batches, n_genes))
        for rows, block in cells:
            for total, values in (
                (n_seen, np.ones(block.nnz)),
                (counts, block.data.astype(float)),
                (squares, block.data.astype(float) ** 2),
            ):
                add_by_batch(total, block, values, batch.codes[rows])
        return cls(np.bincount(batch.codes, minlength=n_batches), n_seen, counts, squares)


def limited_sums(cells: CellCounts, batch: pd.Categorical, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum counts clipped to ``limits``, and their squares, all batches x genes."""
    counts, squares = np.zeros((2, *limits.shape))
    for rows, block in cells:
        codes = batch.codes[rows]
        values = np.minimum(block.data, limits[np.repeat(codes, np.diff(block.indptr)), block.indices])
        add_by_batch(counts, block, values, codes)
        add_by_batch(squares, block, values**2, codes)
    return counts, squares


def first_by_median_rank(variability: np.ndarray, n_genes: int) -> np.ndarray:
    """Return a mask of the genes with the best median rank over batches."""
    rank = np.argsort(np.argsort(-variability, axis=1), axis=1).astype(np.float32)
    rank[rank >= n_genes] = np.nan
    median = np.ma.median(np.ma.masked_invalid(rank), axis=0).filled(np.nan)
    table = pd.DataFrame({"rank": median, "n_batches": np.isfinite(rank).sum(axis=0)})
    order = table.sort_values(["rank", "n_batches"], ascending=[True, False], na_position="last").index
    return np.asarray(table.index.isin(order[:n_genes]))


def add_by_batch(total: np.ndarray, block: sparse.csr_matrix, values: np.ndarray, codes: np.ndarray) -> None:
    """Add ``values`` of a block's entries to ``total`` (batches x genes)."""
    n_cells = len(codes)
    members = sparse.csc_matrix((np.ones(n_cells), codes, np.arange(n_cells + 1)), shape=(len(total), n_cells)).tocsr()
    summed = (members @ sparse.csr_matrix((values, block.indices, block.indptr), shape=block.shape)).tocoo()
    total[summed.row, summed.col] += summed.data
