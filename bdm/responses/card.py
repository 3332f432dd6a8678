"""Section of a model card on responses to conditions: what was measured, the expected error, and where it is large."""

from collections.abc import Iterator, Sequence
from typing import Any

from bdm.errors import InputError, abbreviated, counted
from bdm.model.card import markdown
from bdm.responses.results import Responses

N_SHOWN = 10  # conditions


def responses_section(responses: Responses, cell_types: Sequence[str]) -> dict[str, Any]:
    """Give the card of a model of some cell types what it shows of responses."""
    if set(responses.cell_types).isdisjoint(cell_types):
        raise InputError(
            f"The responses are of other cell types ({abbreviated(responses.cell_types, n_shown=3)}) than the model "
            f"({abbreviated(list(cell_types), n_shown=3)}); give responses of the same data."
        )
    conditions, donor_key = responses.conditions, responses.provenance["settings"]["donor_key"]
    worst = responses.errors.loc[responses.errors["predicted"].idxmax()]
    of_worst = f"{markdown(worst['cell_type'])} in {markdown(worst['condition'])}"
    return {
        "conditions": markdown(abbreviated(conditions, n_shown=N_SHOWN)),
        "control": markdown(responses.control),
        "n_cells": int(responses.n_cells.to_numpy().sum()),
        "replicates": "cells" if donor_key is None else f"donors, in the column {markdown(donor_key)}",
        "rows": list(error_rows(responses)),
        "others": counted(max(len(conditions) - N_SHOWN, 0), "other condition"),
        "has_others": len(conditions) > N_SHOWN,
        "worst": f"{worst['predicted']:.0%}, is that of {of_worst}",
        "warnings": [markdown(text) for condition in conditions for text in responses.warnings(condition)],
    }


def error_rows(responses: Responses) -> Iterator[tuple[str, ...]]:
    """Yield conditions, in how many types each was measured, and the expected error beside those of simpler ones."""
    for name in responses.conditions[:N_SHOWN]:
        error = responses.expected_error(name)
        shown = (f"{error[of]:.0%}" for of in ("predicted", "common", "nearest", "sampling"))
        yield markdown(name), f"{responses.n_measured(name)} of {len(responses.cell_types)}", *shown
