"""A Kronecker factor as rows and as a matrix: both forms give the same numbers."""

import pytest
import torch

from spectral_ext.factors import SecondMoment, second_moment


def both(rows, scale=0.25):
    """(kept as rows, kept as a matrix)."""
    few = SecondMoment(rows.shape[1])
    for part in rows.split(5):
        few.add_rows(part)
    many = SecondMoment.of(rows.mT @ rows)
    few.scale = many.scale = scale
    return few, many


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 40, dtype=torch.float64, generator=generator)


def test_both_forms_agree(rows):
    few, many = both(rows)
    other = both(rows.roll(1, 1).cos())
    assert few.matrix is None and few.count == 12 and many.matrix is not None
    C = rows.mT @ rows * 0.25
    torch.testing.assert_close(few.dense(), C)
    for form in (few, many):
        assert form.trace() == pytest.approx(float(C.trace()), rel=1e-13)
        assert form.norm() == pytest.approx(float(C.norm()), rel=1e-13)
        assert form.sum() == pytest.approx(float(C.sum()), rel=1e-12)
        values = form.eigenvalues(3)
        assert values.shape == (40,)
        torch.testing.assert_close(values, torch.linalg.eigvalsh(C).flip(0), rtol=1e-12, atol=1e-13)
        basis = form.eigenspace(4)
        torch.testing.assert_close(basis @ basis.mT, many.eigenspace(4) @ many.eigenspace(4).mT, rtol=0, atol=1e-9)
        for one in other:
            assert form.inner(one) == pytest.approx(float((C * other[1].dense()).sum()), rel=1e-12)


def test_eigenvalues_beyond_the_rank_are_zero(rows):
    few, _ = both(torch.cat([rows[:3], rows[:3]]).float())
    values = few.eigenvalues(8)
    assert (values[:3] > 0).all() and (values[3:] == 0).all()
    assert few.eigenspace(8).shape == (40, 3)


def test_as_many_rows_as_the_side_is_long_become_a_matrix(rows):
    wide = rows.mT.contiguous()  # 40 rows of 12
    moment = SecondMoment(12)
    moment.add_rows(wide[:11])
    assert moment.matrix is None
    moment.add_rows(wide[11:20])
    moment.add_rows(wide[20:])
    assert moment.matrix is not None and not moment.rows
    torch.testing.assert_close(moment.dense(), wide.mT @ wide)


def test_a_large_side_is_never_formed(monkeypatch, rows):
    monkeypatch.setattr(second_moment, "LARGEST_SIDE", 39)
    moment = SecondMoment(40)
    moment.add_rows(rows)
    with pytest.raises(second_moment.FactorTooLargeError, match="measure on fewer rows"):
        moment.add_rows(torch.randn(28, 40))


def test_the_top_of_a_large_matrix(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 300, dtype=torch.float64, generator=generator) * torch.arange(1, 301) ** -0.7
    moment = SecondMoment(300)
    moment.add_rows(rows)
    whole = moment.eigenvalues(20)
    monkeypatch.setattr(second_moment, "FULL_SPECTRUM", 100)
    top = moment.eigenvalues(20)
    assert (len(whole), len(top)) == (300, 100)
    torch.testing.assert_close(top, whole[:100], rtol=1e-8, atol=0)
