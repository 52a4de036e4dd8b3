"""Several policies against several baselines, and judges, on policies small enough that truths can be listed."""

import copy
import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modeseek.batch import Batch
from modeseek.evaluate import answer, judged, over_seeds, share
from modeseek.evaluate.exhibit import exhibit, rows
from modeseek.evaluate.frontier import best_of_n
from modeseek.evaluate.judged import with_wins
from modeseek.evaluate.several import several
from modeseek.policies.causal import CausalPolicy
from modeseek.report.evaluation import render
from modeseek.rewards import Comparison, Judge

END = 0


class Table(nn.Module):
    def __init__(self, seed: int, lean: float = 0.0):
        super().__init__()
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).double()
        self.logits = nn.Parameter(logits + lean * torch.tensor([0.0, 1.0, 0.0]))

    def forward(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        return self.logits[tokens[:, start:]]


def chain(seed: int, lean: float = 0.0) -> CausalPolicy:
    table = Table(seed, lean)
    return CausalPolicy(table, table, eos=[END], max_new=6)


def reward(batch: Batch) -> Tensor:
    return (batch.response == 1).masked_fill(~batch.mask, False).sum(-1).float()


def prompts(n: int) -> Batch:
    context = torch.randint(3, 5, (n,), generator=torch.Generator().manual_seed(0))
    return Batch.of([[int(c)] for c in context], [[[1, 2, 0]] for _ in range(n)])


class Letters:
    def decode(self, ids: list[int]) -> str:
        return "".join("_ab?<"[i] for i in ids if i)


REFERENCE = chain(1)


def answers(*leans: float, n: int = 60, gold: float | None = None):
    found = {}
    for i, lean in enumerate(leans):
        made = answer(chain(1, lean), prompts(n), reward, reference=REFERENCE, seed=10 + i)
        if gold is not None:
            made = tuple(b.fill(gold=b["reward"] - gold * b["reward"] ** 2) for b in made)
        found[f"policy {lean}"] = made
    return found


def baselines(count: int = 1, n: int = 60):
    return {f"base {i}": answer(chain(1, -0.2 * i), prompts(n), reward, seed=100 + i) for i in range(count)}


def test_seeds_are_combined_and_baselines_averaged():
    found = several(answers(0.5, 0.6, 0.7), baselines(2))
    assert len(found.pairs) == 6 and set(found.over_seeds) == {"base 0", "base 1", "all baselines"}
    stack = np.stack([found.wins[p, "base 0"] for p in ("policy 0.5", "policy 0.6", "policy 0.7")])
    assert found.over_seeds["base 0"].estimate.value == pytest.approx(stack.mean())
    assert found.over_seeds["base 0"].estimate.standard_error == over_seeds(stack).estimate.standard_error
    mean = (found.wins["policy 0.5", "base 0"] + found.wins["policy 0.5", "base 1"]) / 2
    assert found.over_baselines["policy 0.5"].value == share(mean).value
    names = {(r.get("policy"), r.get("against")) for r in rows(found)}
    assert ("all 3 seeds", "all baselines") in names and ("policy 0.5", "base 1") in names


def test_one_policy_and_one_baseline_give_plain_rows():
    found = rows(several(answers(1.0), baselines()))
    plain = {"name", "value", "low", "high", "n"}
    assert all(plain <= set(r) <= plain | {"standard_error"} for r in found)
    assert [r["name"] for r in found][3:5] == ["win_rate", "win_rate/length_controlled"]


def test_checkpoints_become_points_and_a_false_proxy_is_found_out():
    # Gold = r - r^2 / 4 rises to r = 2 and falls after: leaning on token 1 is good and then too much.
    found = several(answers(0.0, 1.0, 6.0, n=150, gold=0.25), baselines(n=150), together="checkpoints", gold="gold")
    assert [p.name for p in found.points] == ["policy 0.0", "policy 1.0", "policy 6.0"]
    assert found.points[0].kl.value == 0 < found.points[1].kl.value < found.points[2].kl.value
    assert found.overoptimised.last == "policy 6.0" and found.overoptimised.happened
    assert not found.over_seeds
    with pytest.raises(ValueError, match="together: found 'both'"):
        several(answers(0.0), baselines(), together="both")


@pytest.fixture
def judge(tmp_path):
    """An endpoint that prefers the response with more letters a, and A when they tie."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            a, b = (text.split(f"<response {x} ")[1].split(">\n")[1].split("\n</")[0].count("a") for x in "AB")
            said = json.dumps({"choices": [{"message": {"content": "[[A]]" if a >= b else "[[B]]"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Comparison(Judge(f"http://127.0.0.1:{server.server_port}/v1", "m", cache=str(tmp_path / "c.sqlite")))
    server.shutdown()
    server.server_close()


def test_a_judge_is_asked_in_both_orders_and_its_ties_are_halves(judge):
    ours, theirs = answers(1.0, n=30)["policy 1.0"], baselines(n=30)["base 0"]
    found = judged(ours, theirs, judge, Letters())
    a, b = (torch.cat([x["reward"] for x in side]).double() for side in (ours, theirs))
    assert torch.equal(
        found.wins, ((a > b).double() + (a >= b).double()) / 2
    )  # it says A to ties: both orders undo that
    assert found.counts["order_dependent"] == int((a == b).sum()) - sum(
        x.response[p, 0][x.mask[p, 0]].tolist() == y.response[p, 0][y.mask[p, 0]].tolist()
        for x, y in zip(ours, theirs, strict=True)
        for p in range(len(x))
    )
    mine, other = with_wins(ours, theirs, found)
    compared = several({"p": mine}, {"b": other}, wins={("p", "b"): found.wins.numpy()})
    assert compared.pairs["p", "b"].win_rate.value == pytest.approx(float(found.wins.mean()))
    again = judged(ours, theirs, judge, Letters())
    assert again.counts["asked"] == found.counts["asked"]  # the cache answers


def test_answers_to_other_prompts_are_not_judged(judge):
    ours, theirs = answers(1.0, n=30)["policy 1.0"], baselines(n=29)["base 0"]
    with pytest.raises(ValueError, match="another number of answers"):
        judged(ours, theirs, judge, Letters())


@functools.cache
def made_once():
    found = several(answers(0.0, 1.0, 3.0, n=80, gold=0.25), baselines(n=80), together="checkpoints", gold="gold")
    samples = torch.cat([b["reward"] for b in answer(REFERENCE, prompts(80), reward, samples_per_prompt=8, seed=3)])
    curve = best_of_n(samples.numpy(), gold=(samples - samples**2 / 4).numpy())
    return exhibit(found, Letters(), title="t", told={"reward": "count"}, best_of=curve)


def page():
    return copy.deepcopy(made_once())


def test_the_page_shows_everything_and_loads_nothing():
    html = render(page())
    for words in ("Reward against KL", "The best of N samples", "policy 3.0", "How many prompts", "gap in reward"):
        assert words in html, words
    assert "<script" not in html and "http://" not in html and "https://" not in html
    assert json.loads(json.dumps(page())) is not None


def test_samples_that_differ_most_come_first_and_the_middle_is_left_out():
    found = several(answers(2.0, n=80), baselines(n=80))
    made = exhibit(found, Letters(), title="t", told={})["samples"]
    gaps = [abs(s["ours"]["reward"] - s["theirs"]["reward"]) for s in made]
    assert gaps == sorted(gaps, reverse=True) and len(made) == 80
    from modeseek.evaluate.exhibit import samples

    pair = next(iter(found.pairs))
    short = samples(found.pairs[pair], found.wins[pair], Letters(), shown=11)
    assert short == [*made[:6], *made[-5:]]


def test_the_page_names_the_spread_that_its_sizes_are_of():
    made = page()
    assert f"the spread over prompts seen here ({made['sizes']['deviation']:.2f})" in render(made)
    made["sizes"]["deviation"] = 0.0  # every prompt ended alike, and the sizes are of a coin's
    assert "seen here (0" not in render(made) and "the largest spread that a win rate can have (0.5)" in render(made)


def test_what_a_model_wrote_is_escaped_on_the_page():
    made = page()
    made["samples"][0]["ours"]["text"] = made["samples"][0]["prompt"] = "</pre><script>alert(1)</script>"
    made["title"] = "<script>x</script>"
    html = render(made)
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
