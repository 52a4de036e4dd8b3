"""Partial-coverage worlds of any severity: what DPO does to the mass outside the data, and what a look sees before."""

import numpy as np
from scipy.special import expit, softmax

from modeseek.diagnostics.look import Look


def look_of(features, logp, pairs, own):
    """A Look at a policy with one context: `pairs` [P, 2] and `own` [P, K] are responses, `logp` [A] its table."""
    one = np.ones_like
    return Look(
        own_logp=logp[own],
        told_logp=logp[pairs],
        own_length=one(own, float),
        told_length=one(pairs, float),
        own_features=features[own],
        told_features=features[pairs],
        told_predicting=np.ones((*pairs.shape, 1)),
        told_tokens=[[[int(a)], [int(b)]] for a, b in pairs],
        told_rare=(logp[pairs] < np.log(1e-3)).astype(float),
        sources=[["", ""] for _ in pairs],
        contexts=[0] * len(pairs),
    )


def linear_world(seed, *, pairs=128, samples=8, steps=400, rate=1.0, beta=0.1):
    """(look, mass outside the data's support after DPO): log-linear policy, a spurious feature outside (2406.01462)."""
    rng = np.random.default_rng(seed)
    A, d = 200, 10
    inside = 150
    spurious, mass = rng.uniform(-1.5, 2.5), np.exp(rng.uniform(np.log(0.005), np.log(0.2)))
    phi = rng.normal(size=(A, d))
    phi[inside:, 0] += spurious
    theta = rng.normal(size=d) * rng.uniform(0.2, 1)
    theta[0] = abs(theta[0]) + 0.3
    reward = phi @ theta
    base = rng.normal(size=A) * rng.uniform(0, 1)
    p = np.concatenate([(1 - mass) * softmax(base[:inside]), mass * softmax(base[inside:])])
    drawn = rng.choice(inside, p=p[:inside] / p[:inside].sum(), size=(pairs, 2))
    flip = rng.random(pairs) > expit(reward[drawn[:, 0]] - reward[drawn[:, 1]])
    drawn[flip] = drawn[flip][:, ::-1]
    gaps = phi[drawn[:, 0]] - phi[drawn[:, 1]]
    w = np.zeros(d)
    for _ in range(steps):
        w += rate * beta * gaps.T @ expit(-beta * (gaps @ w)) / pairs
    after = softmax(np.log(p) + phi @ w)
    own = rng.choice(A, p=p, size=(pairs, samples))
    return look_of(phi, np.log(p), drawn, own), float(after[inside:].sum()), float(mass)


def table_world(seed, *, pairs=128, samples=8, steps=700, rate=3.0, beta=1.0):
    """The same for a table of logits (features are cells): 30 responses, 10 to 20 of them in the data."""
    rng = np.random.default_rng(seed)
    A = 30
    inside = int(rng.integers(10, 21))
    reward = rng.normal(size=A)
    lean = rng.uniform(-2, 2)  # how the reference leans to what is worth more
    p = softmax(lean * reward / 1.5 + 0.3 * rng.normal(size=A))
    drawn = np.stack([rng.choice(inside, size=2, replace=False) for _ in range(pairs)])
    flip = rng.random(pairs) > expit(2 * (reward[drawn[:, 0]] - reward[drawn[:, 1]]))
    drawn[flip] = drawn[flip][:, ::-1]
    h = np.zeros(A)
    for _ in range(steps):
        force = expit(-beta * (h[drawn[:, 0]] - h[drawn[:, 1]])) * beta / pairs
        np.add.at(h, drawn[:, 0], rate * force)
        np.add.at(h, drawn[:, 1], -rate * force)
    after = softmax(np.log(p) + h)
    own = rng.choice(A, p=p, size=(pairs, samples))
    return look_of(np.eye(A), np.log(p), drawn, own), float(after[inside:].sum()), float(p[inside:].sum())
