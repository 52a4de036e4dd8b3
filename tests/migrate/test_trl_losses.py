"""TRL's losses and their options as objectives. That the numbers are TRL's: tests/golden/test_trl.py."""

import pytest
import yaml

from modeseek.migrate import translate
from modeseek.objectives import (
    AOT,
    CISPO,
    CPO,
    DPO,
    FDPO,
    GSPO,
    IPO,
    LDDPO,
    PPO,
    SFT,
    BradleyTerry,
    DiscoPOP,
    Hinge,
    PolicyGradient,
    RobustDPO,
    SimPO,
    SLiC,
    WithSFT,
)


def read(tmp_path, trainer="dpo", **keys):
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "m", "dataset_name": "d", **keys}))
    return translate("trl", path, trainer=trainer)


FROM = [
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.2}, RobustDPO(0.1, 0.2)),
    ("dpo", {"loss_type": "robust"}, DPO(0.1)),  # no label is flipped
    ("dpo", {"loss_type": "aot", "label_smoothing": 0.2}, AOT(0.1, 0.2)),
    ("dpo", {"loss_type": "discopop", "discopop_tau": 0.2}, DiscoPOP(0.1, 0.2)),
    ("dpo", {"loss_type": ["hinge", "sft"], "loss_weights": [1.0, 0.5]}, WithSFT(Hinge(0.1), 0.5)),
    ("dpo", {"loss_type": ["sft", "ipo"]}, WithSFT(IPO(0.1, "mean"), 1.0)),
    ("dpo", {"rpo_alpha": 0.5, "beta": 0.2}, WithSFT(DPO(0.2), 0.5)),
    ("dpo", {"ld_alpha": 0.3}, LDDPO(0.1, 0.3)),
    ("dpo", {"ld_alpha": 1.0}, DPO(0.1)),  # weighs nothing
    ("dpo", {"f_divergence_type": "js_divergence"}, FDPO(0.1)),
    ("dpo", {"f_divergence_type": "forward_kl"}, FDPO(0.1, "alpha", 1.0)),
    ("dpo", {"f_divergence_type": "alpha_divergence"}, FDPO(0.1, "alpha", 0.5)),
    ("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25}, FDPO(0.1, "alpha", 0.75)),
    ("sft", {}, SFT("minibatch_mean")),
    ("cpo", {}, CPO(0.1, 1.0, "mean")),
    ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "label_smoothing": 0.1}, SimPO(0.1, 0.5, 0.1)),
    ("cpo", {"loss_type": "simpo"}, WithSFT(SimPO(0.1, 0.5), 1.0)),  # TRL's cpo_alpha is 1 unless it is said
    ("cpo", {"loss_type": "hinge", "beta": 0.5, "cpo_alpha": 0.0}, SLiC(2.0, 0.0)),
    ("cpo", {"loss_type": "hinge", "beta": 0.5}, WithSFT(SLiC(2.0, 0.0), 2.0)),
    ("online_dpo", {"loss_type": "ipo", "beta": 0.2}, IPO(0.2)),  # of sums, unlike the DPO trainer's
    ("reward", {"center_rewards_coefficient": 0.01}, BradleyTerry(centre=0.01)),
    ("grpo", {"loss_type": "cispo", "epsilon_high": 5.0}, CISPO(None, 4.0, "minibatch_mean")),
    ("grpo", {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1}, GSPO(0.1, 0.1)),
    ("grpo", {"loss_type": "dr_grpo"}, PPO(0.2, None, 0.0, "sum")),
]


@pytest.mark.parametrize("trainer, keys, objective", FROM, ids=lambda x: str(x)[:60])
def test_a_loss_and_its_options_are_an_objective(trainer, keys, objective, tmp_path):
    found = read(tmp_path, trainer, **keys)
    assert found.run().objective == objective
    assert not [line for line in found.lost if not line.startswith("reward")]


LOST = [
    ("dpo", {"loss_type": "ipo", "ld_alpha": 0.5}, "ld_alpha"),
    ("dpo", {"loss_type": "hinge", "f_divergence_type": "forward_kl"}, "f_divergence_type"),
    ("dpo", {"loss_type": ["sigmoid", "bco_pair", "sft"]}, "only one loss beside sft"),
    ("dpo", {"loss_type": ["aot", "sft"]}, "objectives of one pair"),
    ("dpo", {"loss_type": "aot_unpaired", "label_smoothing": 0.1}, "label_smoothing"),
    ("cpo", {"label_smoothing": 0.1}, "label_smoothing"),
    ("grpo", {"loss_type": "dapo", "importance_sampling_level": "sequence"}, "a response counts alike"),
    ("grpo", {"loss_type": "cispo", "beta": 0.1}, "no KL in its loss"),
    ("grpo", {"delta": 4.0}, "no second limit"),
    ("rloo", {"normalize_advantages": True}, "whiten"),
]


@pytest.mark.parametrize("trainer, keys, says", LOST, ids=lambda x: str(x)[:60])
def test_what_no_objective_does_is_lost(trainer, keys, says, tmp_path):
    assert any(says in line for line in read(tmp_path, trainer, **keys).lost)


@pytest.mark.parametrize(
    "trainer, keys",
    [
        ("kto", {"loss_type": "apo_zero_unpaired"}),
        ("cpo", {"loss_type": "ipo"}),
        ("sft", {"loss_type": "dft"}),
        ("grpo", {"loss_type": "sapo"}),
        ("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2.0}),
    ],
)
def test_a_loss_that_there_is_not_is_refused(trainer, keys, tmp_path):
    with pytest.raises(ValueError, match="loss_type|f_alpha_divergence_coef"):
        read(tmp_path, trainer, **keys)


def test_wpo_is_a_weight_on_any_loss(tmp_path):
    for loss in ("sigmoid", "ipo", "bco_pair"):
        run = read(tmp_path, loss_type=loss, use_weighting=True).run()
        assert run.before[-1].name == "on_policy_weight"
    assert [s.name for s in run.before] == ["running_midpoint", "on_policy_weight"]


def test_what_is_a_mean_over_tokens_in_trl_is_one_here(tmp_path):
    for trainer, keys in (("sft", {}), ("dpo", {"loss_type": "sft"})):
        assert [s.name for s in read(tmp_path, trainer, **keys).run().before] == ["share_tokens"]


def test_smoothing_that_trl_does_not_read_is_told(tmp_path):
    found = read(tmp_path, label_smoothing=0.1)
    assert found.run().objective == DPO(0.1, 0.1) and any("unread" in line for line in found.differs)


def test_a_round_is_one_step_where_trl_takes_one(tmp_path):
    """GSPO's and CISPO's own configs take several."""
    for keys in ({"loss_type": "cispo"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}):
        run = read(tmp_path, "grpo", per_device_train_batch_size=256, **keys).run()
        assert run.prompts_per_round == 32 and run.minibatch is None


def test_rloo_that_takes_a_sample_twice_names_a_correction(tmp_path):
    found = read(tmp_path, "rloo", num_iterations=2)
    assert found.run().objective == PolicyGradient("clip") and found.run().passes == 2
    assert any("num_iterations" in line for line in found.lost)


def test_the_kl_of_grpo_is_weighed_as_trl_weighs_it(tmp_path):
    kl = lambda **keys: read(tmp_path, "grpo", loss_type="grpo", **keys).run().objective
    assert kl(beta=0.1) == PPO(0.2, None, 0.1, "mean", kl_by_ratio=True)
    assert kl(beta=0.1, use_bias_correction_kl=False) == PPO(0.2, None, 0.1, "mean")
    assert kl() == PPO(0.2, None, 0.0, "mean")


def test_a_beta_for_each_epoch_is_lost_but_for_the_first(tmp_path):
    found = read(tmp_path, "online_dpo", beta=[0.2, 0.1])
    assert found.run().objective == DPO(0.2) and any("one beta" in line for line in found.lost)


def test_a_config_of_simpo_is_of_the_cpo_trainer(tmp_path):
    path = tmp_path / "simpo.yaml"
    path.write_text("model_name_or_path: m\ndataset_name: d\nloss_type: simpo\nbeta: 2.0\ncpo_alpha: 0\n")
    assert translate("trl", path).run().objective == SimPO(2.0, 0.5)
