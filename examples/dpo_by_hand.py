"""DPO in plain torch, and the same run through the library: the losses agree to 1e-6.

Run it: `python examples/dpo_by_hand.py`. Twelve steps on eight preference pairs of a language of ten words.
"""

import copy

import torch
import torch.nn.functional as F

from modeseek.batch import Batch
from modeseek.objectives import DPO
from modeseek.policies.gpt import gpt_policy
from modeseek.sources import offline
from modeseek.stages import refer
from modeseek.train import Steps, fit

BETA, RATE, STEPS = 0.1, 1e-2, 12

PAIRS = [  # prompt, chosen, rejected; token 0 ends a response
    ([1, 2], [3, 4, 0], [5, 0]),
    ([6], [7, 0], [8, 9, 9, 0]),
    ([2, 2, 2], [3, 0], [4, 4, 0]),
    ([9, 1], [1, 0], [2, 0]),
    ([5, 6, 7], [8, 0], [9, 0]),
    ([4], [4, 5, 6, 0], [0]),
    ([3, 8], [2, 7, 0], [1, 6, 0]),
    ([7, 7], [5, 5, 0], [3, 0]),
]


def logp_of(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log pi(response | prompt): one row, no padding, the logits of position i predict token i + 1."""
    tokens = torch.tensor([prompt + response])
    logits = model(tokens, torch.ones_like(tokens, dtype=torch.bool), 0)[0]
    told = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    return told[len(prompt) - 1 :].sum()


def by_hand(policy: torch.nn.Module) -> list[float]:
    """Rafailov et al. 2023, eq. 7, pair by pair."""
    model, reference = policy.model, copy.deepcopy(policy.model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        total = torch.zeros(())
        for prompt, chosen, rejected in PAIRS:
            with torch.no_grad():
                ref = logp_of(reference, prompt, chosen) - logp_of(reference, prompt, rejected)
            margin = logp_of(model, prompt, chosen) - logp_of(model, prompt, rejected) - ref
            total = total - F.logsigmoid(BETA * margin)
        loss = total / len(PAIRS)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def by_library(policy: torch.nn.Module) -> list[float]:
    """The same, as a source, a stage, an objective and the loop."""
    data = Batch.of([p for p, _, _ in PAIRS], [[chosen, rejected] for _, chosen, rejected in PAIRS])
    reference = copy.deepcopy(policy)
    losses: list[float] = []
    steps = Steps(max_steps=STEPS, learning_rate=RATE)
    keep = lambda loop, row: losses.append(row["loss"])
    fit(policy, DPO(BETA), offline(data, len(PAIRS)), [refer(reference)], steps, watch=keep)
    return losses


def main() -> float:
    """Print both, and return the largest difference."""
    torch.manual_seed(0)
    policy = gpt_policy(10, eos=0, max_new=4)
    hand, library = by_hand(copy.deepcopy(policy)), by_library(policy)
    for step, (a, b) in enumerate(zip(hand, library, strict=True), start=1):
        print(f"step {step:2d}   by hand {a:.7f}   library {b:.7f}   difference {abs(a - b):.1e}")
    return max(abs(a - b) for a, b in zip(hand, library, strict=True))


if __name__ == "__main__":
    assert main() < 1e-6
