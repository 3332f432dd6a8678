"""Modalities of cells: genes, proteins and peaks as blocks of one matrix."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData, io
from scipy import sparse

from bdm._core.errors import InputError, abbreviated, counted, error_prefix, missing_package
from bdm._core.files import require_space
from bdm.data.counts import named_layers, raw_counts, slot_or_auto
from bdm.data.filters import check_names
from bdm.data.matrix import plain_strings

logger = logging.getLogger(__name__)

# Kinds of modalities, in block order
RNA = "rna"
FEATURE_TYPES = {RNA: "Gene Expression", "prot": "Antibody Capture", "atac": "Peaks"}  # names of kinds in 10x files
NOUNS = {RNA: "gene", "prot": "protein", "atac": "peak"}  # for a feature, by kind
ALIASES = {  # other names of kinds in files
    RNA: ("gex", "gene", "genes", "gene expression"),
    "prot": ("adt", "protein", "proteins", "cite", "antibody capture"),
    "atac": ("peak", "peaks", "chromatin"),
}
LIBRARY_SIZE, OTHER_SIZE = "log_library_size", "log_size_other_genes"
HIGHLY_VARIABLE = "highly_variable"  # column of var: genes that latents are from; the other genes are decoded only

# Columns of var, by feature: kind of its modality (10x name), and name of its modality
TYPE_COLUMN, NAME_COLUMN = "feature_types", "modality"
PROTEINS, PROTEIN_NAMES = "protein_expression", "protein_names"  # in obsm and uns, as in scvi-tools
# In uns: form of the user's cells, which generated cells will have, too
FORM = "form"
MUDATA, OBSM, FEATURES = "MuData", f"obsm[{PROTEINS!r}]", f"var[{TYPE_COLUMN!r}]"
MUDATA_FILE = ".h5mu"


@dataclass(frozen=True)
class Modality:
    """A block of features, which are columns of a matrix of counts."""

    name: str  # as in the user's file
    kind: str  # key of FEATURE_TYPES
    features: slice  # its columns
    encoded: bool = True  # whether latents depend on its counts; False for genes that are not highly variable

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self.features.stop - self.features.start)

    @property
    def normalised(self) -> bool:
        """Whether counts scale with a library size; levels of proteins do not."""
        return self.kind != "prot"

    @property
    def size_name(self) -> str:
        """Name of the log library size among the latent coordinates."""
        if self.kind == RNA:
            return LIBRARY_SIZE if self.encoded else OTHER_SIZE
        return f"log_size_{self.name}"

    @property
    def prefix(self) -> str:
        """Prefix of feature names, to distinguish proteins from their genes."""
        return "" if self.kind == RNA else f"{self.name}:"


def modalities_of(var: pd.DataFrame) -> list[Modality]:
    """List the modalities of features in blocks; by default, RNA alone."""
    if TYPE_COLUMN not in var:
        return [Modality(RNA, RNA, slice(0, len(var)))]
    types, kinds = var[TYPE_COLUMN].astype(str).to_numpy(), kinds_in(var)
    if len(kinds) < 2:
        return [Modality(RNA, RNA, slice(0, len(var)))]
    modalities, start = [], 0
    for kind in kinds:
        n_features = int((types == FEATURE_TYPES[kind]).sum())
        name = str(var[NAME_COLUMN].iloc[start]) if NAME_COLUMN in var else kind
        modalities.append(Modality(name, kind, slice(start, start + n_features)))
        start += n_features
    return modalities


def kinds_in(var: pd.DataFrame) -> list[str]:
    """List the kinds of features, in block order."""
    types = set(var[TYPE_COLUMN].astype(str))
    return [kind for kind, name in FEATURE_TYPES.items() if name in types]


def has_modalities(cells: AnnData | pd.DataFrame) -> bool:
    """Return whether cells, or a ``var``, have several modalities."""
    return len(modalities_of(cells.var if isinstance(cells, AnnData) else cells)) > 1


def is_rna(var: pd.DataFrame) -> np.ndarray:
    """Return a mask of the genes; all features if RNA is alone."""
    return (
        (var[TYPE_COLUMN].astype(str) == FEATURE_TYPES[RNA]).to_numpy()
        if has_modalities(var)
        else np.ones(len(var), bool)
    )


def block_sizes(var: pd.DataFrame) -> tuple[int, ...]:
    """Return the number of features of each modality; empty for RNA alone."""
    modalities = modalities_of(var)
    return tuple(modality.n_features for modality in modalities) if len(modalities) > 1 else ()


def blocks_of(var: pd.DataFrame) -> list[Modality]:
    """List the blocks of features that a decoder treats alike: modalities, with RNA in :func:`parts_of_rna`."""
    return [*parts_of_rna(var), *modalities_of(var)[1:]]


def parts_of_rna(var: pd.DataFrame) -> list[Modality]:
    """Return the highly variable genes, which come first, and the other genes if there are any, as modalities."""
    rna = modalities_of(var)[0]
    genes = var.iloc[rna.features]
    n_variable = int(genes[HIGHLY_VARIABLE].sum()) if HIGHLY_VARIABLE in genes else len(genes)
    variable = replace(rna, features=slice(rna.features.start, rna.features.start + n_variable))
    others = replace(rna, features=slice(variable.features.stop, rna.features.stop), encoded=False)
    return [variable, others] if others.n_features else [variable]


def encoded_features(var: pd.DataFrame) -> np.ndarray:
    """Return the indices of the features that latents are from."""
    return np.concatenate([np.arange(len(var))[block.features] for block in blocks_of(var) if block.encoded])


def size_names(var: pd.DataFrame) -> tuple[str, ...]:
    """Return the names of the log library sizes, in the order of :func:`blocks_of`."""
    return tuple(block.size_name for block in blocks_of(var) if block.normalised)


def spread(values: Sequence[np.ndarray], modalities: Sequence[Modality]) -> np.ndarray:
    """Repeat the value of each modality for its features, on the last axis.

    The value of a single modality is returned unchanged, to be broadcast.
    """
    if len(values) == 1:
        return values[0]
    parts = zip(values, [modality.n_features for modality in modalities], strict=True)
    return np.concatenate([np.broadcast_to(value, (*value.shape[:-1], number)) for value, number in parts], axis=-1)


def per_10k(counts: np.ndarray, modalities: Sequence[Modality]) -> np.ndarray:
    """Return factors from counts to counts per 10,000; 1 for proteins."""
    sizes = [counts[:, modality.features].sum(axis=1, keepdims=True) for modality in modalities]
    factors = [
        1e4 / size if modality.normalised else np.ones_like(size)
        for modality, size in zip(modalities, sizes, strict=True)
    ]
    return spread(factors, modalities)


def features_in_words(var: pd.DataFrame) -> str:
    """Format the number of features of each modality."""
    return " + ".join(counted(modality.n_features, NOUNS[modality.kind]) for modality in modalities_of(var))


def of_modality(cells: AnnData, modality: Modality) -> AnnData:
    """Select one modality of cells, with the user's feature names."""
    part = cells[:, modality.features]
    var = part.var.drop(columns=[TYPE_COLUMN, NAME_COLUMN], errors="ignore")
    var.index = var.index.str.removeprefix(modality.prefix)
    varm = {name: pd.DataFrame(table).set_axis(var.index) for name, table in part.varm.items()}
    return AnnData(part.X, obs=part.obs, var=var, varm=varm, layers=named_layers(part))


# ---- reading: all forms become one matrix

Parts = Mapping[str, tuple[str, AnnData]]  # kind and cells of each modality, by name
MAX_DENSITY_OF_PEAKS = 0.8  # share of entries above 0; 0.1 is usual, selected peaks may have more


def in_blocks(cells: AnnData, *, counts: str = "auto") -> AnnData:
    """Join the modalities of an AnnData in blocks; return others unchanged."""
    if PROTEINS in cells.obsm:
        obsm = {key: values for key, values in cells.obsm.items() if key != PROTEINS}
        return join_modalities(*with_raw_counts(parts_of_obsm(cells), counts), obs=cells.obs, obsm=obsm, form=OBSM)
    if TYPE_COLUMN not in cells.var or is_in_blocks(cells.var):
        return cells
    kinds = kinds_in(cells.var)
    if len(kinds) < 2 or RNA not in kinds:
        return cells
    if others := sorted(set(cells.var[TYPE_COLUMN].astype(str)) - {*FEATURE_TYPES.values()}):
        logger.warning("Left out features of other types: %s.", ", ".join(others))
    slot = slot_or_auto(cells, counts)
    whole = raw_counts(cells, source=slot)
    parts = {kind: (kind, whole[:, (whole.var[TYPE_COLUMN] == FEATURE_TYPES[kind]).to_numpy()]) for kind in kinds}
    return join_modalities(parts, None if slot == "auto" else slot, obs=cells.obs, obsm=cells.obsm, form=FEATURES)


def is_in_blocks(var: pd.DataFrame) -> bool:
    """Return whether :func:`join_modalities` made these features.

    It gives features other than genes a prefix. A column ``modality`` alone may be the user's.
    """
    if NAME_COLUMN not in var:
        return False
    others = var[(var[TYPE_COLUMN].astype(str) != FEATURE_TYPES[RNA]).to_numpy()]
    return all(
        name.startswith(f"{modality}:") for name, modality in zip(others.index, others[NAME_COLUMN], strict=True)
    )


def parts_of_obsm(cells: AnnData) -> Parts:
    """Return genes from ``X`` and proteins from ``obsm``, as in scvi-tools."""
    values = cells.obsm[PROTEINS]
    names = values.columns if isinstance(values, pd.DataFrame) else cells.uns.get(PROTEIN_NAMES)
    if names is None or len(names) != values.shape[1]:
        names = [f"protein_{number}" for number in range(1, values.shape[1] + 1)]
    matrix = values.to_numpy() if isinstance(values, pd.DataFrame) else values
    var = pd.DataFrame(index=pd.Index(names, dtype=str))
    genes = AnnData(cells.X, obs=cells.obs, var=cells.var, layers=named_layers(cells), raw=cells.raw)
    return {RNA: (RNA, genes), "prot": ("prot", AnnData(sparse.csr_matrix(matrix), obs=cells.obs[[]], var=var))}


def from_mudata(
    modalities: Mapping[str, AnnData],
    obs: pd.DataFrame,
    *,
    obsm: Mapping[str, Any] = MappingProxyType({}),
    modality: Sequence[str] = (),
    intersect: bool = False,
    counts: str = "auto",
) -> AnnData:
    """Join the modalities of a MuData in blocks; ``modality`` names them as ``NAME=KIND``, by default all known names.

    Columns of ``obs`` and keys of ``obsm`` that RNA lacks are added. It is an error if cells differ, unless
    ``intersect``.
    """
    kind_of = kinds_by_name(modalities, modality)
    for name in kind_of:
        with error_prefix(f"modality {name}"):
            check_names(modalities[name].obs_names, kind="cell")
    shared = shared_cells({name: modalities[name].obs_names for name in kind_of}, intersect=intersect)
    parts = {name: (kind, modalities[name][shared]) for name, kind in kind_of.items()}
    rna = next(part for kind, part in parts.values() if kind == RNA)
    rna_obs, rows = rna.obs, obs.index.get_indexer(rna.obs_names)
    own = {key: np.asarray(values)[rows] for key, values in obsm.items() if np.ndim(values) == 2}  # 1: masks
    copied = {f"{name}:{column}" for name in modalities for column in rna_obs}  # by mudata, from modalities
    added = [column for column in obs if column not in rna_obs and str(column) not in copied]
    rna_obs = rna_obs.join(obs[added].reindex(rna_obs.index))
    return join_modalities(*with_raw_counts(parts, counts), obs=rna_obs, obsm=own | dict(rna.obsm), form=MUDATA)


def kinds_by_name(names: Mapping[str, Any], modality: Sequence[str]) -> dict[str, str]:
    """Return the kind of each modality to use, by name, in block order."""
    kinds = {alias: kind for kind, aliases in ALIASES.items() for alias in (kind, *aliases)}
    kind_of = {name: kinds[name.lower()] for name in names if name.lower() in kinds}
    if modality:
        kind_of = dict(parse_modality(text, names) for text in modality)
    elif left := sorted(set(names) - set(kind_of)):
        logger.warning(
            "Left out modality %s; to use one, name its kind, as in `settings.prepare.modality='NAME=prot'`.",
            ", ".join(left),
        )
    order = list(FEATURE_TYPES)
    kind_of = dict(sorted(kind_of.items(), key=lambda item: order.index(item[1])))
    if RNA not in kind_of.values():
        raise InputError(
            f"there is no RNA among the modalities ({', '.join(names)}); name it, as in `modality='NAME=rna'`."
        )
    for kind in order:
        if len(same := [name for name in kind_of if kind_of[name] == kind]) > 1:
            raise InputError(f"{' and '.join(same)} are both {kind}; choose one by `modality={same[0]}={kind}`.")
    return kind_of


def parse_modality(text: str, names: Mapping[str, Any]) -> tuple[str, str]:
    """Parse ``NAME=KIND``."""
    name, _, kind = text.partition("=")
    if kind not in FEATURE_TYPES:
        raise InputError(f"`modality={text}` is not NAME=KIND; kinds are {', '.join(FEATURE_TYPES)}.")
    if name not in names:
        raise InputError(f"there is no modality {name!r}; the file has {', '.join(names)}.")
    return name, kind


def shared_cells(names: Mapping[str, pd.Index], *, intersect: bool) -> pd.Index:
    """Return the shared cells; others are an error unless ``intersect``."""
    shared, *others = names.values()
    for cells in others:
        shared = shared[shared.isin(cells)]
    if all(len(cells) == len(shared) for cells in names.values()):
        return shared
    numbers = ", ".join(f"{name} {len(cells)}" for name, cells in names.items())
    if not len(shared):
        raise InputError(f"the modalities share no cells (cells: {numbers}); are their names of one form?")
    if not intersect:
        raise InputError(
            f"the modalities have different cells ({numbers}); to use the {len(shared)} that they share, give "
            "`intersect=True`."
        )
    logger.warning("Used the %s that all modalities have (cells: %s).", counted(len(shared), "cell"), numbers)
    return shared


def with_raw_counts(parts: Parts, counts: str) -> tuple[Parts, str | None]:
    """Find the raw counts of each modality, if possible in slot ``counts``.

    Returns the modalities with their raw counts, and ``counts`` if any has this slot.
    """
    checked, layer = {}, None
    for name, (kind, cells) in parts.items():
        with error_prefix(f"modality {name}"):
            slot = slot_or_auto(cells, counts)
            checked[name] = kind, raw_counts(cells, source=slot)
        layer = layer if slot == "auto" else slot
    return checked, layer


def join_modalities(
    parts: Parts, layer: str | None, *, obs: pd.DataFrame, obsm: Mapping[str, Any], form: str
) -> AnnData:
    """Join the raw counts of modalities in blocks.

    ``layer`` is the slot of the raw counts in the user's cells, if they have one. The result has a layer of this name,
    so that :func:`bdm.data.counts.find_counts` works with the same argument.
    """
    matrices, tables = [], []
    for name, (kind, cells) in parts.items():
        if kind == "atac":
            with error_prefix(f"modality {name}"):
                reject_dense(cells)
        if kind == "prot":
            reject_empty(cells)
        var = cells.var.drop(columns=[TYPE_COLUMN, NAME_COLUMN], errors="ignore").assign(
            **{TYPE_COLUMN: FEATURE_TYPES[kind], NAME_COLUMN: name}
        )
        var.index = Modality(name, kind, slice(0)).prefix + var.index.astype(str)
        matrices.append(cells.X)
        tables.append(var)
    var = pd.concat(tables)
    var = var.assign(
        **{name: pd.Categorical(var[name], categories=var[name].unique()) for name in (TYPE_COLUMN, NAME_COLUMN)}
    )
    for column in var.columns[var.isna().any()]:  # columns of only some modalities
        if var[column].dtype == object or isinstance(var[column].dtype, pd.CategoricalDtype | pd.StringDtype):
            var[column] = var[column].astype(object).fillna("").astype(str)
    joined = sparse.hstack(matrices, format="csr")
    layers = {} if layer is None else {layer: joined}
    return AnnData(joined, obs=obs.copy(), var=var, uns={FORM: form}, obsm=dict(obsm), layers=layers)


def reject_empty(proteins: AnnData) -> None:
    """Reject proteins without counts."""
    empty = proteins.var_names[np.asarray(proteins.X.sum(axis=0)).ravel() == 0]
    if len(empty):
        raise InputError(
            f"{counted(len(empty), 'protein')} without counts, {abbreviated(list(empty), n_shown=3)}; "
            "leave such proteins out."
        )


def reject_dense(peaks: AnnData) -> None:
    """Reject peaks that are not sparse."""
    density = peaks.X.nnz / np.prod(peaks.shape)
    if density > MAX_DENSITY_OF_PEAKS:
        raise InputError(
            f"{density:.0%} of the counts are above 0, but peaks of single cells are sparse; give fragments, or "
            "name another kind by `modality='NAME=KIND'`."
        )


# ---- writing: the form of the user's cells


def parts_of(cells: AnnData) -> dict[str, AnnData]:
    """Split cells in blocks by modality; only RNA has their ``obsm``."""
    modalities = modalities_of(cells.var)
    parts = {modality.name: of_modality(cells, modality) for modality in modalities}
    rna = parts[modalities[0].name]
    rna.obsm.update(cells.obsm)
    return parts


def to_form(cells: AnnData, form: str | None) -> Any:
    """Convert cells in blocks to the form of the user's cells."""
    if form == MUDATA:
        return to_mudata(cells)
    if form == OBSM:
        genes, proteins = parts_of(cells).values()
        genes.obsm[PROTEINS] = pd.DataFrame(proteins.X.toarray(), index=cells.obs_names, columns=proteins.var_names)
        genes.uns.update(cells.uns)
        if proteins.var_names.str.contains("/").any():  # files do not allow slashes in column names
            genes.obsm[PROTEINS] = genes.obsm[PROTEINS].to_numpy()
            genes.uns[PROTEIN_NAMES] = proteins.var_names.to_numpy(dtype=object)
        return genes
    return cells


def check_form(out: Path, form: str | None) -> None:
    """Reject an ``.h5mu`` output file for cells of another form."""
    if out.suffix.lower() == MUDATA_FILE and form != MUDATA:
        fitted = "RNA alone" if form is None else f"an AnnData with {form}"
        raise InputError(f"{out}: the model was fitted to {fitted}, not to a MuData; write an .h5ad file.")


def require_package_of(form: str | None) -> None:
    """Check, before cells are computed, that a required mudata is installed."""
    if form == MUDATA:
        try:
            import mudata  # noqa: F401, whether it is there
        except ImportError as error:
            raise missing_package("a MuData", "mudata", extra="multi") from error


def to_mudata(cells: AnnData) -> Any:
    """Convert cells in blocks to a MuData."""
    import mudata

    # All modalities have the same columns of obs; mudata 0.4 copies none of them by default
    without_copies = mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
    with without_copies:
        made = mudata.MuData(parts_of(cells))
    made.obs = cells.obs.copy()
    made.uns.update(cells.uns)
    return made


def read_h5mu(path: Path) -> tuple[dict[str, AnnData], pd.DataFrame, dict[str, Any], dict[str, Any]]:
    """Read a MuData file: modalities by name, ``obs``, ``obsm`` and ``uns``."""
    with h5py.File(path) as file:
        names = list(file["mod"].attrs.get("mod-order", file["mod"]))
        parts = {name: io.read_elem(file["mod"][name]) for name in names}
        obsm, uns = (io.read_elem(file[name]) if name in file else {} for name in ("obsm", "uns"))
        return parts, io.read_elem(file["obs"]), obsm, uns


def write_h5mu(path: Path, cells: AnnData) -> None:
    """Write cells in blocks to a MuData file, without the package mudata."""
    parts, n_cells = parts_of(cells), cells.n_obs
    require_space(path, cells.__sizeof__())
    masks = {
        modality.name: np.isin(np.arange(cells.n_vars), np.arange(cells.n_vars)[modality.features])
        for modality in modalities_of(cells.var)
    }
    elements = {
        "obs": cells.obs,
        "var": pd.DataFrame(index=pd.Index(np.concatenate([part.var_names for part in parts.values()]))),
        "obsm": dict.fromkeys(parts, np.ones(n_cells, dtype=bool)),
        "varm": masks,
        "obsp": {},
        "varp": {},
        "uns": dict(cells.uns),
        "obsmap": dict.fromkeys(parts, np.arange(1, n_cells + 1, dtype=np.uint32)),
        "varmap": {name: np.where(mask, mask.cumsum(), 0).astype(np.uint32) for name, mask in masks.items()},
    }
    encoding = {"encoding-type": "MuData", "encoding-version": "0.1.0", "encoder": "mudata", "encoder-version": "0.3.0"}
    with h5py.File(path, "w", userblock_size=512) as file, plain_strings():
        for name, element in elements.items():
            io.write_elem(file, name, element)
        modalities = file.create_group("mod")
        for name, part in parts.items():
            io.write_elem(modalities, name, part, dataset_kwargs={"compression": "gzip"})
        modalities.attrs["mod-order"] = list(parts)
        file.attrs.update(encoding | {"axis": 0})
    with path.open("r+b") as opened:
        opened.write(b"MuData (format-version=0.1.0;creator=bdm)")
