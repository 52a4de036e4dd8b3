import html.parser
import math
import re
from pathlib import Path

import numpy as np
import pytest

from modeseek import report
from modeseek.record import Record, RunData, read
from modeseek.report import curves, evaluation, findings, overlap, plots, study_plots
from modeseek.report.curves import Curve, Line, Method, number

XSS = [
    "<script>alert(1)</script>",
    "</pre><img src=http://evil.example/x onerror=alert(1)>",
    "</title><svg onload=alert(1)>",
    "\"' onmouseover=alert(1) x='",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0}$ & &amp; &lt;b&gt;",
]
KNOWN = (
    "html head meta title style body header h1 h2 h3 p section ul li b div table thead tbody tr th td span "
    "figure figcaption svg g path rect circle defs clippath use text tspan code pre details summary"
)
TAGS = set(KNOWN.split())


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: tags, attributes, text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def a_run(path: Path, method: str = "DPO", seed: int = 0, rise: float = 1.0, evaluated: bool = True, **more) -> Path:
    """Eleven steps: reward from 0 to `rise`, KL to 2, chosen -50 to -71, margins to 4."""
    run = Record.start(path, {"objective": {"beta": 0.1}, "seed": seed}, {"method": method, "seed": seed, **more})
    for step in range(0, 11):
        t = step / 10
        run.row({"step": step, "loss": 0.7 - 0.3 * t, "grad_norm": 1.0, "logps/rejected": -50 - 40 * t})
        if evaluated:
            run.row(
                {
                    "step": step,
                    "eval/reward": rise * t + 0.01 * seed,
                    "eval/kl": 2 * t,
                    "eval/logps/chosen": -50 - 21 * t,
                    "eval/rewards/margins": 4 * t,
                }
            )
    run.samples([{"step": 10, "prompt": "tell", "response": f"{method} says", "reward": 1.5, "reference": "ref says"}])
    run.close()
    return path


def a_curve(method: str, *lines: list[float], metric: str = "eval/reward") -> Curve:
    made = [
        Line(Path(f"{method}{i}"), metric, np.arange(len(values)), np.array(values, dtype=float))
        for i, values in enumerate(lines)
    ]
    return Curve(method, metric, tuple(made))


def page(runs, tmp_path, **options) -> str:
    return report.write(runs, tmp_path / "page.html", **options).read_text(encoding="utf-8")


def test_the_page_shows_every_part(tmp_path):
    runs = [a_run(tmp_path / f"{m}{s}", m, s, r) for m, r in (("DPO", -1.0), ("HyPO", 2.0)) for s in (0, 1, 2)]
    source = page(runs, tmp_path)
    for name in ("head", "reward", "frontier", "logps", "pairs", "training", "samples", "cards"):
        assert f'id="{name}"' in source
    text = Page(source).text
    assert "DPO (3 seeds)" in text and "HyPO (3 seeds)" in text
    assert "HyPO ends highest, at 2.01 (2.00 to 2.02 over 3 seeds); DPO lowest, at -0.99" in text
    assert "DPO's by 21.0 nats while its margin grew by 4.00" in text
    assert "HyPO says" in text and "DPO says" in text and "ref says" in text


@pytest.mark.parametrize("evil", XSS)
def test_nothing_that_a_run_holds_becomes_markup(tmp_path, evil):
    name = evil.replace("/", "|")
    run = Record.start(
        tmp_path / name, {evil: evil, "deep": {evil: [evil]}}, {"method": evil, evil: evil, "warnings": [evil]}
    )
    for step in (0, 1):
        row = {"eval/reward": 1.0, "eval/kl": 0.5, "eval/logps/chosen": -1.0, "loss": 0.1, evil: math.nan}
        run.row({"step": step, **row})
    run.samples([{"step": 1, "prompt": evil, "response": evil, "reward": evil, "reference": evil}])
    run.results([{"name": evil, "value": 1.0, "low": 0.0, "high": 2.0, "n": 3}])
    other = Record.start(tmp_path / "other", {}, {"method": "DPO"}).path
    source = page([run.path, other], tmp_path, title=evil)
    seen = Page(source)
    assert seen.tags <= TAGS
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name == "src"]
    assert evil in source.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").replace("&#34;", '"').replace(
        "&amp;", "&"
    )
    assert seen.text.count(" ".join(evil.split())) >= 10


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("two")
    return page([a_run(path / "a"), a_run(path / "b", "HyPO")], path)


def test_the_page_loads_nothing(two_methods):
    source = two_methods
    assert "http" not in source.replace("http-equiv", "")
    assert "@import" not in source and "<script" not in source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))
    links = [value for name, value in Page(source).attributes if name.endswith("href")]
    assert links and all(value.startswith("#") for value in links)
    assert "default-src 'none'" in source


def test_ids_are_unique_and_every_reference_finds_its_own(two_methods):
    source = two_methods
    ids = re.findall(r'\sid="([^"]*)"', source)
    assert len(ids) == len(set(ids))
    assert {*re.findall(r"url\(#([^)]*)\)", source), *re.findall(r'href="#([^"]*)"', source)} <= set(ids)


def test_the_same_runs_make_the_same_page(two_methods, tmp_path):
    assert page([a_run(tmp_path / "a"), a_run(tmp_path / "b", "HyPO")], tmp_path) == two_methods


def test_a_single_run_says_that_its_spread_is_unknown(tmp_path):
    text = Page(page([a_run(tmp_path / "a")], tmp_path)).text
    assert "One seed of each method: no spread is shown" in text
    assert "its spread is unknown" in text
    assert "ends highest" not in text


def test_without_held_out_rows_the_page_uses_training_and_names_what_is_missing(tmp_path):
    text = Page(page([a_run(tmp_path / "a", evaluated=False)], tmp_path)).text
    assert "logps/rejected, in training." in text
    missing = text[text.index("Not drawn, because no run has measured it") :]
    assert "reward ( reward )" in missing and "KL to the reference ( kl )" in missing
    assert "Reward against KL" not in text


def test_pairs_of_training_rows_are_not_said_to_have_moved(tmp_path):
    """Each row is of other pairs: between the first and the last lies what was drawn as well as what was learnt."""
    run = a_run(tmp_path / "r", evaluated=False)
    assert findings.OTHER_PAIRS in page([run], tmp_path) and "by 40.0 nats" not in page([run], tmp_path)
    assert curves.change(curves.methods([read(run)])[0], "logps/rejected") is None
    assert findings.OTHER_PAIRS in page([a_run(tmp_path / "e")], tmp_path)  # its rejected are of training rows alone


def test_held_out_and_training_values_are_never_drawn_together(tmp_path):
    run = Record.start(tmp_path / "b", {}, {"method": "RLOO"})
    run.row({"step": 1, "reward": 99.0})
    other = Record.start(tmp_path / "a", {}, {"method": "DPO"})
    other.row({"step": 1, "eval/reward": 1.0, "reward": 3.0})
    text = Page(page([other.path, run.path], tmp_path)).text
    assert "eval/reward, held out. Not measured by RLOO." in text


def test_numbers_that_are_not_finite_are_left_out_and_warned_of(tmp_path):
    path = a_run(tmp_path / "a")
    run = Record(path)
    run.row({"step": 11, "loss": math.nan, "eval/reward": math.inf})
    run.row({"step": 12, "loss": math.nan})
    source = page([path], tmp_path)
    text = Page(source).text
    assert "loss was not finite at step 11 and 1 more; the plots leave it out." in text
    assert "eval/reward was not finite at step 11;" in text
    assert "nan" not in "".join(re.findall(r' d="([^"]*)"', source)).lower()


def test_a_run_of_nothing_but_nan_still_makes_a_page(tmp_path):
    run = Record.start(tmp_path / "a", {}, {"method": "DPO"})
    run.row({"step": 1, "loss": math.nan, "eval/kl": math.nan})
    text = Page(page([run.path], tmp_path)).text
    assert "loss was not finite at step 1;" in text
    assert "The runs kept no samples" in text


def test_a_run_that_never_logged_makes_a_page_that_says_so(tmp_path):
    run = Record.start(tmp_path / "a", {}, {"method": "DPO"})
    assert "The run has logged no rows." in Page(page([run.path], tmp_path)).text


def test_a_torn_file_is_read_and_warned_of(tmp_path):
    run = Record.start(tmp_path / "a", {}, {"method": "DPO"})
    run.row({"step": 1, "grad_norm": 1.0})
    run.row({"step": 2, "grad_norm": 2.0})
    path = run.path
    rows = (path / "rows.jsonl").read_bytes()
    (path / "rows.jsonl").write_bytes(rows[:-9])
    assert "The last line of rows.jsonl was cut short and is left out." in Page(page([path], tmp_path)).text


def test_a_seed_that_stopped_early_is_warned_of(tmp_path):
    for seed, steps in ((0, (5, 10)), (1, (5, 6))):
        run = Record.start(tmp_path / str(seed), {}, {"method": "DPO", "seed": seed})
        for step in steps:
            run.row({"step": step, "loss": 1.0})
    text = Page(page([tmp_path / "0", tmp_path / "1"], tmp_path)).text
    assert "The run stops at step 6; another of its method goes to 10." in text
    assert "6 to 10" in text


def test_the_samples_shown_are_the_last_of_a_methods_first_run(tmp_path):
    for seed in (1, 0):
        run = Record.start(tmp_path / str(seed), {}, {"method": "DPO", "seed": seed})
        for step in (0, 5):
            run.samples([{"step": step, "prompt": f"p{i}", "response": f"s{seed} at {step}"} for i in range(8)])
    text = Page(page([tmp_path / "1", tmp_path / "0"], tmp_path)).text
    assert text.count("s0 at 5") == 6 and "at 0" not in text and "s1 at" not in text
    assert "6 of 8 prompts" in text and "DPO: seed 0, 0, step 5" in text


def test_settings_that_differ_are_shown_and_equal_ones_are_not(tmp_path):
    for name, beta in (("a", 0.1), ("b", 0.5)):
        Record.start(tmp_path / name, {"objective": {"beta": beta, "kind": "dpo"}, "seed": 3}, {"method": name})
    text = Page(page([tmp_path / "a", tmp_path / "b"], tmp_path)).text
    assert "objective.beta 0.10 0.50" in text
    assert "objective.kind" not in text


def test_a_directory_as_out_gets_a_report(tmp_path):
    run = Record.start(tmp_path / "a", {}, {}).path
    assert report.write([run], tmp_path) == tmp_path / "report.html"
    assert report.write([run], tmp_path / "new/page.html").read_text().startswith("<!doctype html>")


def test_no_runs_and_no_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no runs were named"):
        report.write([], tmp_path / "x.html")
    with pytest.raises(ValueError, match="is not a run"):
        report.table([tmp_path])
    assert not (tmp_path / "x.html").exists()


def test_a_run_named_twice_counts_once(tmp_path):
    run = a_run(tmp_path / "a")
    assert report.table([run, run])[1]["seeds"] == 1


def test_the_table_averages_seeds_with_a_t_interval(tmp_path):
    runs = [a_run(tmp_path / str(s), seed=s, rise=rise) for s, rise in ((0, 1.0), (1, 1.99), (2, 2.98))]
    before, row = report.table(runs)
    assert before["method"] == "step 0" and before["reward"].mean == pytest.approx(0.01)  # (0 + .01 + .02) / 3
    assert row["method"] == "DPO" and row["seeds"] == 3 and row["steps"] == "10"
    # rewards end at 1, 2 and 3: mean 2, standard deviation 1, t(2) = 4.3027, half = 4.3027 / sqrt 3 = 2.4841
    assert row["reward"].mean == pytest.approx(2.0)
    assert (row["reward"].low, row["reward"].high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert str(row["reward"]) == "2.00 [-0.48, 4.48]"
    assert row["chosen log-prob, change"].mean == pytest.approx(-21)


def test_what_evaluate_stored_beats_the_last_row_and_keeps_its_interval(tmp_path):
    run = a_run(tmp_path / "a")
    result = {"name": "reward", "value": 5.0, "low": 4.0, "high": 6.0, "n": 64}
    Record(run).results([result, {"name": "rouge", "value": 0.25}])
    row = report.table([run])[-1]
    assert str(row["reward"]) == "5.00 [4.00, 6.00]" and row["reward"].over == "prompts"
    assert row["rouge"].mean == 0.25


def test_seeds_of_which_only_some_were_evaluated_are_all_read_from_their_rows(tmp_path):
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", seed=1)]
    Record(runs[0]).results([{"name": "reward", "value": 50.0}])
    assert report.table(runs)[-1]["reward"].mean == pytest.approx((1.0 + 1.01) / 2)


def test_an_interval_of_a_share_stays_between_0_and_1():
    runs = [ending_at("degenerate", v) for v in (0.0, 0.4, 1.0)]
    found = curves.final(Method("m", tuple(runs)), "degenerate")
    assert found is not None and (found.low, found.high) == (0.0, 1.0)


def ending_at(metric: str, value: float) -> RunData:
    return RunData(Path(f"r{value}"), {}, {}, [{"step": 1, f"eval/{metric}": value}], [], [])


def test_noisy_training_rows_count_by_their_last_tenth():
    line = Line(Path("r"), "loss", np.arange(20), np.array([0.0] * 18 + [1.0, 3.0]))
    assert line.last == 2.0 and line.first == 0.0
    assert Line(Path("r"), "eval/kl", line.steps, line.values).last == 3.0


def test_runs_are_one_method_by_their_card_else_by_their_directory(tmp_path):
    a_run(tmp_path / "x", "DPO", seed=10)
    a_run(tmp_path / "y", "DPO", seed=2)
    Record.start(tmp_path / "z", {}, {})
    groups = curves.methods([read(tmp_path / name) for name in "xyz"])
    assert [(m.name, [r.path.name for r in m.runs]) for m in groups] == [("DPO", ["y", "x"]), ("z", ["z"])]


def test_a_mean_runs_only_over_steps_that_every_run_has():
    curve = Curve(
        "m",
        "eval/kl",
        (
            Line(Path("a"), "eval/kl", np.array([0, 10, 20]), np.array([0.0, 1.0, 2.0])),
            Line(Path("b"), "eval/kl", np.array([0, 20, 30]), np.array([2.0, 4.0, 9.0])),
        ),
    )
    assert curve.steps.tolist() == [0, 20]
    assert curve.values.mean(0).tolist() == [1.0, 3.0]


def test_a_long_line_is_drawn_as_means_of_consecutive_points():
    x, y = plots.thin(np.arange(5), np.array([0.0, 2.0, 4.0, 6.0, 10.0]), most=3)
    assert x.tolist() == [0.5, 2.5, 4.0] and y.tolist() == [1.0, 5.0, 10.0]
    short = plots.thin(np.arange(3), np.arange(3.0), most=3)
    assert short[1].tolist() == [0.0, 1.0, 2.0]


def test_a_frontier_joins_reward_and_kl_where_a_run_has_both():
    kl = Curve("m", "eval/kl", (Line(Path("a"), "eval/kl", np.array([0, 5]), np.array([0.0, 3.0])),))
    reward = Curve("m", "eval/reward", (Line(Path("a"), "eval/reward", np.array([5, 9]), np.array([1.0, 2.0])),))
    [(x, y)] = plots.paths(kl, reward)
    assert x.values.tolist() == [3.0] and y.values.tolist() == [1.0]


def test_a_fall_from_a_peak_is_told():
    said = findings.best([a_curve("A", [0, 2, 0.5]), a_curve("B", [0, 1, 3])], "reward")
    assert said == "B ends highest, at 3.00; A lowest, at 0.50. A was at 2.00 at step 1 and fell to 0.50."


def test_overlapping_seeds_are_not_called_a_win():
    said = findings.best([a_curve("A", [0, 2], [0, 4]), a_curve("B", [0, 3], [0, 3.5])], "reward")
    assert said == "No method stands out: all end between 3.00 and 3.25, and their seeds overlap."
    said = findings.best([a_curve("A", [2.0], [4.0]), a_curve("B", [3.0], [3.5]), a_curve("C", [0.0])], "reward")
    assert "Seeds of A overlap with those of B." in said


def test_ends_that_print_alike_are_no_range():
    a, b, c = a_curve("A", [0, 2]), a_curve("B", [1, 2.0000001]), a_curve("C", [0, 3])
    assert findings.best([a, b], "reward") == "No method stands out: all end at 2.00."
    assert findings.furthest([a, b], "KL") == "All end at 2.00."
    assert findings.furthest([a, b, c], "KL") == "C ends at 3.00, the most; A at 2.00, the least."


def test_likelihood_displacement_is_told_with_the_margin_beside_it():
    fell, rose = a_curve("DPO", [-50, -71]), a_curve("SFT", [-50, -48])
    said = findings.chosen([fell, rose], [a_curve("DPO", [0, 4])])
    assert said == "The chosen log-prob fell: DPO's by 21.0 nats while its margin grew by 4.00. Not so SFT."
    assert findings.chosen([rose], []) == "The chosen responses became no less likely under any method."


def test_a_method_with_more_reward_at_less_kl_is_said_to_beat_another():
    kl = [a_curve("A", [0, 5]), a_curve("B", [0, 9]), a_curve("C", [0, 1])]
    reward = [a_curve("A", [0, 2]), a_curve("B", [0, 1]), a_curve("C", [0, 0.5])]
    assert findings.frontier(kl, reward) == "A ends with more reward at less KL than B."
    assert findings.frontier(kl[::2], reward[::2]).startswith("No method ends with more reward at less KL")


def test_of_many_methods_only_those_that_moved_furthest_are_named():
    said = findings.moved([a_curve(f"m{i}", [0, i]) for i in range(11)], "loss")
    assert said == (
        "m7: loss from 0 to 7.00; m8 from 0 to 8.00; m9 from 0 to 9.00; m10 from 0 to 10.0; 7 more moved no further."
    )


def of_plot(source: str, name: str) -> list[tuple[str, str, str]]:
    """Colour, dashes and offset of the lines of a plot, in the order in which they are drawn."""
    svg = source[source.index(f'id="{name}-') : source.index("</svg>", source.index(f'id="{name}-'))]
    found = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="fill: none;([^"]*)"', svg)
    word = lambda key, style: next(iter(re.findall(rf" {key}: ([^;]*)", style)), "")
    every = [tuple(word(key, style) for key in ("stroke", "stroke-dasharray", "stroke-dashoffset")) for style in found]
    return [line for line in every if line[0].upper() in {colour.upper() for colour in plots.COLOURS}]


def seen(lines: list[tuple[str, str, str]], at: float) -> str:
    """The colour on top so many points along lines that lie on one another."""
    for colour, dashes, offset in reversed(lines):
        on, off = map(float, dashes.split(",")) if dashes else (math.inf, 0.0)
        if not dashes or (at + float(offset or 0)) % (on + off) < on:
            return colour
    return ""


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_lines_share_their_length_equally(tmp_path, count):
    runs = [a_run(tmp_path / f"m{i}", f"m{i}") for i in range(count)]
    lines = of_plot(page(runs, tmp_path), "reward")
    assert len(lines) == count
    period = 14.4 * count  # dashes of 8 line widths of 1.8 points
    colours = [seen(lines, (i + 0.5) * period / 700) for i in range(700)]
    assert {c: colours.count(c) / 700 for c in colours} == pytest.approx(
        {line[0]: 1 / count for line in lines}, abs=0.01
    )


def test_lines_that_coincide_are_named_under_their_plot_and_others_are_not(tmp_path):
    """All three have the same KL; the reward of the third rises twice as far."""
    runs = [a_run(tmp_path / m, m, rise=r) for m, r in (("DPO", 1.0), ("HyPO", 1.0), ("RLOO", 2.0))]
    source = page(runs, tmp_path)
    text = Page(source).text
    assert "eval/reward, held out. DPO and HyPO coincide: drawn in both colours." in text
    assert "eval/kl, held out. DPO, HyPO and RLOO coincide: drawn in all their colours." in text
    assert "Large: the mean of a method. DPO and HyPO coincide: drawn in both colours." in text
    assert [bool(dashes) for _, dashes, _ in of_plot(source, "reward")] == [False, True, False]


def test_lines_that_stand_apart_are_drawn_as_ever(tmp_path):
    runs = [a_run(tmp_path / m, m, rise=r) for m, r in (("DPO", 1.0), ("HyPO", 1.1))]
    source = page(runs, tmp_path)
    assert [dashes for _, dashes, _ in of_plot(source, "reward")] == ["", ""]
    assert "eval/reward, held out. </p>" not in source and "eval/reward, held out.</p>" in source


@pytest.mark.parametrize(
    ("under", "over", "hidden"),
    [
        ([(0, 0), (10, 10)], [(0, 0), (5, 5), (10, 10)], True),  # other steps of the same line
        ([(2, 2), (4, 4)], [(0, 0), (10, 10)], True),  # a part of it
        ([(0, 0), (10, 10)], [(2, 2), (4, 4)], False),  # its ends stick out
        ([(0, 0), (10, 0)], [(0, 0), (5, 9), (10, 0)], False),  # they meet at both ends only
        ([(0, 0), (10, 0)], [(0, 0.8), (10, 0.8)], True),  # nearer than half a line's width
        ([(0, 0), (10, 0)], [(0, 1), (10, 1)], False),
        ([(3, 3)], [(3, 3)], True),
        ([(3, 3)], [(0, 0), (10, 10)], False),  # a mark is wider than a line
        ([], [(0, 0)], False),
    ],
)
def test_a_line_is_hidden_where_another_one_covers_all_of_it(under, over, hidden):
    points = lambda line: np.array(line, dtype=float).reshape(-1, 2)
    assert overlap.hides(points(over), points(under)) is hidden


def test_marks_of_one_place_lie_in_one_another():
    """A mark is 6 points wide; under another one it has a ring of 5 points in all about it."""
    ones = [a_curve("A", [1.0]), a_curve("B", [1.0]), a_curve("C", [2.0])]
    drawn = plots.over_steps("reward", "reward", ones, [plots.style(i) for i in range(3)])
    shapes = re.findall(r'<path id="[^"]*" d="([^"]*)" style="stroke: (#\w+)', drawn.svg)
    half = {colour: max(float(x) for x in re.findall(r"[\d.]+", d)) for d, colour in shapes}
    assert drawn.same == [["A", "B"]]
    assert [half[colour.lower()] for colour in plots.COLOURS[:3]] == [5.5, 3, 3]


def test_lines_that_a_logarithmic_axis_tells_apart_do_not_coincide():
    """A thousandth of the axis apart if it were linear, which is a sixth of a point."""
    every = [a_curve("A", [1, 2, 2, 2]), a_curve("B", [1, 3, 3, 3]), a_curve("C", [1, 2, 2, 1000])]
    drawn = plots.over_steps("kl", "KL", every, [plots.style(i) for i in range(3)])
    assert "log scale" in drawn.svg and drawn.same == []


def test_a_studys_equal_lines_take_turns_too():
    looks, line = [plots.style(i) for i in range(2)], {"steps": [0, 1], "low": [0, 0], "high": [2, 2]}
    means = [line | {"mean": mean} for mean in ([0, 1], [0, 1])]
    for svg in (
        study_plots.over_steps("reward", "reward", means, looks),
        study_plots.geometry("reward", {"a": [0, 1, 2], "b": [0, 2, 4]}, looks),  # one of the other's shape
    ):
        assert [bool(dashes) for _, dashes, _ in of_plot(svg, "reward")] == [False, True]


def test_a_gold_reward_that_is_the_proxy_does_not_hide_it():
    worth = lambda value: {"low": value - 1, "value": value, "high": value + 1}
    curve = [{"n": n, "proxy": worth(n), "gold": worth(n)} for n in (1, 2, 4, 8)]
    lines = of_plot(evaluation._best_of(curve), "best")
    tops = {seen(lines, at).upper() for at in np.arange(0, 100, 0.5)}
    assert tops == {plots.style(i).colour.upper() for i in (2, 3)}


def test_eleven_methods_look_different():
    styles = [plots.style(i) for i in range(14)]
    assert len(set(styles)) == 14


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0"),
        (-0.4137, "-0.41"),
        (2.345, "2.35"),
        (52.31, "52.3"),
        (1240.4, "1,240"),
        (0.0853, "0.085"),
        (3.14e-5, "3.1e-05"),
        (None, "-"),
        (math.nan, "nan"),
        (9.999, "10.0"),
        (99.97, "100"),
        (-7.0, "-7.00"),
    ],
)
def test_numbers_keep_three_figures(x, text):
    assert number(x) == text
