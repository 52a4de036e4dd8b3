"""TRL 1.16's own losses of hand-written log-probabilities, and ours of the same through `import-config trl`.

The answers in trl.json are what TRL 1.16.0 said (`benchmarks/peer_known.py` asks it); there is no TRL here.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml

from modeseek.batch import Batch
from modeseek.build.stages import stage_of
from modeseek.migrate import translate
from modeseek.objectives import call

STORED = json.loads(Path(__file__).with_name("trl.json").read_text())
ANSWERS = STORED["answers"]
INPUTS = STORED["inputs"]
TWICE = "a sum over the pair there, the mean here"
APART = {  # TRL's loss and gradient over ours, where they are not the same
    "bco_pair": (2.0, 2.0, TWICE),
    "sppo_hard": (2.0, 2.0, TWICE),
    "aot_unpaired": (0.5, 1.0, "ours counts a pair of ranks from both ends"),
    "dr_grpo": (1 / STORED["max_completion_length"],) * 2 + ("over the longest response allowed",),
}
CPO_HINGE = (0.3, 0.3, "the hinge is in nats here, so over beta")


def names(answer):
    return answer["trainer"] + ", " + ", ".join(f"{k}={x}" for k, x in answer["keys"].items())


def filled(groups):
    """[P, K, T] from lists of unequal lengths."""
    batch = Batch.of([[1]] * len(groups), [[[5] * len(x) for x in group] for group in groups])
    told = torch.zeros(batch.mask.shape, dtype=torch.float64)
    told[batch.mask] = torch.tensor([x for group in groups for tokens in group for x in tokens], dtype=torch.float64)
    return batch, told


class Says:
    """A policy of which these numbers are known: of the batch, and of the neighbours' responses."""

    def __init__(self, batch, logp, otherwise=None, collision=None):
        self.mask, self.known, self.otherwise, self.agree = batch.mask, logp, otherwise, collision

    def logp(self, batch):
        return self.known.detach() if torch.equal(batch.mask, self.mask) else self.otherwise

    def collision(self, batch):
        return self.agree

    def parameters(self):
        return iter(())

    def sample(self, prompt, prompt_mask, k, rng, **how):
        raise AssertionError("nothing is sampled here")


def pairs():
    told = INPUTS["pairs"]
    batch, logp = filled(told["logp"])
    (_, ref), (_, collision) = filled(told["ref_logp"]), filled(told["collision"])
    return batch, logp.requires_grad_(), Says(batch, logp, collision=collision), Says(batch, ref)


def single():
    told = INPUTS["single"]
    batch, logp = filled(told["logp"])
    (_, ref), (_, wrong), (_, ref_wrong) = (filled(told[name]) for name in ("ref_logp", "wrong", "ref_wrong"))
    batch = batch.fill(label=torch.tensor(told["label"]))
    return batch, logp.requires_grad_(), Says(batch, logp, wrong), Says(batch, ref, ref_wrong)


def own():
    told = INPUTS["own"]
    batch, logp = filled(told["logp"])
    (_, old), (_, ref) = filled(told["old_logp"]), filled(told["ref_logp"])
    advantage = torch.tensor(told["advantage"], dtype=torch.float64)[..., None].expand(logp.shape)
    return batch.fill(old_logp=old, ref_logp=ref, advantage=advantage), logp.requires_grad_(), None, None


def ours(answer, tmp_path):
    """The loss as the loop averages it, and its gradient in the order of TRL's rows."""
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "m", "dataset_name": "d", **answer["keys"]}))
    run = translate("trl", path, trainer=answer["trainer"]).run()
    if answer["inputs"] == "scores":
        told = {name: torch.tensor(x, dtype=torch.float64) for name, x in INPUTS["scores"].items()}
        score = told["score"].requires_grad_()
        objective = type(run.objective)(margin_weight=1.0, centre=run.objective.centre)  # TRL's reads the margin itself
        objective(score, told["margin"]).per_prompt.mean().backward()
        return objective(score, told["margin"]).per_prompt.mean().item(), score.grad.T.flatten().tolist()
    batch, logp, policy, reference = {"pairs": pairs, "single": single, "own": own}[answer["inputs"]]()
    specs = [*([] if answer["inputs"] == "own" else run.stages), *run.before]
    for spec in specs:
        batch = stage_of(spec, {"policy": policy, "reference": reference})(batch)
    if answer["keys"].get("loss_type") == "bco_pair":
        batch = batch.fill(midpoint=torch.zeros(len(batch), dtype=torch.float64))  # TRL has none
    live = {"logp": logp[:, : batch.present.shape[1]]}  # fine-tuning sees the chosen responses alone
    loss = (call(run.objective, batch, live).per_prompt * batch.weight).sum() / len(batch)
    loss.backward()
    rows = logp.grad.flatten(0, 1) if answer["inputs"] == "own" else logp.grad.transpose(0, 1).flatten(0, 1)
    return loss.item(), rows.tolist()


@pytest.mark.parametrize("answer", ANSWERS, ids=names)
def test_a_loss_is_what_trl_said(answer, tmp_path):
    kind = answer["keys"].get("loss_type", "")
    value, gradient, _ = APART.get(kind, (1.0, 1.0, ""))
    if (answer["trainer"], kind) == ("cpo", "hinge"):
        value, gradient, _ = CPO_HINGE
    loss, slope = ours(answer, tmp_path)
    near = 2e-6 if kind == "aot" or answer["trainer"] == "kto" else 1e-6  # what stages fill is in float32
    assert value * loss == pytest.approx(answer["loss"], rel=near)
    got, want = torch.tensor(slope) * gradient, torch.tensor(answer["gradient"])
    torch.testing.assert_close(got, want, rtol=near, atol=1e-7)


def test_trl_said_them():
    assert STORED["said_by"].startswith("trl 1.16") and len(ANSWERS) > 30
