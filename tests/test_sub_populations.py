import re
import threading
import time
import warnings
from itertools import cycle

import numpy as np
import pytest
import torch

from bdm._core.errors import InputError
from bdm._core.parallel import using_threads
from bdm._core.store import concat
from bdm.autoencoder.sub_populations import (
    SubPopulations,
    classify,
    find_parts,
    prefixes_of,
    prior_means,
    warn_of_fewer,
)
from bdm.settings import AutoencoderSettings

N_LATENT = 10
DEFAULT = AutoencoderSettings()


def latents(n_cells: dict[str, list[int]], *, apart: float = 6.0, scale: float = 0.4, seed: int = 0):
    """Posteriors of cells of types of several normal parts; also the part of each cell."""
    generator = np.random.default_rng(seed)
    mean, cell_type, part = [], [], []
    for code, sizes in enumerate(n_cells.values()):
        centre = generator.normal(size=N_LATENT)
        for number, size in enumerate(sizes):
            offset = np.zeros(N_LATENT)
            offset[number] = apart
            latent = centre + offset + generator.normal(size=(size, N_LATENT)) * np.sqrt(1 - scale**2)
            mean.append(latent)
            cell_type += [code] * size
            part += [number] * size
    means = torch.from_numpy(np.concatenate(mean)).float()
    return means, torch.full_like(means, scale), torch.tensor(cell_type), tuple(n_cells), np.array(part)


def sub_populations_of(mean, scale, cell_type, names, settings=DEFAULT, *, seed=0) -> SubPopulations:
    part, found = find_parts(mean, scale, cell_type, names, settings, seed=seed), SubPopulations.none(mean.shape[1])
    how = {"min_cells": settings.min_cells_per_sub_population}
    for code, (name, prefix) in enumerate(prefixes_of(names).items()):
        rows = cell_type == code
        found = concat([found, classify(name, mean[rows], part[rows.numpy()], prefix=prefix, **how)])
    return found


def found_in(n_cells, *, settings=DEFAULT, seed=0, **how) -> SubPopulations:
    mean, scale, cell_type, names, _ = latents(n_cells, seed=seed, **how)
    return sub_populations_of(mean, scale, cell_type, names, settings, seed=seed)


def test_sub_populations_are_the_parts_of_each_type():
    n_cells = {"T": [300, 150, 80], "B": [200], "NK": [120, 60]}
    mean, scale, cell_type, names, part = latents(n_cells)
    found = sub_populations_of(mean, scale, cell_type, names)
    assert found.names == ("T/1", "T/2", "T/3", "NK/1", "NK/2")
    assert found.cell_type == ("T", "T", "T", "NK", "NK")
    assert found.populations_of("B") == ("B",)
    for code, name in ((0, "T"), (2, "NK")):
        of_type = cell_type == code
        assigned = found.assign(name, mean[of_type]).numpy()
        assert (assigned == part[of_type.numpy()]).mean() > 0.98


def test_one_population_is_not_divided():
    n_cells = {f"type {number}": [size] for number, size in enumerate([70, 150, 300] * 5)}
    assert len(found_in(n_cells)) <= 2  # of 15 types, one at most


def test_uncertain_latents_support_no_more():
    """With parts that the posteriors cannot distinguish, there is one population."""
    assert len(found_in({"T": [300, 300]}, apart=0.5)) == 0


def test_small_types_are_not_divided():
    assert len(found_in({"T": [29, 30]})) == 0
    assert found_in({"T": [60, 60]}).names == ("T/1", "T/2")
    assert len(found_in({"T": [200, 20]}, scale=0.2)) == 0
    few = AutoencoderSettings(min_cells_per_sub_population=10)
    assert found_in({"T": [200, 20]}, settings=few, scale=0.2).names == ("T/1", "T/2")


def test_types_of_fewer_cells_than_axes():
    two = AutoencoderSettings(min_cells_per_sub_population=2, sub_populations=2)
    assert found_in({"T": [4, 3], "B": [100, 80]}, settings=two, scale=0.2).names == ("T/1", "T/2", "B/1", "B/2")


def test_number_and_none():
    n_cells = {"T": [200, 200], "B": [40]}
    assert len(found_in(n_cells, settings=AutoencoderSettings(sub_populations="none"))) == 0
    for cells in (n_cells, {"T": [15, 15], "B": [20]}):  # one population needs no number of cells
        assert len(found_in(cells, settings=AutoencoderSettings(sub_populations=1))) == 0
    assert found_in(n_cells, settings=AutoencoderSettings(sub_populations=3)).cell_type == ("T",) * 3


def test_more_than_the_cells_allow():
    with pytest.raises(InputError, match="No cell type has 300 cells to fit, for 10 sub-populations of 30 cells"):
        found_in({"T": [200], "B": [40]}, settings=AutoencoderSettings(sub_populations=10))


@pytest.mark.parametrize(("n_cells", "number"), [({"B": [40], "T": [100, 100]}, 2), ({"T": [100, 100]}, 6)])
def test_types_of_fewer_than_the_number_are_named(caplog, n_cells, number):
    """As they have too few cells, or as their cells, enough for six of equal size, form fewer."""
    found = found_in(n_cells, settings=AutoencoderSettings(sub_populations=number))
    assert 2 <= len(found) < 6
    warn_of_fewer(found, ["T", "B"][: len(n_cells)], number, requirement="30 cells to fit")
    few = "'B' (1)" if number == 2 else f"'T' ({len(found)})"
    assert re.search(rf"{number} sub-populations, .* 30 cells to fit: {re.escape(few)}\.", caplog.text)


def test_same_seed_same_sub_populations():
    one, other = (found_in({"T": [150, 150], "B": [100, 90]}, seed=3) for _ in range(2))
    assert one.names == other.names
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("axes", "mean", "log_density"))


def test_threads_leave_the_filters_of_warnings_as_they_are(monkeypatch):
    """Scikit-learn sets filters while it checks arrays, which threads share; here for so long that they overlap."""
    leave = warnings.catch_warnings.__exit__

    def late(self, *error):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(1e-3 * next(delays))
        return leave(self, *error)

    delays = cycle([1, 2, 3])
    monkeypatch.setattr(warnings.catch_warnings, "__exit__", late)
    before = list(warnings.filters)
    with using_threads(4):
        found_in({f"type {i}": [60, 40] for i in range(8)}, settings=AutoencoderSettings(sub_populations=2))
    assert warnings.filters == before


def test_identical_cells_are_one_population():
    mean = torch.zeros(200, N_LATENT)
    found = sub_populations_of(mean, mean, torch.zeros(200, dtype=torch.long), ("T",))
    assert len(found) == 0


def test_parts_that_lose_their_cells_are_left_out():
    """Two parts of the same cells: cells are assigned to the one or the other at random, or all to the larger."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(200, N_LATENT, generator=generator)
    mean[120:] += 6
    part = np.repeat([0, 1, 2], [100, 20, 80])
    found = classify("T", mean, part, prefix="T/", min_cells=30)
    assert found.names == ("T/1", "T/2")
    assert found.assign("T", mean).tolist() == [0] * 120 + [1] * 80
    assert len(classify("T", mean, np.repeat([0, 1], [180, 20]), prefix="T/", min_cells=30)) == 0
    assert len(classify("T", mean, np.zeros(200, dtype=int), prefix="T/", min_cells=30)) == 0


@pytest.mark.parametrize(
    ("cell_types", "names"),
    [
        (["T", "B"], ["T/1", "T/2", "B/1", "B/2"]),
        (["T", "T/2"], ["T//1", "T//2", "T/2/1", "T/2/2"]),
        (["T", "T/1", "T/"], ["T//1", "T//2", "T/1/1", "T/1/2", "T///1", "T///2"]),
        (["T/", "T//", "T", "T//12"], ["T///1", "T///2", "T////1", "T////2", "T/1", "T/2", "T//12/1", "T//12/2"]),
        (["", "1", "/", "7"], ["/1", "/2", "1/1", "1/2", "//1", "//2", "7/1", "7/2"]),
    ],
)
def test_names_of_sub_populations_do_not_clash(cell_types, names):
    found = found_in({name: [120, 60] for name in cell_types}, settings=AutoencoderSettings(sub_populations=2))
    assert list(found.names) == names
    assert len({*found.names, *cell_types}) == 3 * len(cell_types)


def test_names_of_sub_populations_are_not_names_of_branches():
    assert prefixes_of(["T"], {"T/9", "T//1", "T///", "T///x"}) == {"T": "T///"}


@pytest.mark.parametrize("scale", [0.1, 0.5, 0.9])
def test_prior_means_undo_the_shrinkage(scale):
    """Posterior means under a prior around 0 are the share 1 - scale**2 of the latents."""
    true = torch.full((N_LATENT,), 2.0)
    noise = torch.randn(4000, N_LATENT, generator=torch.Generator().manual_seed(0))
    mean = (1 - scale**2) * (true + noise)
    means = prior_means(mean, torch.full_like(mean, scale), torch.zeros(N_LATENT))
    torch.testing.assert_close(means, true, atol=0.1, rtol=0)
