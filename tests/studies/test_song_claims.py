"""The claims of 2406.01462 and of direction can be tested: their cells run, and have what their parts read."""

import pytest

from modeseek.studies.base import Cell
from modeseek.studies.claims import divergence, song
from modeseek.studies.claims.contrasts import change, scaled

SHORT = {"partial": 6, "partial_harsh": 6, "extrapolation": 6, "unseen_mass": 6, "divergence": 2}
STUDIES = {"song": song.study(), "divergence": divergence.study()}


def rows(study, cell):
    world = next(w for w in study.worlds if w.name == cell.world)
    dials = dict(cell.dials)
    if cell.world in SHORT or (cell.world in ("hole", "reversal") and cell.method == "dpo"):
        dials["steps"] = SHORT.get(cell.world, 6)
    if cell.world == "rounds":
        dials["rounds"] = 1
    return world.run(cell.method, [3], **dials)


@pytest.mark.parametrize(
    ("name", "cell"), [(name, cell) for name, study in STUDIES.items() for cell in study.cells()], ids=str
)
def test_every_cell_has_the_metrics_that_claims_read_of_it(name, cell):
    study = STUDIES[name]
    wanted = {
        (metric, at)
        for claim in study.claims
        for part in claim.parts
        for _, of, metric, at in part.contrast.terms
        if of == cell
    }
    found = rows(study, cell)
    assert found[0]["step"] == 0
    for metric, at in wanted:
        assert metric in found[-1]
        if at == "start":
            assert metric in found[0]
        if at == "slope":
            assert cell.world in song.MILD + song.HARSH


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_claims_have_names_of_their_own_and_equivalences_a_margin(study):
    names = [claim.name for claim in study.claims]
    assert len(set(names)) == len(names) and len({world.name for world in study.worlds}) == len(study.worlds)
    for claim in study.claims:
        assert claim.source and claim.parts
        assert all(part.margin > 0 for part in claim.parts if part.relation == "equal")
        assert all(part.margin >= 0 for part in claim.parts)


def test_hypo_is_compared_with_dpo_whose_beta_and_steps_are_tuned():
    cells = {cell for claim in STUDIES["song"].claims if claim.name == "S7b" for cell in claim.cells()}
    world = next(w for w in STUDIES["song"].worlds if w.name == song.HARSH)
    assert Cell.of(song.HARSH, "dpo") in cells  # beta is left to tuning
    assert Cell.of(song.HARSH, "dpo_tuned") in cells
    assert {"beta", "steps"} == set(world.grid("dpo_tuned"))
    assert len(world.grid("dpo")["beta"]) == len(world.grid("hypo")["kl"])  # the same budget


def test_a_scaled_contrast_has_scaled_terms():
    cell = Cell.of("hole", "dpo_set")
    assert scaled(change(cell, "kl"), 2.0).terms == ((2.0, cell, "kl", "end"), (-2.0, cell, "kl", "start"))


def test_the_middle_of_the_scale_is_marked_by_the_exact_divergences():
    terms = divergence.less_half(divergence.cell("dpo")).terms
    assert sorted((c, cell.method) for c, cell, _, _ in terms) == [
        (-0.5, "forward_kl"),
        (-0.5, "reverse_kl"),
        (1.0, "dpo"),
    ]
