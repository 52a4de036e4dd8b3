import math

import pytest
import torch

from modeseek.studies.base import Study
from modeseek.studies.claims.tajwar import study
from modeseek.studies.worlds.methods import named
from modeseek.studies.worlds.one_step import OneStep, theorem
from modeseek.studies.worlds.table import streams


@pytest.mark.parametrize("quick", [False, True])
def test_every_cell_is_of_a_world_with_that_method_and_those_dials(quick):
    made = study(quick)
    assert isinstance(made, Study)
    worlds = {world.name: world for world in made.worlds}
    for cell in made.cells():
        assert cell.method in worlds[cell.world].methods(), cell
        if cell.world != "one-step":
            named(cell.method).settings(str(cell), {}, dict(cell.dials))


def test_every_claim_of_the_issue_is_there_with_its_parts():
    claims = {claim.name: claim for claim in study().claims}
    assert set(claims) >= {"A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4", "C1", "lemma 6.2", "theorem 6.5"}
    for claim in claims.values():
        assert claim.parts and claim.source
        assert len({part.says for part in claim.parts}) == len(claim.parts)
        for part in claim.parts:
            assert part.relation != "equal" or part.margin > 0, part


def test_every_metric_of_a_claim_is_in_the_rows():
    made, seen = study(quick=True), {}
    worlds = {world.name: world for world in made.worlds}
    for claim in made.claims:
        for part in claim.parts:
            for _, cell, metric, _ in part.contrast.terms:
                if cell.world in ("R1", "R2", "one-step"):
                    if cell not in seen:
                        dials = dict(cell.dials) | ({} if cell.world == "one-step" else {"steps": 2})
                        seen[cell] = worlds[cell.world].run(cell.method, [0], **dials)[-1]
                    assert metric in seen[cell], (cell, metric)


def test_the_lemmas_margin_widens_on_tables_and_its_condition_is_exact():
    for row in OneStep().run("lemma_6_2", [1, 2])[1::2]:
        assert row["margin_wider"] == row["rejected_lower"] == 1.0
        assert row["agree"] > 0.99
        assert row["chosen_higher"] < 0.3  # 18 % of 20 000 cases in the fact sheet


def test_the_likelier_features_align_the_more_often_both_fall():
    shares = [OneStep().run("log_linear", [3], cosine=c)[1]["both_fall"] for c in (0.0, 0.6, 0.9, 0.99)]
    assert shares == sorted(shares) and shares[-1] > 0.3


def test_the_theorems_exact_conditions_hold_in_every_case():
    found = theorem(streams([5], "theorem_6_5"))
    assert found["agree"] == 1.0
    assert found["deviation"] < 1e-9
    assert 0.5 < found["case_1"] < 1 and 0.5 < found["case_2"] < 1


def test_a_toy_step_moves_bins_by_hand():
    # one step of size e on the forward KL moves a logit by e (q - p): bin 0 by -0.1 e, and bin 1 by -0.2 e
    from modeseek.studies.worlds.one_step import STEP, TOY_START, TOY_TARGET, _moved

    p, q = (torch.tensor([x], dtype=torch.float64) for x in (TOY_START, TOY_TARGET))
    forward = _moved(p, q, "forward")[0]
    assert float(forward[0] - forward[1]) == pytest.approx(0.1, abs=1e-6)
    # on the reverse KL by e p (K - ln(p / q)), K = KL(p || q)
    K = sum(a * math.log(a / b) for a, b in zip(TOY_START, TOY_TARGET, strict=True))
    by = [a * (K - math.log(a / b)) for a, b in zip(TOY_START, TOY_TARGET, strict=True)]
    reverse = _moved(p, q, "reverse")[0]
    assert float(reverse[2] - reverse[0]) == pytest.approx(by[2] - by[0], abs=1e-6)
    assert STEP == 1e-4


def test_the_world_of_one_step_refuses_what_it_has_not():
    with pytest.raises(ValueError, match="method: 'dpo' in one-step"):
        OneStep().run("dpo", [0])
    with pytest.raises(ValueError, match="cosine: lemma_6_2 in one-step has no such dial"):
        OneStep().run("lemma_6_2", [0], cosine=0.5)
