"""Verdicts of audits: which attacks found who was in the training data, and how often chance would."""

from dataclasses import dataclass

import numpy as np

from bdm.audit.limits import LEVEL, Sides, inconclusive
from bdm.errors import counted

N_PERMUTATIONS = 1000
HIGH_LIMIT = 0.8  # of chance, from which an audit that finds nothing shows little

ATTACKS = {
    "nearest": "nearest generated cell",
    "density_ratio": "density ratio",
    "likelihood_ratio": "likelihood ratio",
    "mean_shift": "shift of means",
    "denoiser_loss": "loss of the denoiser",
    "bound": "bound under the model",
}
ON_MODEL = ("denoiser_loss", "bound")  # attacks that need the model; the others need its cells


@dataclass(frozen=True)
class AttackFinding:
    """What an attack on donors, or on cells, found.

    Attributes
    ----------
    auc
        Area under the ROC curve of members against non-members, a mean over folds.
    p_value
        Share of permutations of membership in which any of the attacks reaches ``auc``.
    found
        Whether chance reaches it in fewer than one of 20 audits.
    """

    attack: str
    auc: float
    p_value: float
    found: bool


@dataclass(frozen=True)
class AuditVerdict:
    """Summary of all attacks on the generated cells of all folds.

    Attributes
    ----------
    findings
        One for each attack, the highest area first.
    limit
        Area that chance reaches with any of the attacks in one of 20 audits.
    smallest_p
        Share of permutations in which any of the attacks finds all members.
    sides
        Numbers of units in the training data, and of others, that were attacked in each fold.
    unit
        ``donor`` or ``cell``.
    """

    findings: tuple[AttackFinding, ...]
    limit: float
    smallest_p: float
    sides: Sides
    unit: str

    @property
    def found(self) -> tuple[AttackFinding, ...]:
        """Findings of the attacks that found members."""
        return tuple(finding for finding in self.findings if finding.found)

    @property
    def inconclusive(self) -> str | None:
        """Why no attack could have found members, in a sentence; None if one could."""
        return inconclusive(self.sides, self.unit, p_value=self.smallest_p)

    @property
    def label(self) -> str:
        """The verdict in a few words."""
        if not self.findings:
            return "nothing was attacked"
        if self.inconclusive:
            return f"inconclusive: too few {self.unit}s"
        attacks = counted(len(self.findings), "attack")
        return f"{len(self.found) or 'none'} of {attacks} found {self.unit}s that were in the training data"

    @property
    def text(self) -> str:
        """The verdict in sentences, with its error rate."""
        if not self.findings:
            return f"{sentence(self.label)}."
        best, others = self.findings[0], self.findings[len(self.found) :]
        if self.inconclusive:
            return (
                f"Inconclusive: {self.inconclusive}. The highest AUC is {best.auc:.2f} ({ATTACKS[best.attack]}). "
                "Other attacks may find more."
            )
        n_folds = len(self.sides)
        n_members, n_others = (round(sum(side) / n_folds) for side in zip(*self.sides, strict=True))
        sentences = [sentence(self.label)]
        if self.found:
            sentences.append(f"Found by {in_words(self.found)}")
        if self.found and others:
            sentences.append(f"Not found by {in_words(others)}")
        if not self.found:
            sentences.append(
                f"The highest AUC is {best.auc:.2f} ({ATTACKS[best.attack]}), which chance reaches in "
                f"{best.p_value:.0%} of audits"
            )
        sentences.append(
            f"With {n_members} {self.unit}s in the training data and {n_others} others in "
            f"{counted(n_folds, 'fold')}, chance alone reaches an AUC of {self.limit:.2f} with any of the attacks "
            f"in {LEVEL:.0%} of audits"
        )
        if self.limit >= HIGH_LIMIT:
            sentences.append(
                f"So few {self.unit}s hide all but the largest leaks: this audit cannot show that cells are safe "
                "to share"
            )
        sentences.append("Other attacks may find more")
        return " ".join(f"{one}." for one in sentences)


def verdict_of(areas: dict[str, float], null: np.ndarray, *, sides: Sides, unit: str) -> AuditVerdict:
    """Compare the areas of attacks with the largest of all attacks in each permutation of membership.

    Parameters
    ----------
    areas
        Mean over folds, by attack.
    null
        Permutations x attacks.
    sides
        Numbers of members and of non-members in each fold.

    References
    ----------
    Westfall and Young 1993, Resampling-Based Multiple Testing, for the maximum over tests
    """
    best = null.max(axis=1) if null.size else np.zeros(0)
    findings = []
    for attack, auc in sorted(areas.items(), key=lambda item: -item[1]):
        p_value = p_value_of(auc, best)
        findings.append(AttackFinding(attack, float(auc), p_value, p_value < LEVEL))
    limit = float(np.quantile(best, 1 - LEVEL)) if len(best) else float("nan")
    return AuditVerdict(tuple(findings), limit, p_value_of(1.0, best), sides, unit)


def p_value_of(auc: float, best: np.ndarray) -> float:
    """Compute the share of permutations, of which the true membership is one, that reach an area."""
    return float((1 + (best >= auc - 1e-9).sum()) / (1 + len(best)))


def in_words(findings: tuple[AttackFinding, ...]) -> str:
    """Name attacks with their areas."""
    return ", ".join(f"{ATTACKS[one.attack]} (AUC {one.auc:.2f})" for one in findings)


def sentence(text: str) -> str:
    """Begin a text with a capital letter."""
    return text[:1].upper() + text[1:]
