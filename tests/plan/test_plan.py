"""What a plan says, against arithmetic by hand."""

import json
import resource
from dataclasses import replace

import pytest

from modeseek.cli import main
from modeseek.config import Hybrid, OnPolicy, Run, StageSpec, load
from modeseek.objectives import DPO, HyPO, PolicyGradient
from modeseek.plan.cost import cost
from modeseek.plan.devices import DEVICES, GIB, device
from modeseek.plan.lengths import Length, Lengths, lengths, responses
from modeseek.plan.memory import cache_per_token, fullest, merged, models, moments
from modeseek.plan.plan import plan, remedies
from modeseek.plan.simulate import Groups, Learner, copied, sizes, training_pass
from modeseek.policies.adapter import Lora
from modeseek.rewards import Length as LengthReward

SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
# q 16x16, k and v 16x8, o 16x16, gate, up, down 16x32, two norms of 16
LAYER = 256 + 128 + 128 + 256 + 3 * 512 + 32
ALL = 2 * 100 * 16 + 3 * LAYER + 16
# rank 2 on each of them: 2 x (in + out)
ADAPTERS = 3 * 2 * (32 + 24 + 24 + 32 + 48 + 48 + 48)
CPU = replace(device("cpu"), utilisation=1.0, streaming=1.0, fp32=1e9, bandwidth=1e6)
KNOWN = Lengths(
    prompt=Length(mean=10, most=40),
    told=Length(mean=6, most=20),
    sampled=Length(mean=4, most=8),
    rows=100,
    said="known",
)


@pytest.fixture
def small(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return str(tmp_path)


def dpo(model, **more):
    stages = (StageSpec(name="refer"),)
    return Run(**({"model": model, "data": "x", "objective": DPO(), "stages": stages, "eval_prompts": 0} | more))


def learner(**more):
    return Learner(**({"config": json.dumps(SMALL)} | more))


def test_parameters_and_their_bytes_are_counted():
    found = sizes(learner())
    assert (found.parameters, found.trained, found.embedding, found.head) == (ALL, ALL, 1600, 1600)
    assert (found.weights, found.gradients, found.largest) == (4 * ALL, 4 * ALL, 4 * 1600)


def test_adapters_are_what_is_trained_under_lora():
    """The frozen base in bfloat16, the adapters in float32."""
    found = sizes(learner(lora=Lora(r=2), dtype="bfloat16"))
    assert (found.parameters, found.trained) == (ALL + ADAPTERS, ADAPTERS)
    assert (found.weights, found.gradients) == (2 * ALL + 4 * ADAPTERS, 4 * ADAPTERS)


def test_a_checkpointed_layer_holds_its_input_alone():
    groups = Groups(2, 2, 5, 3)  # 2 x (5 + 2 x 3) = 22 tokens of 16 numbers of four bytes
    assert training_pass(learner(checkpointing=True), groups).layer == 22 * 16 * 4
    assert training_pass(learner(), groups).layer > 8 * 22 * 16 * 4


def test_a_layers_activations_are_those_that_autograd_saves():
    """Counted by hand for one layer of Llama in float32, in numbers per token: the norm's input, its scaled input and
    its output (3 x 16, and one of the inverse root), queries before and after rotation and attention's output (2 x 16
    and 16), keys and values (8 + 8 + 8), and so on: between the sum of the products' inputs and three times that."""
    tokens = 22
    inputs = 16 + 16 + 16 + 32 + 16 + 2 * 8 + 32  # of q k v, o, gate and up, down; attention's q, k and v; silu's
    layer = training_pass(learner(), Groups(2, 2, 5, 3)).layer
    assert inputs * tokens * 4 < layer < 3 * inputs * tokens * 4


@pytest.mark.slow
def test_activations_grow_with_tokens_and_not_with_how_they_are_grouped():
    one, two = (training_pass(learner(), Groups(n, 2, 16, 8)).layer for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.02)
    merged_row = training_pass(learner(), merged(Groups(8, 2, 16, 8))).layer
    assert merged_row == pytest.approx(8 * one, rel=0.02)


def test_the_weights_of_fsdp_are_shared_out_and_those_of_ddp_are_not(small):
    def weights(parallel, devices):
        found = moments(dpo(small, parallel=parallel), CPU, devices, KNOWN)
        return next(m for m in found if m.name == "optimiser step").parts

    assert weights("fsdp", 4)["weights"] == ALL
    assert weights("fsdp", 4)["optimiser"] == 2 * ALL
    assert weights("auto", 4)["weights"] == 4 * ALL
    assert weights("auto", 4)["reference"] == 4 * ALL


def test_lora_needs_no_second_model(small):
    for moment in moments(dpo(small, lora=Lora(r=2)), CPU, 1, KNOWN):
        assert "reference" not in moment.parts
        assert moment.parts["optimiser"] == 2 * 4 * ADAPTERS


def test_a_smaller_microbatch_takes_less_memory(small):
    of = lambda m: next(x for x in moments(dpo(small, microbatch=m), CPU, 1, KNOWN) if x.name == "training step")
    assert of(1).parts["activations"] < of(8).parts["activations"]
    assert "gradients" in of(8).parts  # those of the micro-batch before it


def test_one_prompt_is_planned_at_the_longest_and_many_near_the_mean(small):
    run = dpo(small)
    assert fullest(run, KNOWN, 1) == Groups(1, 2, 40, 20)
    assert fullest(run, KNOWN, 900) == Groups(900, 2, 11, 7)  # 10 + 30 / 30, 6 + 14 / 30


def test_a_training_step_is_six_operations_a_weight_and_token(small):
    """16 prompts of 10 and two responses of 6: 352 tokens, 192 of them said; the body has 3 layers and a norm.
    Attention: 4 x 16 wide x 3 layers x 16 prompts x (50 + 2 x (60 + 18)) pairs, 3.5 times with the backward."""
    run = dpo(small)
    found = cost(run, models(run, CPU), CPU, 1, KNOWN)
    body, attention = 3 * LAYER + 16, 4 * 16 * 3 * 16 * (50 + 2 * 78)
    assert found.flops["training"] == 6 * body * 352 + 6 * 1600 * 192 + 3.5 * attention
    assert found.flops["scoring"] == 2 * body * 352 + 2 * 1600 * 192 + attention
    assert (found.trained, found.scored, found.sampled) == (352, 352, 0)
    assert found.seconds["training"] == found.flops["training"] / 1e9


def test_the_base_of_lora_has_no_weight_gradient_and_checkpointing_reads_once_more(small):
    def training(**more):
        run = dpo(small, **more)
        return cost(run, models(run, CPU), CPU, 1, KNOWN).flops["training"]

    body, attention = 3 * LAYER + 16, 4 * 16 * 3 * 16 * (50 + 2 * 78)
    lora = 4 * body * 352 + 6 * ADAPTERS * 352 + 4 * 1600 * 192 + 3.5 * attention
    assert training(lora=Lora(r=2)) == lora
    assert training(gradient_checkpointing=True) - training() == 2 * body * 352 + attention


def test_decoding_reads_weights_and_cache_at_every_token(small):
    """16 prompts x 4 rows in one call of 8 tokens, the longest: each reads all weights and the cached keys and values
    of 16 prompts of 10 and 64 responses half way to 4."""
    run = dpo(
        small,
        objective=PolicyGradient(),
        source=OnPolicy(num_generations=4),
        stages=(StageSpec(name="score"), StageSpec(name="group_mean")),
        reward=LengthReward(),
    )
    made = models(run, CPU)
    each = 2 * 3 * 2 * 4 * 4  # keys and values of three layers, two heads of four numbers of four bytes
    assert cache_per_token(made) == each
    moved = 4 * ALL + (16 * 10 + 64 * 2) * each
    found = cost(run, made, CPU, 1, KNOWN)
    assert found.seconds["decoding"] == pytest.approx(8 * moved / 1e6)
    assert found.sampled == 16 * 4 * 4
    assert found.flops["prefill"] == 2 * (3 * LAYER + 16) * 160


def test_a_rollout_on_a_cpu_lays_the_weights_out_anew(small):
    """Queries, keys and values, gate and up once, all of a layer and the output layer once more; the last norm."""
    joined = 256 + 128 + 128 + 2 * 512
    laid_out = 4 * (3 * (joined + LAYER - 2 * 16) + 100 * 16 + 16)
    assert laid_out <= copied(learner()) <= laid_out + 100  # and one position's angles
    with_angles = copied(learner())
    sampled = dpo(small, source=OnPolicy(num_generations=2), stages=(StageSpec(name="score"),), reward=LengthReward())
    drawing = lambda run: next(m for m in moments(run, CPU, 1, KNOWN) if m.name == "drawing a round")
    part = lambda run: drawing(run).parts.get("weights laid out anew", 0)
    assert part(sampled) == with_angles
    assert part(dpo(small)) == 0
    for other in ({"bf16": True}, {"lora": Lora()}, {"dtype": "bfloat16"}, {"on_gpu": True}):
        assert copied(learner(**other)) == 0


def test_steps_of_epochs_come_from_the_rows(small):
    run = dpo(small, num_train_epochs=3)  # 100 rows in rounds of 16: 7 steps an epoch
    assert cost(run, models(run, CPU), CPU, 1, KNOWN).steps == 21
    unknown = cost(run, models(run, CPU), CPU, 1, replace(KNOWN, rows=None))
    assert unknown.steps is None and unknown.hours is None


def test_which_responses_are_learnt_from_follows_from_source_and_stages(small):
    own = OnPolicy(num_generations=4)
    assert responses(dpo(small)) == (2, 0)
    assert responses(dpo(small, source=Hybrid(num_generations=3), objective=HyPO())) == (2, 3)
    assert responses(dpo(small, source=own)) == (0, 4)
    assert responses(dpo(small, source=own, stages=(StageSpec(name="best_worst"),))) == (0, 2)
    assert responses(load("pref_ft")) == (1, 0)


def test_lengths_are_assumed_where_the_data_are_not_there():
    run = load("full/tldr_pythia_1.4b_dpo")
    found = lengths(run, 0.25)
    assert (found.prompt.mean, found.prompt.most) == (128, 512)
    assert (found.told.mean, found.told.most) == (53 / 4, 53)
    assert found.rows == 92_858 - 1000
    assert "25% of max_length 565" in found.said
    with pytest.raises(ValueError, match="fill: 0"):
        lengths(run, 0.0)


def test_lengths_are_measured_where_the_data_are_there(tiny, fable_pairs):
    run = dpo(str(tiny), data=str(fable_pairs), max_length=120, max_completion_length=60, truncate_responses=True)
    found = lengths(run)
    assert found.said == "from the data"
    assert 0 < found.prompt.mean <= found.prompt.most < 120
    assert 0 < found.told.mean <= found.told.most <= 60


@pytest.mark.slow
def test_what_does_not_fit_is_made_to_fit_by_the_cheapest_dials(small):
    run = dpo(small, prompts_per_round=64, max_length=64, max_completion_length=20)
    roomy = plan(run, CPU)
    tight = replace(CPU, memory=0.97 * roomy.peak.total, overhead=0.0)
    tight = replace(tight, memory=0.6 * plan(run, tight).peak.total)
    found = plan(run, tight)
    assert not found.fits
    dials, after = remedies(found)
    assert after is not None and after.fits
    assert set(dials) <= {"--token_budget 256", "--microbatch 1", "--gradient_checkpointing"}
    assert remedies(replace(found, device=replace(tight, memory=1.0)))[1] is None


@pytest.mark.slow
def test_planning_eight_billion_parameters_takes_no_room():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(load("full/ultrafeedback_llama_3_8b_dpo"), device("H100"), 8)
    assert found.parameters == 8_030_261_248
    assert found.fits
    weights = {m.name: m.parts["weights"] for m in found.moments}
    assert weights["training step"] == 4 * 8_030_261_248 / 8
    assert weights["loading"] == 4 * 8_030_261_248  # whole on every device before it is cut
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: less than a GiB


def test_a_device_is_known_or_refused():
    assert {d.memory / GIB for d in DEVICES.values()} == {80, 139, 24, 16}
    with pytest.raises(ValueError, match="device: 'B9000', expected one of H100"):
        device("B9000")
    here = device("this")
    assert here.fp32 > 1e9 and here.memory > GIB


@pytest.mark.slow
def test_the_command_prints_a_plan_and_fails_where_it_does_not_fit(capsys):
    words = ["plan", "full/qwen3_8b_dpo_lora_24gb", "--device", "4090"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 8_190_735_360 + found["trained"]
    assert found["fits"] and found["memory"]["training step"]["total"] < 24 * GIB
    assert main([*words, "--max_length", "16384", "--max_completion_length", "8192"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in said
    assert main(["plan", "full/qwen3_8b_dpo_lora_24gb", "--devices", "0"]) == 2
    assert main(["plan", "dpo"]) == 2  # no model
