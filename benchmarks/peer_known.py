"""What TRL 1.16's losses say of hand-written log-probabilities: the known answers of tests/golden/test_trl.py.

    .venv-peers/bin/python benchmarks/peer_known.py            # compare with the stored ones
    .venv-peers/bin/python benchmarks/peer_known.py --write    # store them

The trainer is real and its model is not: asked for log-probabilities it says those below, in float64. So the losses are
TRL's arithmetic alone, to the last digit (ORPO's goes through float32).
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peer_loss_cases import LENGTH, Case, dpo
from peer_loss_ways import data, policy, responses, trainer_of
from torch import Tensor, nn

STORED = Path(__file__).parents[1] / "tests" / "golden" / "trl.json"
PAIRS = {  # [pair][chosen, rejected][token], in nats
    "logp": [
        [[-0.5, -1.2, -0.3], [-1.0, -0.6]],
        [[-2.0, -0.1], [-0.9, -1.3, -0.8, -0.4]],
        [[-0.7, -0.4, -1.1, -0.2], [-1.6]],
    ],
    "ref_logp": [
        [[-0.6, -1.0, -0.5], [-0.8, -0.9]],
        [[-1.5, -0.4], [-1.1, -1.0, -0.5, -0.6]],
        [[-0.9, -0.4, -1.0, -0.6], [-1.2]],
    ],
    "collision": [  # log of the chance that two draws agree, for WPO
        [[-0.4, -0.9, -0.2], [-0.7, -0.5]],
        [[-1.1, -0.1], [-0.8, -0.6, -0.5, -0.3]],
        [[-0.6, -0.2, -0.8, -0.1], [-1.0]],
    ],
}
SINGLE = {  # [row][one][token]; the labels of the rows, and what is said of the neighbour's response
    "logp": [[[-0.5, -1.2, -0.3]], [[-0.9, -1.3]], [[-0.7]]],
    "ref_logp": [[[-0.6, -1.5, -0.5]], [[-1.1, -1.0]], [[-0.4]]],
    "label": [[True], [False], [True]],
    "wrong": [[[-1.9]], [[-2.0, -1.1, -1.4]], [[-1.7, -0.8]]],
    "ref_wrong": [[[-2.2]], [[-1.9, -1.3, -1.6]], [[-1.5, -1.4]]],
}
OWN = {  # [prompt][sample][token], and an advantage a sample
    "logp": [[[-0.5, -1.2, -0.3], [-0.9], [-0.2, -0.6]], [[-1.1], [-0.4, -0.8, -0.5], [-1.9, -0.3]]],
    "old_logp": [[[-0.6, -1.6, -0.2], [-0.8], [-0.7, -0.5]], [[-1.0], [-0.8, -0.5, -0.5], [-1.6, -0.7]]],
    "ref_logp": [[[-0.8, -1.0, -0.3], [-1.1], [-0.4, -0.9]], [[-0.7], [-0.5, -1.0, -0.2], [-1.5, -0.2]]],
    "advantage": [[1.5, -0.75, -0.75], [-0.5, 2.0, -1.5]],
}
SCORES = {"score": [[1.5, 0.25], [-0.5, 0.75], [2.0, 2.5]], "margin": [0.5, 0.0, 1.0]}
INPUTS = {"pairs": PAIRS, "single": SINGLE, "own": OWN, "scores": SCORES}

PAIR_LOSSES = [
    dpo(),
    dpo("hinge"),
    dpo("ipo"),
    dpo("exo_pair", label_smoothing=0.01),
    dpo("nca_pair"),
    dpo("robust", label_smoothing=0.2),
    dpo("robust"),
    dpo("bco_pair"),
    dpo("sppo_hard"),
    dpo("aot"),
    dpo("aot", label_smoothing=0.1),
    dpo("aot_unpaired"),
    dpo("apo_zero"),
    dpo("apo_down"),
    dpo("discopop", discopop_tau=0.07),
    dpo("sigmoid_norm", beta=5.0),
    dpo("sft"),
    dpo(f_divergence_type="forward_kl"),
    dpo(f_divergence_type="js_divergence"),
    dpo(ld_alpha=0.5),
    dpo(use_weighting=True),
]
OWN_LOSSES = [
    {"loss_type": "grpo", "beta": 0.04},
    {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
    {"loss_type": "bnpo", "beta": 0.04},
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "dr_grpo", "beta": 0.04},
    {"loss_type": "cispo", "epsilon_high": 1.1},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
]
CPO_LOSSES = [
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0},
    {"loss_type": "hinge", "beta": 0.3, "cpo_alpha": 0.0},
]
CASES = [
    *(Case("dpo", keys) for keys in PAIR_LOSSES),
    *(Case("cpo", keys) for keys in CPO_LOSSES),
    Case("kto", {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}),
    Case("reward", {"center_rewards_coefficient": 0.1}),
    *(Case("grpo", keys) for keys in OWN_LOSSES),
]


class Told(nn.Module):
    """A model that says one thing after another, whatever it is asked."""

    def __init__(self, *said: Any):
        super().__init__()
        self.said = iter(said)

    def forward(self, *_: Any, **__: Any) -> Any:
        return next(self.said)


def rows(groups: list[Any]) -> tuple[Tensor, Tensor]:
    """[R, T] numbers behind a prompt of one token, and where there are any; chosen in front of rejected."""
    flat = [torch.tensor(group[k], dtype=torch.float64) for k in range(len(groups[0])) for group in groups]
    padded = nn.utils.rnn.pad_sequence(flat, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(x), dtype=torch.long) for x in flat], batch_first=True)
    return padded, mask


def fused(logp: Tensor, collision: Tensor | None = None) -> Any:
    """What TRL's fused output layer says."""
    from trl.trainer.utils import FusedCausalLMOutput

    none = torch.zeros_like(logp.detach())
    return FusedCausalLMOutput(
        log_probs=logp, entropy=none, mean_logits=none, is_top1=none.bool(), log_sum_sq_probs=collision
    )


def _leaf(logp: Tensor, mask: Tensor) -> Tensor:
    """What carries the gradient, and none to where there is no token: TRL's layer says 0 there."""
    return logp.requires_grad_().masked_fill(mask == 0, 0.0)


def _ids(mask: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """Tokens that no one reads, with a prompt of one in front."""
    front = torch.ones(len(mask), 1, dtype=torch.long)
    names = {"attention_mask": torch.cat([front, mask], 1), "completion_mask": torch.cat([0 * front, mask], 1)}
    return {f"{prefix}{key}": x for key, x in {"input_ids": names["attention_mask"] * 5, **names}.items()}


def pairs(trainer: Any, case: Case) -> tuple[Tensor, Tensor]:
    (logp, mask), (ref, _), (collision, _) = (rows(PAIRS[name]) for name in ("logp", "ref_logp", "collision"))
    trainer.ref_model = Told(fused(ref))
    return trainer.compute_loss(Told(fused(_leaf(logp, mask), collision)), _ids(mask)), logp


def without_reference(trainer: Any, case: Case) -> tuple[Tensor, Tensor]:
    logp, mask = rows(PAIRS["logp"])
    total = _leaf(logp, mask).sum(1)
    told = total / mask.sum(1) if case.keys["loss_type"] == "simpo" else total
    return trainer.cpo_loss(*told.chunk(2))[0].mean(), logp


def single(trainer: Any, case: Case) -> tuple[Tensor, Tensor]:
    (logp, mask), (ref, _) = rows(SINGLE["logp"]), rows(SINGLE["ref_logp"])
    (wrong, of), (ref_wrong, _) = rows(SINGLE["wrong"]), rows(SINGLE["ref_wrong"])
    trainer.ref_model = Told(fused(ref_wrong), fused(ref))
    told = {**_ids(mask), **_ids(of, "KL_"), "label": torch.tensor(SINGLE["label"])[:, 0]}
    return trainer.compute_loss(Told(fused(wrong), fused(_leaf(logp, mask))), told), logp


def scores(trainer: Any, case: Case) -> tuple[Tensor, Tensor]:
    score = torch.tensor(SCORES["score"], dtype=torch.float64).T.flatten().requires_grad_()
    told = {"attention_mask": torch.ones(6, 1), "margin": torch.tensor(SCORES["margin"])}
    said = type("Said", (), {"logits": score[:, None]})
    return trainer.compute_loss(Told(said), told), score


def own(trainer: Any, case: Case) -> tuple[Tensor, Tensor]:
    (logp, mask), (old, _), (ref, _) = (_grouped(OWN[name]) for name in ("logp", "old_logp", "ref_logp"))
    logp.requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros_like(logp), None)
    front = torch.ones(len(mask), 1, dtype=torch.long)
    told = {"prompt_ids": front, "prompt_mask": front, "completion_ids": mask, "completion_mask": mask}
    told |= {"old_per_token_logps": old, "ref_per_token_logps": ref, "num_items_in_batch": mask.sum()}
    told |= {"advantages": torch.tensor(OWN["advantage"], dtype=torch.float64).flatten()}
    return trainer.compute_loss(None, told), logp


def _grouped(groups: list[Any]) -> tuple[Tensor, Tensor]:
    """As `rows`, in the order of prompts."""
    return rows([[sample] for group in groups for sample in group])


ASKED: dict[str, tuple[str, Callable[[Any, Case], tuple[Tensor, Tensor]]]] = {
    "dpo": ("pairs", pairs),
    "cpo": ("pairs", without_reference),
    "kto": ("single", single),
    "reward": ("scores", scores),
    "grpo": ("own", own),
}


def answer(case: Case) -> dict[str, Any]:
    """TRL's loss, and its gradient in the order of TRL's rows."""
    kind, ask = ASKED[case.trainer]
    with tempfile.TemporaryDirectory() as name:
        trainer = trainer_of(case, data(responses(case)), policy(case), Path(name))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss, leaf = ask(trainer, case)
    loss.backward()
    assert leaf.grad is not None
    return {"trainer": case.trainer, "inputs": kind, "keys": case.keys, "loss": float(loss)} | {
        "gradient": leaf.grad.tolist()
    }


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--write", action="store_true", help="store what TRL says as the known answers")
    args = ask.parse_args()
    import trl

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    said = {"said_by": f"trl {trl.__version__}", "max_completion_length": LENGTH, "inputs": INPUTS}
    found = said | {"answers": [answer(case) for case in CASES]}
    if args.write:
        STORED.write_text(json.dumps(found, indent=1) + "\n")
    same = json.loads(STORED.read_text()) == json.loads(json.dumps(found))
    print(f"{len(CASES)} losses of {found['said_by']}: {'as stored' if same else 'not as stored'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
