"""Models of bdm in an audit: fitted to the members of each fold, and attacked by their cells and by themselves."""

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.files import atomic_write
from bdm._core.training import fabric
from bdm.audit.folds import MEMBERS, REFERENCE, AuditFolds, Fold, fingerprint, training_cells
from bdm.audit.results import Audit
from bdm.audit.run import Generated, audit_folds, number_of_cells
from bdm.audit.settings import AuditSettings
from bdm.data.matrix import take_cells
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.generation.chunks import WHOLE, Part
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.hierarchy.ontology import Taxonomy
from bdm.hierarchy.tree import Clade, match_leaves, without_leaves
from bdm.model.card import save_with_card
from bdm.model.fit import fit
from bdm.model.likelihood import bounds_of_cells, denoising_gains, has_batches_of
from bdm.model.model import BranchedModel, load_model
from bdm.settings import FitSettings, GenerationSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AuditedModels:
    """How the models of all folds are made, and where they are kept.

    Attributes
    ----------
    tree
        As in :func:`bdm.model.fit.fit`.
    folder
        Folder of the models, which are read from it, or else fitted and written there; None to keep none.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    sampling: GenerationSettings = field(default_factory=GenerationSettings)
    tree: Clade | Taxonomy | None = None
    folder: Path | None = None
    device: str = "auto"
    seed: int = 0


def audit_models(division: AuditFolds, settings: AuditSettings, models: AuditedModels, *, part: Part = WHOLE) -> Audit:
    """Audit models that are fitted to the members of each fold, with one setting and seed for all.

    Parameters
    ----------
    division
        Cells made by ``bdm prepare``, with their folds by the seed of the models, see :func:`bdm.audit.folds.divide`.
    part
        Which folds to run; each is the same in any part.

    Raises
    ------
    InputError
        If the part has no fold, a model in the folder is of other cells or settings, the tree has other cell types
        than the cells.
    """
    prepared, given = division.cells, models.tree is not None
    models = replace(models, tree=tree_of(division, models.tree))

    def generate(of: Fold) -> Generated:
        model = model_of(prepared, of, MEMBERS, models)
        request = request_cells(model, number_of_cells(prepared, of, settings))
        shared = models.sampling.shared_ancestors
        adata = generate_cells(model, request, models.sampling, seed=models.seed, shared_ancestors=shared)
        white_box = None if settings.cells_only else attack_models(prepared, of, model, models)
        return Generated(Cells.from_anndata(adata), white_box)

    facts: dict[str, Any] = {"generator": "bdm", "fit": asdict(models.fit), "sampling": asdict(models.sampling)}
    facts["tree_given"] = given
    return audit_folds(division, settings, generate, seed=models.seed, part=part, **facts)


def tree_of(division: AuditFolds, tree: Clade | Taxonomy | None) -> Clade | Taxonomy | None:
    """Give the tree of the audited cell types, without those that are too rare; None if one type is left."""
    if not isinstance(tree, Clade):
        return tree
    audited = sorted(map(str, division.cells.obs["cell_type"].unique()))
    left = without_leaves(match_leaves(tree, [*audited, *division.left_out]), division.left_out)
    return left if len(audited) > 1 else None


def attack_models(prepared: AnnData, fold: Fold, model: BranchedModel, models: AuditedModels) -> pd.DataFrame | None:
    """Compare how well the model, and the reference, explain each attacked cell.

    Returns
    -------
    Table of attacked cells: the gain of the model's denoiser over one of the reference cells (``denoiser_loss``), where
    the model has their batches, and the difference of evidence lower bounds to a model that is fitted to the reference
    (``bound``), in nats; None where one of the models lacks batches of attacked cells.
    """
    attacked = take_cells(prepared, np.flatnonzero(fold.part != REFERENCE))
    others = take_cells(prepared, fold.rows(REFERENCE))
    if not has_batches_of(model, attacked):
        logger.warning("The model is not attacked, only its cells: non-members are of batches that it lacks.")
        return None
    reference = model_of(prepared, fold, REFERENCE, models)
    if not has_batches_of(reference, attacked):
        logger.warning("The model is not attacked, only its cells: the reference lacks batches of attacked cells.")
        return None
    scores = {}
    if has_batches_of(model, others):
        scores["denoiser_loss"] = denoising_gains(model, attacked, others, seed=models.seed)
    else:
        logger.warning("The denoiser is not attacked: the reference has batches that the model lacks.")
    bounds = [bounds_of_cells(of, attacked, seed=models.seed) for of in (model, reference)]
    return pd.DataFrame(scores | {"bound": bounds[0] - bounds[1]})


def model_of(prepared: AnnData, fold: Fold, part: str, models: AuditedModels) -> BranchedModel:
    """Read the model of a part of a fold, or fit it, and keep it if there is a folder.

    Raises
    ------
    InputError
        If the folder has a model of other cells or settings.
    """
    audited = identity(prepared, fold, part, models)
    path = None if models.folder is None else models.folder / f"fold-{fold.number}" / part
    if path is not None and path.exists():
        found = load_model(path, device=fabric(models.device).device)
        if found.provenance.get("audit") != audited:
            raise InputError(
                f"{path} was fitted to other cells, or with other settings; name another folder of models."
            )
        return found
    cells = training_cells(prepared, fold, part, seed=models.seed)
    model = fit(cells, models.fit, tree=models.tree, seed=models.seed, device=models.device, audit=audited).model
    if path is not None:
        with atomic_write(path, folder_of="model.json") as folder:
            save_with_card(folder, model)
    return model


def identity(prepared: AnnData, fold: Fold, part: str, models: AuditedModels) -> str:
    """Short checksum of what a model of a fold is fitted to, and how."""
    tree = models.tree
    shape = {name: sorted(group) for name, group in tree.groups.items()} if isinstance(tree, Taxonomy) else repr(tree)
    facts = [fingerprint(prepared.obs, fold), part, models.seed, asdict(models.fit), shape]
    facts += [list(prepared.var_names), prepared.uns["bdm"].get("settings")]
    digest = sha256(json.dumps(facts, default=str).encode())
    digest.update(checksum_of_cells(take_cells(prepared, fold.rows(part))).encode())
    return digest.hexdigest()[:16]


def checksum_of_cells(cells: AnnData) -> str:
    """Checksum of the counts of prepared cells, and of the columns that a model is fitted to."""
    columns = [name for name in ("cell_type", "batch", "donor") if name in cells.obs]
    digest = sha256(cells.obs[columns].astype(str).to_csv().encode())
    for values in (cells.X.data, cells.X.indices.astype(np.int64), cells.X.indptr.astype(np.int64)):
        digest.update(values.tobytes())
    return digest.hexdigest()
