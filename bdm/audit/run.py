"""Run of an audit: attacks on the generated cells of each fold, beside copies and chance."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.files import preparation, provenance, sha256
from bdm._core.seeds import derive
from bdm.audit.attacks import MIN_CELLS_OF_TYPE, attack
from bdm.audit.folds import MEMBERS, REFERENCE, AuditFolds, Fold, fingerprint, members_by_type
from bdm.audit.results import CHANCE, COPIES, GENERATED, Audit
from bdm.audit.settings import AuditSettings
from bdm.data.matrix import reject_if_unreadable
from bdm.errors import InputError, abbreviated, counted
from bdm.evaluation.cells import Cells, check_genes
from bdm.evaluation.read import open_cells, stored
from bdm.generation.chunks import WHOLE, Part
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)
MIN_SHARE_OF_EXPECTED = 0.5  # cells of a type in a file, as a share of the number that the settings say
MAX_SEED = 2**32  # of scikit-learn


@dataclass(frozen=True)
class Generated:
    """What a generator, fitted to the members of a fold, gives the attacks.

    Attributes
    ----------
    cells
        Of all types of the members, as many as the settings of the audit say.
    white_box
        Scores of the attacks on the model itself, attacked cells x attacks; None where only cells are attacked.
    """

    cells: Cells
    white_box: pd.DataFrame | None = None


Generate = Callable[[Fold], Generated]


def audit_folds(
    division: AuditFolds,
    settings: AuditSettings,
    generate: Generate,
    *,
    seed: int,
    part: Part = WHOLE,
    **facts: Any,
) -> Audit:
    """Attack the generated cells of each fold.

    Parameters
    ----------
    division
        Cells made by ``bdm prepare``, with their folds by the same seed, see :func:`bdm.audit.folds.divide`.
    generate
        Gives the cells that were generated from the members of a fold.
    part
        Which folds to run; each is the same in any part.
    facts
        Further entries of the record.

    Raises
    ------
    InputError
        If the part has no fold.
    """
    folds, units, prepared = division.folds, division.units, division.cells
    chosen = part.select(folds)
    if not chosen:
        raise InputError(f"the audit has {counted(len(folds), 'fold')}, of which {part} has none; name fewer parts.")
    cells = Cells.from_anndata(prepared)
    tables, n_generated = [], {}
    for of in chosen:
        logger.info("fold %d of %d", of.number, len(folds))
        generated = generate(of)
        n_generated[str(of.number)] = len(generated.cells)
        tables.append(scores_of(of, cells, generated, seed=derive(seed, "attacks", of.number) % MAX_SEED))
        del generated  # before the next fold's cells are in memory
    record = provenance(
        seed=seed,
        unit=units.noun,
        n_units=units.n_units,
        n_folds=settings.n_folds,
        n_cells=len(cells),
        audit=asdict(settings),
        left_out=list(division.left_out),
        fingerprints={str(of.number): fingerprint(prepared.obs, of) for of in chosen},
        n_generated=n_generated,
        n_tested_in_all_folds=division.n_tested,
        **preparation(prepared),
        **facts,
    )
    return Audit(pd.concat(tables, ignore_index=True), record)


def scores_of(fold: Fold, cells: Cells, generated: Generated, *, seed: int) -> pd.DataFrame:
    """Score the members and non-members of a fold by all attacks: by generated cells, by copies, and by chance."""
    attacked, reference = np.flatnonzero(fold.part != REFERENCE), fold.rows(REFERENCE)
    halves = [np.flatnonzero(fold.half == half) for half in (0, 1)]
    taken = {
        GENERATED: (generated.cells, reference),
        COPIES: (cells[fold.rows(MEMBERS)], reference),
        CHANCE: (cells[halves[0]], halves[1]),
    }
    table = pd.DataFrame(
        {
            "fold": fold.number,
            "unit": fold.unit[attacked],
            "cell_type": cells.cell_type[attacked],
            "member": (fold.part[attacked] == MEMBERS).astype(int),
        }
    )
    found = [table]
    for name, (synthetic, rows) in taken.items():
        scores = attack(cells[attacked], synthetic, cells[rows], fold.unit[rows], seed=seed)
        if name == GENERATED and generated.white_box is not None:
            scores = scores.join(generated.white_box.astype(np.float32))
        found.append(scores.add_prefix(f"{name}/"))
    return pd.concat(found, axis=1).sort_values(["cell_type", "unit"], kind="stable")


def from_files(paths: Sequence[Path], division: AuditFolds, settings: AuditSettings, *, part: Part = WHOLE) -> Generate:
    """Take the generated cells of each fold from a file, of any generator.

    The files are checked here, before the first attack, and read again for the attacks: the cells of one are in memory
    at a time.

    Parameters
    ----------
    part
        Which folds to run, whose files alone are needed.

    Raises
    ------
    InputError
        If there are not as many files as folds, two have the same content, or a needed file is missing, has no raw
        counts, or lacks genes or cell types.
    """
    if len(paths) != settings.n_folds:
        raise InputError(
            f"`cells=` gives {counted(len(paths), 'file')}, and there are {counted(settings.n_folds, 'fold')}; give "
            "the cells of each fold in a file, in the order of the folds."
        )
    check_different(paths)
    prepared = division.cells
    keys = InputKeys(label_key=preparation(prepared)["prepare"].get("label_key"))
    for of in part.select(division.folds):
        path = paths[of.number - 1]
        n_by_type = read_fold(path, prepared, of, keys).n_by_type
        warn_of_few_cells(path, n_by_type, number_of_cells(prepared, of, settings), of)

    def generate(of: Fold) -> Generated:
        return Generated(read_fold(paths[of.number - 1], prepared, of, keys))

    return generate


def check_different(paths: Sequence[Path]) -> None:
    """Reject a file, or folder, that is given for two folds: under any name, and as a copy."""
    known: dict[str, Path] = {}
    for path in paths:
        with reject_if_unreadable(path):
            content = sha256(path) if path.exists() else str(path.resolve())
        if content in known:
            other = "" if known[content] == path else f", as {known[content]} has the same content"
            raise InputError(
                f"{path} is given for two folds{other}; give the cells of each fold in a file of their own."
            )
        known[content] = path


def read_fold(path: Path, prepared: AnnData, fold: Fold, keys: InputKeys) -> Cells:
    """Read the generated cells of a fold, and check that they have its genes and cell types."""
    adata, place = open_cells(path, keys, strict=False, by_option=False)
    check_genes(adata.var_names, prepared.var_names, path)
    cells = stored(path, adata, np.arange(adata.n_obs), prepared.var_names, place)
    members = members_by_type(prepared.obs, fold)
    unknown = sorted(set(cells.n_by_type.index) - set(members))
    if unknown:
        raise InputError(
            f"{path} has cells of type {unknown[0]!r}, which fold {fold.number} lacks; use the same names."
        )
    for name, of_members in members.items():
        number = int(cells.n_by_type.get(name, 0))
        if number < MIN_CELLS_OF_TYPE:
            raise InputError(
                f"{path} has {counted(number, 'cell')} of type {name!r}, of which fold {fold.number} has "
                f"{of_members}; give as many cells of each type as the fold's training cells have."
            )
    return cells.in_memory()


def number_of_cells(prepared: AnnData, fold: Fold, settings: AuditSettings) -> dict[str, int]:
    """Count the generated cells of each type: per training cell as the settings say, and enough for the attacks."""
    share = settings.cells_per_training_cell
    return {name: max(round(share * n), MIN_CELLS_OF_TYPE) for name, n in members_by_type(prepared.obs, fold).items()}


def warn_of_few_cells(path: Path, n_by_type: pd.Series, expected: Mapping[str, int], fold: Fold) -> None:
    """Warn if a file has far fewer cells of some types than the settings of the audit say."""
    few = [
        f"{name} ({n_by_type[name]} of {number})"
        for name, number in expected.items()
        if n_by_type[name] < MIN_SHARE_OF_EXPECTED * number
    ]
    if few:
        logger.warning(
            "%s has fewer than half of the cells that are expected of fold %d: %s; attacks find less in fewer cells, "
            "so give as many of each type, or, if you will share few, say so by `cells_per_training_cell=`.",
            path,
            fold.number,
            abbreviated(few, n_shown=3),
        )
