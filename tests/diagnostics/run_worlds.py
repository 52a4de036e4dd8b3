"""Runs of known state, made on purpose in two unlike kinds of world; what they log is what a real run logs.

`tuned_on` is log-linear: features on a line decide who gets the mass, one context. `judged_on` is a table of logits
with a kernel, several contexts, other sizes, noise, rates. The state is checked against the truth at the end.
"""

import contextlib

import numpy as np
from scipy.special import expit, logsumexp

STATES = ("healthy", "displacement", "drift", "collapse", "over-optimisation")
STEPS = 4000
POINTS = 45  # logged rows of a run; the first third is 15


def tuned_on(state, seed, share=1.0):
    """(rows, truth) of a run in a log-linear world."""
    rng = np.random.default_rng([1, seed, STATES.index(state)])
    A, d = 60, 6
    phi = rng.normal(size=(A, d)) * 0.3
    kind = np.repeat([0, 1, 2, 3], A // 4)  # chosen, rejected, typical others, outside
    axis = {"displacement": (1, 2, 0, 0), "drift": (1, 2, 1.5, 0), "healthy": (2, 0, 1, 1)}.get(state, (1, 0, 0.5, 0.5))
    phi[:, 0] = -np.array(axis)[kind] if state != "healthy" else np.array(axis)[kind]
    mass = {"displacement": (0.2, 0.2, 0.58, 0.02), "drift": (0.4, 0.4, 0.19, 0.01)}.get(state, (0.3, 0.3, 0.38, 0.02))
    log_ref = _spread(rng, kind, mass, 0.5)
    if state in ("healthy", "displacement", "drift"):
        return _run_pairs(
            state, rng, log_ref[None], kind, beta=rng.uniform(0.05, 0.2), kernel=phi @ phi.T, noise=0.03, share=share
        )
    gold, proxy, beta = _rewards(state, rng, kind)
    return _run_reward(
        state, rng, log_ref[None], kind, gold, proxy, beta, kernel=phi @ phi.T + np.eye(A), noise=0.03, share=share
    )


def judged_on(state, seed, share=1.0):
    """(rows, truth) of a run in a table with a kernel: other sizes, geometry, several contexts, more noise."""
    rng = np.random.default_rng([2, seed, STATES.index(state)])
    A, C = 40, int(rng.integers(2, 5))
    kind = np.sort(rng.choice(4, size=A, p=[0.25, 0.25, 0.3, 0.2]))
    kind[:4], kind = [0, 1, 2, 3], np.sort(np.concatenate([[0, 1, 2, 3], kind[4:]]))
    shared, apart = rng.uniform(0.8, 1.2), rng.uniform(0.3, 0.6)
    # who moves with whom: similarity of the four kinds
    similar = {
        "healthy": np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        "displacement": np.array([[1, 1 + apart, 0, 0], [1 + apart, 2.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        "drift": np.array([[1, 1 + apart, 0.9, -0.9], [1 + apart, 3, 1.2, -2], [0.9, 1.2, 1.5, -1], [-0.9, -2, -1, 3]]),
    }.get(state, np.eye(4))
    kernel = shared * similar[kind[:, None], kind[None]] + 0.3 * np.eye(A)
    mass = np.array(
        {"drift": (0.35, 0.35, 0.29, 0.01), "displacement": (0.25, 0.25, 0.48, 0.02)}.get(
            state, (0.25, 0.35, 0.37, 0.03)
        )
    )
    log_ref = np.stack([_spread(rng, kind, mass, 0.8) for _ in range(C)])
    if state in ("healthy", "displacement", "drift"):
        return _run_pairs(state, rng, log_ref, kind, beta=rng.uniform(0.1, 0.4), kernel=kernel, noise=0.05, share=share)
    gold, proxy, beta = _rewards(state, rng, kind)
    return _run_reward(state, rng, log_ref, kind, gold, proxy, beta, kernel=kernel, noise=0.05, share=share)


def _spread(rng, kind, mass, roughness):
    inside = roughness * rng.normal(size=len(kind))
    return np.concatenate([np.log(mass[k]) + inside[kind == k] - logsumexp(inside[kind == k]) for k in range(4)])


def _rewards(state, rng, kind):
    """What is worth what, and what the trained reward believes; beta prices KL."""
    gold = np.array([1.0, 0.0, 0.4, 0.2])[kind] + 0.1 * rng.normal(size=len(kind))
    if state == "over-optimisation":
        proxy = gold + np.array([0.0, 0.0, 0.0, 2.2])[kind]
        return gold - np.array([0, 0, 0, rng.uniform(1, 2)])[kind], proxy, 0.02
    gold[int(rng.integers(len(kind)))] += 3.0  # one response takes all
    return gold, gold, 0.0


def _run_pairs(state, rng, log_ref, kind, *, beta, kernel, noise, share):
    """DPO in function space: logits move by kernel @ the loss's force."""
    C, A = log_ref.shape
    n = 80
    pairs = np.stack([rng.choice(np.flatnonzero(kind == k), size=n) for k in (0, 1)], 1)
    at = rng.integers(C, size=n)
    h = np.zeros((C, A))
    rows, clock = [], Clock(rng, share)
    while clock.runs(len(rows)):
        logp = (log_ref + h) - logsumexp(log_ref + h, axis=1, keepdims=True)
        p, u = np.exp(logp), logp - log_ref
        chosen, rejected = (logp[at, pairs[:, k]].mean() for k in (0, 1))
        m = beta * (u[at, pairs[:, 0]] - u[at, pairs[:, 1]])
        rows.append(
            {
                "logps/chosen": chosen,
                "logps/rejected": rejected,
                "rewards/margins": m.mean(),
                "rewards/accuracies": (m > 0).mean(),
                "eval/kl": (p * u).sum(1).mean(),
                "eval/surprise": -(p * log_ref).sum(1).mean(),
            }
        )
        outside = p[:, kind == 3].sum(1).mean()
        fell = chosen - rows[0]["logps/chosen"]
        sets_in = {"drift": outside > 0.3, "displacement": fell < -0.5, "healthy": m.mean() > beta}[state]
        clock.see(len(rows), sets_in)
        force = np.zeros((C, A))
        np.add.at(force, (at, pairs[:, 0]), expit(-m) / n * C)
        np.add.at(force, (at, pairs[:, 1]), -expit(-m) / n * C)
        h = h + 0.25 * force @ kernel
    truth = {"outside": outside, "chosen": fell}
    return _logged(rng, rows, clock, noise, beta), truth


def _run_reward(state, rng, log_ref, kind, gold, proxy, beta, *, kernel, noise, share):
    """Policy gradient on the proxy less beta KL, tempered by the mass of a response."""
    h = np.zeros_like(log_ref)
    rows, clock, best, least = [], Clock(rng, share), -np.inf, np.inf
    entropy = lambda q: -(q * np.log(np.maximum(q, 1e-300))).sum(1).mean()
    while clock.runs(len(rows)):
        logp = (log_ref + h) - logsumexp(log_ref + h, axis=1, keepdims=True)
        p, u = np.exp(logp), logp - log_ref
        rows.append(
            {
                "reward": (p @ proxy).mean(),
                "eval/kl": (p * u).sum(1).mean(),
                "eval/surprise": -(p * log_ref).sum(1).mean(),
                "eval/gold_reward": (p @ gold).mean(),
            }
        )
        now = rows[-1]["eval/gold_reward"]
        best, least = max(best, now), min(least, now)
        ended = best - now > 0.25 * (best - least) and best > rows[0]["eval/gold_reward"] + 0.05
        sets_in = ended if state == "over-optimisation" else entropy(p) < 0.4 * entropy(np.exp(log_ref))
        clock.see(len(rows), sets_in)
        advantage = proxy - beta * u
        advantage = advantage - (p * advantage).sum(1, keepdims=True)
        h = h + 0.25 * advantage * np.maximum(p, 1e-3) ** 0.5
    truth = {"entropy": entropy(p) / entropy(np.exp(log_ref)), "gold_lost": best - now}
    return _logged(rng, rows, clock, noise, 1.0), truth


class NeverSetsIn(Exception):
    """This world's run is not of the state that it was made for."""


def runs(worlds, state, count, *, first, share=1.0):
    """So many runs of a state, from seeds counted from `first`; worlds in which it never sets in are passed over."""
    found, seed = [], first
    while len(found) < count:
        with contextlib.suppress(NeverSetsIn):
            found.append(worlds(state, seed, share=share))
        seed += 1
    return found


class Clock:
    """A run is so long that its state sets in after 10 to 25% of it; `share` of it is played."""

    def __init__(self, rng, share):
        self.after, self.share, self.stride = rng.uniform(0.1, 0.25) * POINTS, share, None

    def see(self, steps, sets_in):
        if self.stride is None and sets_in:
            self.stride = max(1.0, steps / self.after)

    def runs(self, steps):
        if self.stride is None:
            if steps >= STEPS:
                raise NeverSetsIn
            return True
        return steps <= self.share * POINTS * self.stride


def _logged(rng, rows, clock, noise, scale):
    """The noisy rows of a run, forty-five in all."""
    unit = lambda name: scale if name == "rewards/margins" else 0.0 if name.endswith("accuracies") else 1.0
    return [
        {"step": 10 * i}
        | {name: x + noise * unit(name) * rng.normal() for name, x in rows[int(i * clock.stride)].items()}
        for i in range(int(clock.share * POINTS))
    ]
