"""Settings of an audit."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from bdm.schema import Key, StageSettings, Unset


@dataclass(frozen=True, kw_only=True)
class AuditSettings(StageSettings):
    """How generated cells are audited.

    Attributes
    ----------
    donor_key
        Column of ``obs`` with the donors; ``donor`` where cells were prepared with donors.
    by_cell
        Audit cells, although there are donors.
    cells_only
        Attack the generated cells only, and not the model that generated them.
    cells_per_training_cell
        Generated cells of each type for each of its training cells. Attacks find more in more cells.
    """

    section: ClassVar[str] = "audit"

    n_folds: Annotated[int, Ge(1), "Number of divisions into members, reference and non-members."] = 3
    cells_only: Annotated[
        bool, "Attack the generated cells only, and not the model, too, which takes the fit of a second model."
    ] = False
    cells_per_training_cell: Annotated[
        float, Gt(0), "Number of generated cells for each training cell of a fold: as many as you will share."
    ] = 1.0
    donor_key: Annotated[
        str | None,
        "Column of `obs` with the donor.",
        Unset("the donors of bdm prepare, or else a column `donor`; without any, cells are audited"),
        Key(absent=True),
    ] = None
    by_cell: Annotated[bool, "Audit cells, although there are donors.", Key(absent=True)] = False
