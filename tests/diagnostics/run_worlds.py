"""Runs of known state, made on purpose in two unlike kinds of world; what they log is what a real run logs.

`tuning` is log-linear: features on a line decide who gets the mass, one context. `testing` is a table of logits with a
kernel over responses, several contexts, other sizes, noise, rates. The state is checked against the truth at the end.
"""

import numpy as np
from scipy.special import expit, logsumexp

STATES = ("healthy", "displacement", "drift", "collapse", "over-optimisation")
STEPS = 1500
POINTS = 45  # logged rows of a run; the first third is 15


def tuning(state, seed):
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
        return _run_pairs(state, rng, log_ref[None], kind, beta=rng.uniform(0.05, 0.2), kernel=phi @ phi.T, noise=0.03)
    gold, proxy, beta = _rewards(state, rng, kind)
    return _run_reward(state, rng, log_ref[None], kind, gold, proxy, beta, kernel=phi @ phi.T + np.eye(A), noise=0.03)


def testing(state, seed):
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
        return _run_pairs(state, rng, log_ref, kind, beta=rng.uniform(0.1, 0.4), kernel=kernel, noise=0.05)
    gold, proxy, beta = _rewards(state, rng, kind)
    return _run_reward(state, rng, log_ref, kind, gold, proxy, beta, kernel=kernel, noise=0.05)


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


def _run_pairs(state, rng, log_ref, kind, *, beta, kernel, noise):
    """DPO in function space: logits move by kernel @ the loss's force."""
    C, A = log_ref.shape
    n = 80
    pairs = np.stack([rng.choice(np.flatnonzero(kind == k), size=n) for k in (0, 1)], 1)
    at = rng.integers(C, size=n)
    h = np.zeros((C, A))
    rows, sick = [], []
    for _ in range(STEPS):
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
        sick.append({"drift": outside > 0.3, "displacement": fell < -0.5, "healthy": m.mean() > beta}[state])
        force = np.zeros((C, A))
        np.add.at(force, (at, pairs[:, 0]), expit(-m) / n * C)
        np.add.at(force, (at, pairs[:, 1]), -expit(-m) / n * C)
        h = h + 0.1 * force @ kernel
    truth = {"outside": outside, "chosen": fell}
    return _logged(rng, rows, sick, noise, beta), truth


def _run_reward(state, rng, log_ref, kind, gold, proxy, beta, *, kernel, noise):
    """Policy gradient on the proxy less beta KL, tempered by the mass of a response."""
    h = np.zeros_like(log_ref)
    rows, sick = [], []
    entropy = lambda q: -(q * np.log(np.maximum(q, 1e-300))).sum(1).mean()
    for _ in range(STEPS):
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
        golds = [row["eval/gold_reward"] for row in rows]
        ended = max(golds) - golds[-1] > 0.25 * (max(golds) - min(golds)) and max(golds) > golds[0] + 0.05
        sick.append(ended if state == "over-optimisation" else entropy(p) < 0.4 * entropy(np.exp(log_ref)))
        advantage = proxy - beta * u
        advantage = advantage - (p * advantage).sum(1, keepdims=True)
        h = h + 0.1 * advantage * np.maximum(p, 1e-3) ** 0.5
    truth = {"entropy": entropy(p) / entropy(np.exp(log_ref)), "gold_lost": max(golds) - golds[-1]}
    return _logged(rng, rows, sick, noise, 1.0), truth


def _logged(rng, rows, sick, noise, scale):
    """Forty-five noisy rows of a run of which the state sets in after 10 to 25%."""
    assert any(sick), "the state never sets in"
    stride = max(1.0, int(np.argmax(sick)) / (rng.uniform(0.1, 0.25) * POINTS))
    unit = lambda name: scale if name.startswith("rewards/margins") else 0.0 if name.endswith("accuracies") else 1.0
    return [
        {"step": 10 * i}
        | {k: x + noise * unit(k) * rng.normal() for k, x in rows[min(int(i * stride), STEPS - 1)].items()}
        for i in range(POINTS)
    ]
