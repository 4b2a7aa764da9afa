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
    UNCHECKABLE = "not checkable"


@dataclass(frozen=True)
class Check:
    """One recomputation: over which data, what came out, and whether the published digits follow from it."""

    over: str
    value: str
    holds: bool


@dataclass(frozen=True)
class Finding:
    """A published claim and its verdict, with what was recomputed and over which data."""

    where: str
    claim: str
    published: str
    verdict: Verdict
    recomputed: str
    why: str
    source: str

    def as_dict(self) -> dict[str, str]:
        return {**asdict(self), "verdict": self.verdict.value}


@dataclass(frozen=True)
class Claim:
    """A published claim and the function that checks it on the frozen results.

    ``check`` returns the claim as stated over all its data first, then selections under which it might hold;
    or a string that says why the frozen results cannot decide.
    """

    where: str
    claim: str
    published: str
    needs: tuple[str, ...]
    check: Callable[[Frozen], Sequence[Check] | str]
    note: str = ""

    def judge(self, frozen: Frozen) -> Finding:
        source = ", ".join(self.needs)
        try:
            checks = self.check(frozen)
        except MissingResultsError as error:
            return self._finding(Verdict.UNCHECKABLE, "–", str(error), source)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{source}: unexpected content while checking {self.where} ({self.claim}): {error!r}; "
                "the file is not the authors' frozen result, or was edited"
            ) from error
        if isinstance(checks, str):
            return self._finding(Verdict.UNCHECKABLE, "–", checks, source)
        stated, *selections = checks
        kept = next((check for check in selections if check.holds), None)
        if stated.holds:
            return self._finding(Verdict.HOLDS, stated.value, stated.over, source)
        if kept is not None:
            why = f"only over {kept.over}: {kept.value}; over {stated.over}: {stated.value}"
            return self._finding(Verdict.SELECTION, stated.value, why, source)
        return self._finding(Verdict.CONTRADICTED, stated.value, f"over {stated.over}", source)

    def _finding(self, verdict: Verdict, recomputed: str, why: str, source: str) -> Finding:
        why = f"{why}. {self.note}" if self.note and verdict is not Verdict.HOLDS else why
        return Finding(self.where, self.claim, self.published, verdict, recomputed, why, source)


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


def unfrozen(where: str, claim: str, published: str, reason: str) -> Claim:
    """A claim for which the frozen results hold nothing."""
    return Claim(where, claim, published, (), lambda frozen: reason)
