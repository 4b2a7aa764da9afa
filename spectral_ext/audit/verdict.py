"""Claims, checks and verdicts. A verdict follows from the checks; nothing here knows the answer in advance."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from spectral_ext.audit.frozen import Frozen, MissingResultsError


class Verdict(enum.Enum):
    """What the frozen results say about a claim."""

    HOLDS = "holds"
    SELECTION = "holds only under a stated selection"
    CONTRADICTED = "contradicted"
    CONSTRUCTION = "true by construction"
    UNCHECKABLE = "not checkable"


@dataclass(frozen=True)
class Check:
    """One recomputation: over which data, what came out, and whether the published digits follow from it."""

    over: str
    value: str
    holds: bool


@dataclass(frozen=True)
class Undecided:
    """Why the frozen results cannot decide, and which data would."""

    reason: str
    missing: str


@dataclass(frozen=True)
class Finding:
    """A published claim and its verdict, with what was recomputed, over which data, and what would overturn it."""

    where: str
    claim: str
    published: str
    verdict: Verdict
    recomputed: str
    why: str
    overturn: str
    source: str

    def as_dict(self) -> dict[str, str]:
        return {**asdict(self), "verdict": self.verdict.value}


@dataclass(frozen=True)
class Claim:
    """A published claim and the function that checks it on the frozen results.

    ``requires`` says, as a clause, what must be true for the claim to hold; what would overturn a verdict follows from
    it. ``check`` returns the claim as stated over all its data first, then selections or readings under which it might
    hold and that do not look at the outcome; or an ``Undecided``. ``by_construction`` marks a claim that follows from
    its own definition, its assumptions or other printed numbers by arithmetic: that it is true is no evidence.
    """

    where: str
    claim: str
    published: str
    needs: tuple[str, ...]
    requires: str
    check: Callable[[Frozen], Sequence[Check] | Undecided]
    note: str = ""
    by_construction: bool = False
    overturn: str = ""
    """Replaces the sentence that follows from ``requires`` where the verdict is ``contradicted``."""

    def judge(self, frozen: Frozen) -> Finding:
        """The finding of this claim on the frozen results.

        Raises:
            ValueError: a file does not have the content of the authors' result.
        """
        try:
            checks = self.check(frozen)
        except MissingResultsError as error:
            checks = Undecided(str(error), "the file in the folder")
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{', '.join(self.needs)}: unexpected content while checking {self.where} ({self.claim}): {error!r}; "
                "the file is not the authors' frozen result, or was edited"
            ) from error
        if isinstance(checks, Undecided):
            return self._finding(Verdict.UNCHECKABLE, "–", checks.reason, f"This would decide: {checks.missing}.")
        stated, *selections = checks
        kept = next((check for check in selections if check.holds), None)
        if stated.holds and self.by_construction:
            overturn = f"No measurement, only a mistake in the arithmetic: {self.requires}."
            return self._finding(Verdict.CONSTRUCTION, stated.value, stated.over, overturn)
        if stated.holds:
            overturn = f"Results in which this is false: {self.requires}."
            return self._finding(Verdict.HOLDS, stated.value, stated.over, overturn)
        if kept is not None:
            why = f"only over {kept.over}: {kept.value}; over {stated.over}: {stated.value}"
            overturn = (
                f"For “holds” this must be true over {stated.over}, for “contradicted” it must be false over "
                f"{kept.over}: {self.requires}."
            )
            return self._finding(Verdict.SELECTION, stated.value, why, overturn)
        overturn = self.overturn or f"Results in which this is true: {self.requires}."
        return self._finding(Verdict.CONTRADICTED, stated.value, f"over {stated.over}", overturn)

    def _finding(self, verdict: Verdict, recomputed: str, why: str, overturn: str) -> Finding:
        why = f"{why}. {self.note}" if self.note and verdict is not Verdict.HOLDS else why
        source = ", ".join(self.needs)
        return Finding(self.where, self.claim, self.published, verdict, recomputed, why, overturn, source)


def rounds_to(value: float, published: str) -> bool:
    """Whether ``value`` rounds to the published digits: |value − published| ≤ half a unit of the last printed place.

    >>> rounds_to(0.0187, "0.02"), rounds_to(2.095, "1.9"), rounds_to(-0.5104, "-0.51")
    (True, False, True)
    """
    number = Decimal(published)
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # a published number is finite
    return bool(abs(Decimal(repr(float(value))) - number) <= Decimal(5).scaleb(exponent - 1))


def shown(value: float, published: str) -> str:
    """``value`` with one digit more than was published, or two where one would round it onto the published number."""
    places = decimals(published) + 1
    text = f"{value:.{places}f}"
    return text if rounds_to(float(text), published) == rounds_to(value, published) else f"{value:.{places + 1}f}"


def decimals(published: str) -> int:
    exponent = Decimal(published).as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def number_check(over: str, value: float, published: str, unit: str = "") -> Check:
    """The check that one recomputed number rounds to the published one."""
    return Check(over, shown(value, published) + unit, rounds_to(value, published))


def range_check(over: str, values: Sequence[float], low: str, high: str) -> Check:
    """Whether every value, rounded to the digits of the published bounds, lies in [low, high]."""
    inside = [(rounds_to(v, low) or v >= float(low)) and (rounds_to(v, high) or v <= float(high)) for v in values]
    span = f"{shown(min(values), low)} … {shown(max(values), high)}"
    return Check(over, f"{span}, {sum(inside)} of {len(values)} inside", all(inside))


def unfrozen(where: str, claim: str, published: str, reason: str, missing: str) -> Claim:
    """A claim for which the frozen results hold nothing; ``missing`` names the data that would decide."""
    return Claim(where, claim, published, (), "", lambda frozen: Undecided(reason, missing))
