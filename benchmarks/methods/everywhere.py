"""Ablation: `bdm` with the network on all branches, trained for all steps, whatever validation cells gain by it."""

from functools import partial

import ablation

from bdm.model.fit import fit_model

if __name__ == "__main__":
    ablation.run(fit=partial(fit_model, everywhere=True))
