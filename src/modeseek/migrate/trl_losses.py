"""What TRL's `loss_type` and the options beside it come to here.

`benchmarks/peer_losses.py` computes both sides' losses and gradients through this translation.
"""

from __future__ import annotations

from typing import Any

from modeseek import config
from modeseek.migrate.translation import Given, Said, Translation

PAIRS = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust_dpo",
    "bco_pair": "bco",
    "sppo_hard": "sppo_hard",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "disco_pop",
    "sft": "pref_ft",
    "sigmoid_norm": "dpo_norm",
}
SMOOTHED = ("dpo", "exo", "robust_dpo", "aot")
APART = {  # what no setting of ours makes the same
    "bco": "TRL's bco_pair has no midpoint, which is the paper's (ours runs), and sums over the pair: twice ours",
    "sppo_hard": "TRL's sppo_hard sums over the pair, ours takes the mean: gradients there are twice as long",
    "aot_unpaired": "the value of TRL's aot_unpaired is half of ours; the gradient is the same",
}
TOKENS = "TRL averages over all tokens of the batch"
CHOSEN = "TRL averages the likelihood over all chosen tokens of the batch; here each response counts alike"


def method(out: Translation, given: Given, trainer: str) -> None:
    """Choose the method and set its options."""
    named = given.take("loss_type")
    match trainer:
        case "dpo":
            _pairs(out, given, named)
        case "cpo":
            _cpo(out, given, named)
        case "grpo":
            _grpo(out, given, named)
        case _:
            _of_trainer(out, given, trainer, named)


def _of_trainer(out: Translation, given: Given, trainer: str, named: Said | None) -> None:
    """The trainers whose name says the method."""
    known = {"kto": ("kto",), "sft": ("nll", "chunked_nll"), "online_dpo": ("sigmoid", "ipo")}
    if named is not None and str(named.value) not in known.get(trainer, ()):
        told = ", ".join(known.get(trainer, ())) or "none"
        raise ValueError(f"loss_type: {named.value!r} of TRL's {trainer} trainer has no equivalent; known: {told}")
    chosen = {"sft": "pref_ft", "reward": "reward_model"}.get(trainer, trainer)
    if trainer == "online_dpo" and named is not None and named.value == "ipo":
        chosen = "online_ipo"
    out.choose(chosen, f"TRL's {trainer} trainer")
    if trainer == "sft":
        _mean_over_tokens(out)
    if trainer in ("kto", "orpo", "online_dpo"):
        out.set("objective.tau" if chosen == "online_ipo" else "objective.beta", _first(out, given.take("beta")), float)
    if trainer == "kto":
        out.set("objective.desirable", given.take("desirable_weight"), float)
        out.set("objective.undesirable", given.take("undesirable_weight"), float)
    if trainer == "orpo":
        out.differs.append(f"{CHOSEN}, and only the response's tokens; TRL's orpo counts the prompt's as well")
    if trainer == "rloo":
        out.set("stages.kl_shaped.beta", given.take("beta"), float)
        out.differs.append("TRL's rloo clips the response's ratio; here a sample is used once, or name a correction")
    if trainer == "reward":
        out.set("objective.centre", given.take("center_rewards_coefficient"), float)
        out.differs.append("TRL subtracts the column margin where there is one: write objective.margin_weight: 1")


def _first(out: Translation, said: Said | None) -> Said | None:
    """Online DPO takes a beta for each epoch."""
    if said is None or not isinstance(said.value, list):
        return said
    if len(said.value) > 1:
        out.lose(said.origin, "one beta for all epochs here; the first is written")
    return Said(said.value[0], said.origin)


def _mean_over_tokens(out: Translation) -> None:
    out.set("objective.logp_reduction", Said("minibatch_mean", TOKENS))
    out.set("before", Said(["share_tokens"], TOKENS))


def _pairs(out: Translation, given: Given, named: Said | None) -> None:
    """The DPO trainer: one loss, or one beside the likelihood of the chosen response."""
    origin = named.origin if named else "TRL's default of loss_type"
    kinds = [str(x) for x in (named.value if named and isinstance(named.value, list) else [_value(named, "sigmoid")])]
    for kind in kinds:
        if kind not in PAIRS:
            raise ValueError(f"loss_type: {kind!r} is none that this knows: {', '.join(PAIRS)}")
    weights = given.take("loss_weights")
    shares = dict(zip(kinds, map(float, weights.value if weights else [1.0] * len(kinds)), strict=True))
    main = next((kind for kind in kinds if kind != "sft"), "sft")
    chosen = _variant(out, given, main)
    options = _options(out, given, chosen)
    beside = given.take("rpo_alpha")  # of earlier versions
    if len(kinds) == 2 and "sft" in kinds:
        told = weights.origin if weights else f"{origin}, equal weights"
        beside = Said(shares["sft"] / shares[main], told)
    elif len(kinds) > 1:
        out.lose(origin, f"only one loss beside sft can be combined; {main} is written")
    if shares[main] != 1 and weights is not None:
        out.differs.append(f"{weights.origin}: gradients of TRL's are {shares[main]:g} times as long before clipping")
    if beside is not None and chosen in ("bco", "sppo_hard", "aot", "aot_unpaired", "pref_ft"):
        out.lose(beside.origin, f"the likelihood stands beside objectives of one pair; only {chosen} is written")
        beside = None
    out.choose(chosen, origin)
    if beside is None:
        for key, said in options.items():
            out.set(f"objective.{key}", said)
        if chosen == "pref_ft":
            _mean_over_tokens(out)
    else:
        out.choose("rpo", f"{origin} beside {beside.origin}")
        _beside(out, beside, {**config.read_tree(chosen)["objective"], **{k: x.value for k, x in options.items()}})
    out.differs += [APART[chosen]] if chosen in APART else []
    _weighted(out, given)


def _beside(out: Translation, nll: Said, inner: dict[str, Any]) -> None:
    """`inner` with `nll` times the chosen response's mean likelihood."""
    out.set("objective.nll", nll, float)
    out.set("objective.inner", Said(inner, "beta"))
    out.differs.append(CHOSEN)


def _value(said: Said | None, otherwise: Any) -> Any:
    return otherwise if said is None else said.value


def _variant(out: Translation, given: Given, kind: str) -> str:
    """The method of a loss: `ld_alpha` and `f_divergence_type` make others of sigmoid."""
    chosen = PAIRS[kind]
    alpha, divergence = given.take("ld_alpha"), given.take("f_divergence_type")
    long = alpha is not None and float(alpha.value) != 1
    other = divergence is not None and divergence.value != "reverse_kl"
    if kind == "robust" and not float(given.number("label_smoothing", 0.0).value):
        chosen = "dpo"  # of labels that are never flipped
    if long and kind != "sigmoid":
        out.lose(alpha.origin if alpha else "", "only sigmoid weighs the longer response's tail here")
    if other and (kind != "sigmoid" or long):
        out.lose(divergence.origin if divergence else "", "only sigmoid alone takes another divergence here")
    if kind == "sigmoid" and (long or other):
        return "ld_dpo" if long else "jsd_dpo"
    return chosen


def _options(out: Translation, given: Given, chosen: str) -> dict[str, Said]:
    """The fields of the objective that TRL's options set."""
    beta = given.take("beta") or Said(0.1, "TRL's default of beta")
    options = {} if chosen == "pref_ft" else {"beta": Said(float(beta.value), beta.origin)}
    if chosen == "ipo":
        options = {"tau": options["beta"], "logp_reduction": Said("mean", "TRL's ipo averages over tokens")}
        out.differs.append(
            "TRL's beta of ipo is our tau; the paper sums over tokens (logp_reduction: sum), TRL averages"
        )
    smoothing = given.take("label_smoothing")
    if smoothing is not None and float(smoothing.value):
        if chosen in SMOOTHED:
            options["label_smoothing"] = Said(float(smoothing.value), smoothing.origin)
        else:
            out.lose(smoothing.origin, f"{chosen} has no label smoothing")
        if chosen == "dpo":
            out.differs.append("TRL 1.16 leaves label_smoothing unread in sigmoid; earlier versions smooth, as here")
    tau = given.take("discopop_tau")
    if chosen == "disco_pop" and tau is not None:
        options["tau"] = Said(float(tau.value), tau.origin)
    if chosen == "ld_dpo":
        options["alpha"] = given.number("ld_alpha", 1.0)
    return options | (_divergence(out, given) if chosen == "jsd_dpo" else {})


def _divergence(out: Translation, given: Given) -> dict[str, Said]:
    """TRL's alpha is one less ours: its reward is (r^(a - 1) - 1) / (a - 1), and ours falls with r^-alpha."""
    kind = given.take("f_divergence_type")
    coefficient = given.take("f_alpha_divergence_coef") or Said(0.5, "TRL's default of f_alpha_divergence_coef")
    assert kind is not None
    if kind.value == "js_divergence":
        return {"divergence": Said("jensen_shannon", kind.origin)}
    alpha = Said(1.0, kind.origin)
    if kind.value == "alpha_divergence":
        alpha = Said(1 - float(coefficient.value), f"1 - {coefficient.origin}")
    elif kind.value != "forward_kl":
        raise ValueError(
            f"f_divergence_type: {kind.value!r}, expected reverse_kl, forward_kl, js_divergence, alpha_divergence"
        )
    if alpha.value <= 0:
        raise ValueError(f"f_alpha_divergence_coef: {coefficient.value}, expected below 1; 1 is the reverse KL of DPO")
    return {"divergence": Said("alpha", kind.origin), "alpha": alpha}


def _weighted(out: Translation, given: Given) -> None:
    """WPO is a weight on any of these."""
    said = given.take("use_weighting")
    if said is not None and said.value and str(said.value).lower() != "false":
        out.set("before", Said([*out.tree().get("before", []), "on_policy_weight"], said.origin))
        out.differs.append("a pair weighs at most 1 here, as in WPO's code; TRL's weights are not bounded")


def _cpo(out: Translation, given: Given, named: Said | None) -> None:
    """The CPO trainer: no reference, and the likelihood beside every loss unless `cpo_alpha` is 0."""
    kind, origin = str(_value(named, "sigmoid")), named.origin if named else "TRL's default of loss_type"
    if kind not in ("sigmoid", "simpo", "hinge"):
        raise ValueError(f"loss_type: {kind!r} of TRL's CPO trainer has no equivalent: sigmoid, simpo and hinge have")
    beta, alpha = given.number("beta", 0.1), given.take("cpo_alpha") or Said(1.0, "TRL's default of cpo_alpha")
    gamma, smoothing = given.number("simpo_gamma", 0.5), given.number("label_smoothing", 0.0)
    nll = Said(float(alpha.value), alpha.origin)
    out.choose({"sigmoid": "cpo", "hinge": "slic"}.get(kind, kind), origin)
    if kind == "sigmoid":
        out.set("objective.beta", beta)
        out.set("objective.nll", nll)
        out.set("objective.nll_reduction", Said("mean", "TRL's cpo averages the likelihood over tokens"))
        out.differs.append(CHOSEN)
    inner: dict[str, Any] = {"type": "simpo", "beta": beta.value, "gamma": gamma.value}
    if kind == "hinge":
        inner = {"type": "slic", "margin": 1 / beta.value, "nll": 0.0}
        nll = Said(nll.value / beta.value, f"{alpha.origin} / {beta.origin}")
        out.differs.append("the hinge asks for nats here, 1 / beta of them: gradients are those of TRL over beta")
    if smoothing.value and kind == "simpo":
        inner["label_smoothing"] = smoothing.value
    elif smoothing.value:
        out.lose(smoothing.origin, f"{out.method} has no label smoothing")
    if kind != "sigmoid":
        out.set("objective", Said(inner, origin))
        if nll.value:
            out.set(
                "objective", Said({"type": "with_sft", "inner": inner, "nll": nll.value}, f"{origin}; {nll.origin}")
            )
            out.differs.append(CHOSEN)


GROUPED = {  # what makes one number of the tokens
    "grpo": "mean",
    "bnpo": "minibatch_mean",
    "dapo": "minibatch_mean",
    "dr_grpo": "sum",
    "cispo": "minibatch_mean",
}


def _grpo(out: Translation, given: Given, named: Said | None) -> None:
    kind, origin = str(_value(named, "dapo")), named.origin if named else "TRL's default of loss_type"
    if kind not in GROUPED:
        raise ValueError(f"loss_type: {kind!r} is none that this knows: {', '.join(GROUPED)}")
    level, high = given.take("importance_sampling_level"), given.take("epsilon_high")
    whole = level is not None and level.value == "sequence"
    out.choose("gspo" if whole and kind != "cispo" else "cispo" if kind == "cispo" else "grpo", origin)
    low = given.take("epsilon")
    if out.method == "cispo":
        most = high or low or Said(0.2, "TRL's default of epsilon")
        out.set("objective.clip_high", Said(float(most.value) - 1, f"{most.origin}, less 1"))
        if whole and level is not None:
            out.lose(level.origin, "cispo weighs tokens")
    else:
        out.set("objective.clip", low, float)
        out.set("objective.clip_high", high or (low if whole else None), float)
    if out.method == "gspo" and kind != "grpo":
        out.lose(f"loss_type: {kind}", "with sequence ratios a response counts alike whatever its length (grpo's mean)")
    if out.method != "gspo":
        out.set("objective.logp_reduction", Said(GROUPED[kind], origin))
        if GROUPED[kind] == "minibatch_mean":
            out.set("before", Said(["share_tokens"], f"loss_type: {kind} is a mean over the minibatch's tokens"))
    by_ratio = given.take("use_bias_correction_kl") or Said(True, "TRL's default of use_bias_correction_kl")
    if out.method == "grpo":
        beta = given.number("beta", 0.0)
        out.set("objective.kl", beta)
        if beta.value and str(by_ratio.value).lower() != "false":
            out.set("objective.kl_by_ratio", Said(True, by_ratio.origin))
    elif float(given.number("beta", 0.0).value):
        out.lose(f"beta: {given.number('beta', 0.0).value}", f"{out.method} has no KL in its loss")
    scaled = given.take("scale_rewards")
    if scaled is not None and scaled.value in (False, "none", "False"):
        keep = [stage for stage in out.tree()["stages"] if stage != "group_std"]
        out.set("stages", Said(keep, scaled.origin))
    elif scaled is not None and scaled.value == "batch":
        out.lose(scaled.origin, "rewards are scaled by their group's standard deviation here")
    if out.tree().get("minibatch") is not None:
        out.set("minibatch", Said(None, "a round is one optimiser step there"))
    if kind == "dr_grpo":
        out.differs.append("TRL's dr_grpo divides by max_completion_length, which only scales the learning rate")
