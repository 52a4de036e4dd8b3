"""The candidates, trained in all worlds at once by the library's own objectives.

A response is a group member of one token, so `logp` is [P, K, 1] with P = worlds x prompts of a minibatch; worlds do
not share weights, hence one backward pass trains them all. Each method has one dial, the one that sets its KL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from modeseek.advise.worlds import Worlds
from modeseek.objectives import DPO, IPO, RWR, SFT, HyPO, Objective, PolicyGradient, may_read, reads
from modeseek.ops import seq

STEPS, PROMPTS, GENERATIONS = 150, 32, 4
DOSES = (0.1, 0.3, 1.0)  # of the steps, where the dial is how long a method trains


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train, with its dial."""

    name: str
    own: bool  # learns from its own samples
    scores: bool  # needs a reward
    dial: str  # the config's key that sets the KL
    dials: tuple[float, ...]  # gentle to bold
    objective: Callable[[float], Objective]
    config: str  # the shipped config that does this with a language model
    changes: Mapping[str, Any] = field(default_factory=dict)
    claim: str = ""  # what the papers say of it
    wrong: str = ""  # when to distrust it


METHODS: tuple[Method, ...] = (
    Method(
        name="sft",
        own=False,
        scores=False,
        dial="max_steps",
        dials=DOSES,
        objective=lambda _: SFT(),
        config="pref_ft",
        claim="enough where good responses are already likely (2404.14367, near peak)",
        wrong="the chosen responses are no better than the model's own",
    ),
    Method(
        name="rwr",
        own=False,
        scores=True,
        dial="objective.beta",
        dials=(2.0, 0.7, 0.3),
        objective=lambda beta: RWR(beta=beta),
        config="rwr",
        changes={"source": {"type": "offline"}, "responses": "keep"},
        claim="mode-covering: moves little where the data cover little (2404.14367)",
        wrong="the reward is wrong on the data's responses",
    ),
    Method(
        name="dpo",
        own=False,
        scores=False,
        dial="objective.beta",
        dials=(1.0, 0.3, 0.1),
        objective=lambda beta: DPO(beta=beta),
        config="dpo",
        claim="needs data that cover everything the policy may move to (2406.01462)",
        wrong="the pairs are far from the model's own responses: mass drifts to what no pair names",
    ),
    Method(
        name="ipo",
        own=False,
        scores=False,
        dial="objective.tau",
        dials=(0.5, 0.15, 0.05),
        objective=lambda tau: IPO(tau=tau),
        config="ipo",
        claim="like DPO, with margins that stop growing",
        wrong="as DPO; and clear and narrow preferences are asked for the same margin",
    ),
    Method(
        name="hypo",
        own=True,
        scores=False,
        dial="objective.kl",
        dials=(0.1, 0.03, 0.005),
        objective=lambda kl: HyPO(beta=0.1, kl=kl, kl_baseline="leave_one_out"),
        config="hypo",
        claim="DPO with its KL bounded on fresh samples: partial coverage is enough (2406.01462)",
        wrong="the pairs themselves are wrong, or DPO with a tuned beta already stays in support",
    ),
    Method(
        name="best_of_n",
        own=True,
        scores=True,
        dial="max_steps",
        dials=DOSES,
        objective=lambda _: SFT(),
        config="best_of_n",
        claim="enough where the peak is likely under the model (2404.14367)",
        wrong="none of N samples is good, or the reward is wrong on the model's own responses",
    ),
    Method(
        name="online_dpo",
        own=True,
        scores=True,
        dial="objective.beta",
        dials=(1.0, 0.3, 0.1),
        objective=lambda beta: DPO(beta=beta),
        config="online_dpo",
        claim="own samples with a negative gradient: best where the peak is unlikely (2404.14367)",
        wrong="the reward is wrong where the policy goes",
    ),
    Method(
        name="policy_gradient",
        own=True,
        scores=True,
        dial="stages.kl_shaped.beta",
        dials=(0.5, 0.15, 0.05),
        objective=lambda _: PolicyGradient(),
        config="rloo",
        claim="own samples: only partial coverage is needed (2406.01462)",
        wrong="the reward is wrong where the policy goes",
    ),
)


@dataclass(frozen=True)
class Arm:
    """A method at one setting of its dial, or doing nothing (no method)."""

    method: Method | None = None
    dial: float = 0.0

    @property
    def name(self) -> str:
        return "nothing" if self.method is None else f"{self.method.name} {self.dial:g}"


ARMS: tuple[Arm, ...] = (Arm(), *(Arm(m, dial) for m in METHODS for dial in m.dials))


def train_all(
    worlds: Worlds, *, steps: int = STEPS, seed: int = 0, tell: Callable[[str], object] = lambda name: None
) -> Float[Tensor, "W C d"]:
    """Every arm's weights in every world, in the order of `ARMS`; doing nothing leaves the reference's."""
    found = [worlds.still()]
    for i, method in enumerate(METHODS):
        tell(method.name)
        if method.dials == DOSES:
            found += train(worlds, method, 0.0, steps=steps, seed=seed + 100 * i, doses=DOSES)
        else:
            for j, dial in enumerate(method.dials):
                found += train(worlds, method, dial, steps=steps, seed=seed + 100 * i + j)
    return torch.stack(found, 1)


def train(
    worlds: Worlds,
    method: Method,
    dial: float,
    *,
    steps: int = STEPS,
    seed: int = 0,
    doses: tuple[float, ...] = (1.0,),
) -> list[Float[Tensor, "W d"]]:
    """One method in every world: its weights after each of the doses, shares of the steps."""
    rng = torch.Generator().manual_seed(seed)
    objective = method.objective(dial)
    named = reads(objective) | may_read(objective)
    ref_logp = worlds.logp(worlds.still())
    added = worlds.still().requires_grad_()  # in units of each world's pace
    optimiser = torch.optim.Adam([added], lr=1.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=steps)
    stops, found = [max(1, round(dose * steps)) for dose in doses], []
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        table = worlds.logp(worlds.pace[:, None] * added)
        given = _round(worlds, method, dial, table, ref_logp, rng)
        loss = objective(**{name: x for name, x in given.items() if name in named})
        (loss.per_prompt.sum() / PROMPTS).backward()  # worlds share no weight: a sum over them is each one's own mean
        optimiser.step()
        schedule.step()
        if step in stops:
            found.append((worlds.pace[:, None] * added).detach().clone())
    return found


def _round(
    worlds: Worlds, method: Method, dial: float, table: Tensor, ref_logp: Tensor, rng: Generator
) -> Mapping[str, Tensor]:
    """What an objective reads of one minibatch of every world, [P, K, 1] and [P, K]."""
    told = _told(worlds, rng)
    places = told
    if method.own:
        own = draw(table.detach(), worlds.contexts, GENERATIONS, rng)  # [W, B, k]
        places = own if method.scores else torch.cat([told, own], -1)
    score = worlds.proxy.gather(1, places.flatten(1)).view(places.shape) if method.scores else None
    if method.name == "sft":
        places = told[..., :1]
    elif method.name in ("best_of_n", "online_dpo"):
        assert score is not None
        best, worst = score.argmax(-1, keepdim=True), score.argmin(-1, keepdim=True)
        at = best if method.name == "best_of_n" else torch.cat([best, worst], -1)
        places = places.gather(-1, at)
    K = places.shape[-1]
    look = lambda t: t.gather(1, places.flatten(1)).view(-1, K, 1)  # [P, K, 1]
    logp, reference = look(table), look(ref_logp)
    everywhere = torch.ones_like(logp, dtype=torch.bool)
    given = {"logp": logp, "ref_logp": reference, "mask": everywhere, "present": everywhere[..., 0]}
    given["fresh"] = torch.arange(K).ge(0 if method.scores else 2).expand(len(logp), K)
    if score is not None and method.name == "rwr":
        given["reward"] = score.view(-1, K)
    if score is not None and method.name == "policy_gradient":
        paid = score.view(-1, K) - dial * seq((logp - reference).detach(), everywhere)  # the KL charged to the reward
        others = (paid.sum(-1, keepdim=True) - paid) / (K - 1)
        given["advantage"] = (paid - others)[..., None]
    return given


def _told(worlds: Worlds, rng: Generator) -> Int[Tensor, "W B 2"]:
    """A minibatch of each world's pairs, with replacement."""
    u = torch.rand(len(worlds), PROMPTS, generator=rng, dtype=torch.float64)
    row = (u * worlds.count[:, None]).long()
    return worlds.pairs.gather(1, row[..., None].expand(-1, -1, 2))


def draw(table: Float[Tensor, "W M"], contexts: int, k: int, rng: Generator) -> Int[Tensor, "W B k"]:
    """`k` responses to each of a minibatch of random prompts, drawn from log-probabilities given their prompt."""
    W = len(table)
    p = table.exp().view(W, contexts, -1)
    edges = p.cumsum(-1) / p.sum(-1, keepdim=True)  # [W, X, A]
    A = edges.shape[-1]
    u = torch.rand(W, PROMPTS * k, generator=rng, dtype=torch.float64)
    if contexts == 1:
        return torch.searchsorted(edges[:, 0].contiguous(), u).clamp(max=A - 1).view(W, PROMPTS, k)
    prompt = torch.randint(contexts, (W, PROMPTS), generator=rng)
    its = edges.gather(1, prompt[..., None].expand(-1, -1, A))  # [W, B, A]
    at = torch.searchsorted(its, u.view(W, PROMPTS, k)).clamp(max=A - 1)
    return at + A * prompt[..., None]
