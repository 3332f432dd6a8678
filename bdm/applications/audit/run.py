"""Run audits on models of bdm, or on files from any generator."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.files import atomic_write, provenance
from bdm._core.seeds import derive
from bdm.applications.audit.attacks import COPIES, GENERATED, MIN_CELLS_OF_TYPE, attack, bounds_of_cells
from bdm.applications.audit.audit import Audit
from bdm.applications.audit.folds import MEMBERS, REFERENCE, AuditFolds, Fold, members_by_type, training_cells
from bdm.data.cell_sets import open_cells
from bdm.data.cells import Cells, StoredCells, check_genes, modalities_if_several
from bdm.data.matrix import take_cells
from bdm.data.prepare import preparation
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.hierarchy.tree import Clade, match_leaves, without_leaves
from bdm.model.fit_model import fit
from bdm.model.model import BranchedModel, load_model, save_model
from bdm.settings import AuditSettings, FitSettings, GenerationSettings, InputKeys

logger = logging.getLogger(__name__)
MIN_SHARE_OF_EXPECTED = 0.5  # warn if a file has a smaller share of the expected cells of a type
MAX_SEED = 2**32  # limit of scikit-learn


# Cells from a generator fitted to a fold's members, and any score of each attacked cell by the attack on the generator
Generated = tuple[Cells, np.ndarray | None]
Generate = Callable[[Fold], Generated]


def audit_folds(division: AuditFolds, settings: AuditSettings, generate: Generate, *, seed: int, **facts: Any) -> Audit:
    """Attack the generated cells of each fold; ``facts`` go into the record."""
    folds, units, prepared = division.folds, division.units, division.cells
    cells = Cells.from_anndata(prepared)
    tables, n_generated = [], {}
    for fold in folds:
        logger.info("fold %d of %d", fold.number, len(folds))
        generated = generate(fold)
        n_generated[str(fold.number)] = len(generated[0])
        tables.append(score_fold(fold, cells, *generated, seed=derive(seed, "attacks", fold.number) % MAX_SEED))
        del generated  # before the next fold's cells are in memory
    record = provenance(
        seed=seed,
        unit=units.noun,
        n_units=units.n_units,
        too_few_donors=units.too_few_donors,
        n_cells=len(cells),
        audit=asdict(settings),
        left_out=list(division.left_out),
        n_generated=n_generated,
        n_tested=division.n_tested,
        **preparation(prepared),
        **facts,
    )
    return Audit(pd.concat(tables, ignore_index=True), record)


def score_fold(fold: Fold, cells: Cells, generated: Cells, bounds: np.ndarray | None, *, seed: int) -> pd.DataFrame:
    """Score a fold's attacked cells with each set of generated cells."""
    attacked, reference = fold.attacked, fold.rows(REFERENCE)
    facts = {
        "fold": fold.number,
        "unit": fold.unit[attacked],
        "cell_type": cells.cell_type[attacked],
        "member": (fold.part[attacked] == MEMBERS).astype(int),
    }
    tables = [pd.DataFrame(facts)]
    for name, synthetic in {GENERATED: generated, COPIES: cells[fold.rows(MEMBERS)]}.items():
        scores = attack(cells[attacked], synthetic, cells[reference], fold.unit[reference], seed=seed)
        if name == GENERATED and bounds is not None:
            scores["bound"] = bounds.astype(np.float32)
        tables.append(scores.add_prefix(f"{name}/"))
    return pd.concat(tables, axis=1).sort_values(["cell_type", "unit"], kind="stable")


def fold_reader(paths: Sequence[Path], division: AuditFolds, settings: AuditSettings) -> Generate:
    """Return a function that reads the generated cells of a fold.

    All files are checked before the first attack, and read again later, to hold a single file in memory.
    """
    if len(paths) != settings.n_folds:
        raise InputError(
            f"`cells=` gives {counted(len(paths), 'file')}, and there are {counted(settings.n_folds, 'fold')}; give "
            "a file of cells for each fold, in the order of the folds."
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("`cells=` gives a file for two folds; give a separate file for each fold.")
    prepared = division.cells
    keys = InputKeys(label_key=preparation(prepared)["prepare"].get("label_key"))
    for fold in division.folds:
        path = paths[fold.number - 1]
        n_by_type = read_fold(path, prepared, fold, keys).n_by_type
        warn_of_few_cells(path, n_by_type, expected_cells(prepared, fold, settings), fold)

    return lambda fold: (read_fold(paths[fold.number - 1], prepared, fold, keys), None)


def read_fold(path: Path, prepared: AnnData, fold: Fold, keys: InputKeys) -> Cells:
    """Read a fold's generated cells, and check genes and cell types."""
    adata, slot = open_cells(path, keys, strict=False, by_option=False)
    check_genes(adata.var_names, prepared.var_names, path)
    cells = StoredCells.from_anndata(path, adata, np.arange(adata.n_obs), prepared.var_names, slot)
    members = members_by_type(prepared.obs, fold)
    unknown = sorted(set(cells.n_by_type.index) - set(members))
    if unknown:
        raise InputError(
            f"{path} has cells of type {unknown[0]!r}, which fold {fold.number} lacks; use the same names."
        )
    for name, n_members in members.items():
        number = int(cells.n_by_type.get(name, 0))
        if number < MIN_CELLS_OF_TYPE:
            raise InputError(
                f"{path} has {counted(number, 'cell')} of type {name!r}, of which fold {fold.number} has "
                f"{n_members}; give as many cells of each type as the fold's training cells have."
            )
    return replace(cells.in_memory(), modalities=modalities_if_several(prepared.var))


def expected_cells(prepared: AnnData, fold: Fold, settings: AuditSettings) -> dict[str, int]:
    """Return numbers of cells to generate by type, in proportion to members."""
    share = settings.cells_per_training_cell
    return {name: max(round(share * n), MIN_CELLS_OF_TYPE) for name, n in members_by_type(prepared.obs, fold).items()}


def warn_of_few_cells(path: Path, n_by_type: pd.Series, expected: Mapping[str, int], fold: Fold) -> None:
    """Warn if a file has far fewer cells than expected."""
    few = [
        f"{name} ({n_by_type[name]} of {number})"
        for name, number in expected.items()
        if n_by_type[name] < MIN_SHARE_OF_EXPECTED * number
    ]
    if few:
        logger.warning(
            "%s has fewer than half of the cells that are expected of fold %d: %s; attacks find less in fewer cells, "
            "so give as many of each type, or, if you will share few, say so by `settings.cells_per_training_cell=`.",
            path,
            fold.number,
            abbreviated(few),
        )


@dataclass(frozen=True, kw_only=True)
class AuditedModels:
    """Settings and storage of the models of all folds."""

    fit: FitSettings = field(default_factory=FitSettings)
    sampling: GenerationSettings = field(default_factory=GenerationSettings)
    tree: Clade | None = None
    folder: Path | None = None  # models are read from this folder; missing models are fitted and saved
    device: str = "auto"
    seed: int = 0


def audit_models(division: AuditFolds, settings: AuditSettings, models: AuditedModels) -> Audit:
    """Fit a model to each fold's members; attack it and its cells."""
    prepared, tree_given = division.cells, models.tree is not None
    models = replace(models, tree=prune_tree(division, models.tree))

    def generate(fold: Fold) -> Generated:
        model = load_or_fit(prepared, fold, MEMBERS, models)
        request = request_cells(model, expected_cells(prepared, fold, settings))
        adata = generate_cells(model, request, models.sampling, seed=models.seed)
        bounds = None if settings.cells_only else attack_model(prepared, fold, model, models)
        return Cells.from_anndata(adata), bounds

    facts = {"fit": asdict(models.fit), "sampling": asdict(models.sampling), "tree_given": tree_given}
    return audit_folds(division, settings, generate, seed=models.seed, generator="bdm", **facts)


def prune_tree(division: AuditFolds, tree: Clade | None) -> Clade | None:
    """Prune a tree to the audited cell types; None for one type."""
    if tree is None:
        return None
    audited = sorted(map(str, division.cells.obs["cell_type"].unique()))
    pruned = without_leaves(match_leaves(tree, [*audited, *division.left_out]), division.left_out)
    return pruned if len(audited) > 1 else None


def attack_model(prepared: AnnData, fold: Fold, model: BranchedModel, models: AuditedModels) -> np.ndarray | None:
    """Score attacked cells by differences of evidence lower bounds, in nats, from a model of the reference.

    Returns None if members or the reference lack batches of attacked cells.
    """
    attacked = take_cells(prepared, fold.attacked)
    for part in (MEMBERS, REFERENCE) if "batch" in prepared.obs else ():
        if set(attacked.obs["batch"]) - set(prepared.obs["batch"].iloc[fold.rows(part)]):
            logger.warning("The model is not attacked, only its cells: the %s lack batches of attacked cells.", part)
            return None
    reference = load_or_fit(prepared, fold, REFERENCE, models)
    bounds = [bounds_of_cells(fitted, attacked, seed=models.seed) for fitted in (model, reference)]
    return np.asarray(bounds[0] - bounds[1])


def load_or_fit(prepared: AnnData, fold: Fold, part: str, models: AuditedModels) -> BranchedModel:
    """Read the model of a fold's part, or fit and save it."""
    audited = model_checksum(prepared, fold, part, models)
    path = None if models.folder is None else models.folder / f"fold-{fold.number}" / part
    if path is not None and path.exists():
        model = load_model(path, device=models.device)
        if model.provenance.get("audit") != audited:
            raise InputError(
                f"{path} was fitted to other cells, or with other settings; name another folder of models."
            )
        return model
    cells = training_cells(prepared, fold, part, seed=models.seed)
    model, _ = fit(cells, models.fit, tree=models.tree, seed=models.seed, device=models.device, audit=audited)
    if path is not None:
        with atomic_write(path, folder_of="model.json") as folder:
            save_model(folder, model)
    return model


def model_checksum(prepared: AnnData, fold: Fold, part: str, models: AuditedModels) -> str:
    """Return a short checksum of the cells and settings of a model."""
    facts = [part, models.seed, asdict(models.fit), repr(models.tree)]
    facts += [list(prepared.var_names), prepared.uns["bdm"].get("settings")]
    cells = take_cells(prepared, fold.rows(part))
    columns = [name for name in ("cell_type", "batch", "donor") if name in cells.obs]
    digest = sha256(json.dumps(facts, default=str).encode() + cells.obs[columns].astype(str).to_csv().encode())
    for values in (cells.X.data, cells.X.indices.astype(np.int64), cells.X.indptr.astype(np.int64)):
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
