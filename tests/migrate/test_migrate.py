"""Configs of other tools, with the keys that public ones use."""

import pytest
import yaml

from modeseek.commands.import_config import main
from modeseek.migrate import translate
from modeseek.objectives import DPO, IPO, PPO, SFT, ActorCriticPPO, WithSFT

TRL_DPO = """
model_name_or_path: some/model
dataset_name: some/pairs
dataset_train_split: train_prefs
beta: 0.05
learning_rate: 5.0e-7
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
num_train_epochs: 2
lr_scheduler_type: cosine
max_length: 2048
gradient_checkpointing: true
precompute_ref_log_probs: true
use_peft: true
lora_r: 64
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
seed: 7
"""


def write(tmp_path, text, name="theirs.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_dpo_config_of_trl_is_the_same_run_here(tmp_path):
    found = translate("trl", write(tmp_path, TRL_DPO), devices=8)
    run = found.run()
    assert run.objective == DPO(beta=0.05) and run.model == "some/model" and run.split == "train_prefs"
    assert run.prompts_per_round == 4 * 8 * 8 and run.microbatch == 4 and run.num_train_epochs == 2
    assert (run.learning_rate, run.schedule, run.max_length, run.seed) == (5e-7, "cosine", 2048, 7)
    assert run.bf16 and run.gradient_checkpointing and run.lora.r == 64 and run.lora.alpha == 16
    assert run.lora.target_modules == ".*(q_proj|v_proj)"
    assert found.lost == [] and run.reference_cache


def test_what_is_printed_is_what_was_translated(tmp_path):
    found = translate("trl", write(tmp_path, TRL_DPO))
    printed = yaml.safe_load(found.render())
    assert printed == found.tree()
    lines = {line.partition(":")[0]: line for line in found.render().splitlines()}
    assert lines["learning_rate"].endswith("# learning_rate: 5e-07")
    assert lines["prompts_per_round"].endswith("# per_device_train_batch_size: 4 x gradient_accumulation_steps: 8")
    assert lines["bf16"].endswith("# TRL's default of bf16")


def test_defaults_that_differ_are_written_out(tmp_path):
    """TRL's epochs, rate, batch and schedule, of which the file says nothing."""
    run = translate("trl", write(tmp_path, "model_name_or_path: m\ndataset_name: d\n"), trainer="dpo").run()
    assert (run.num_train_epochs, run.learning_rate, run.prompts_per_round, run.schedule) == (3, 1e-6, 8, "linear")


LOSSES = {
    "ipo": IPO(tau=0.1, logp_reduction="mean"),
    "sigmoid": DPO(0.1),
    "[sigmoid, sft]": WithSFT(DPO(0.1), nll=1.0),
    "sft": SFT(logp_reduction="minibatch_mean"),
}


@pytest.mark.parametrize("loss, objective", LOSSES.items(), ids=str)
def test_losses_of_trl_become_objectives(loss, objective, tmp_path):
    text = f"model_name_or_path: m\ndataset_name: d\nloss_type: {loss}\n"
    assert translate("trl", write(tmp_path, text), trainer="dpo").run().objective == objective


def test_the_batch_of_grpo_counts_completions(tmp_path):
    text = "num_generations: 4\nper_device_train_batch_size: 8\ngradient_accumulation_steps: 2\nepsilon: 0.2\n"
    text += "epsilon_high: 0.28\nloss_type: dapo\nnum_iterations: 2\nreward_funcs: [some/reward]\nbeta: 0.04\n"
    run = translate("trl", write(tmp_path, text)).run()
    assert run.prompts_per_round == 8 * 2 // 4 and run.source.num_generations == 4 and run.passes == 2
    assert run.objective == PPO(clip=0.2, clip_high=0.28, kl=0.04, logp_reduction="minibatch_mean", kl_by_ratio=True)
    assert [stage.name for stage in run.before] == ["share_tokens"] and run.reward.path == "some/reward"


def test_an_option_without_an_equivalent_is_lost_and_the_status_says_so(tmp_path, capsys):
    path = write(tmp_path, TRL_DPO + "sync_ref_model: true\nsome_new_option: 3\n")
    assert main(["trl", str(path)]) == 1
    said = capsys.readouterr()
    assert "some_new_option: 3: no equivalent" in said.out and "2 settings" in said.err
    assert main(["trl", str(write(tmp_path, TRL_DPO))]) == 0


def test_a_temperature_that_an_on_policy_gradient_cannot_take_is_lost(tmp_path):
    text = "num_generations: 4\nepsilon: 0.2\ntemperature: 0.7\nreward_funcs: r\nper_device_train_batch_size: 4\n"
    found = translate("trl", write(tmp_path, text))
    assert found.run().source.temperature == 1 and any("temperature: 0.7" in line for line in found.lost)


LLAMAFACTORY = """
model_name_or_path: some/model
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.2
pref_loss: sigmoid
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""


def test_a_dpo_config_of_llama_factory(tmp_path):
    found = translate("llamafactory", write(tmp_path, LLAMAFACTORY))
    run = found.run()
    assert run.objective == DPO(beta=0.2) and run.lora.r == 8 and run.lora.alpha == 16
    assert run.lora.target_modules == "all-linear"
    assert run.prompts_per_round == 8 and run.microbatch == 1 and run.max_length == 2048
    assert run.warmup_ratio == 0.1 and run.warmup_steps == 0
    assert any("llama3" in line for line in found.differs)


def test_pref_ftx_is_an_sft_term(tmp_path):
    text = LLAMAFACTORY.replace("pref_loss: sigmoid", "pref_ftx: 0.5")
    assert translate("llamafactory", write(tmp_path, text)).run().objective == WithSFT(DPO(0.2), nll=0.5)


def test_warm_up_in_steps_goes_before_a_share(tmp_path):
    text = LLAMAFACTORY + "max_steps: 200\nwarmup_steps: 7\n"
    run = translate("llamafactory", write(tmp_path, text)).run()
    assert run.warmup_steps == 7 and run.warmup_ratio == 0 and run.max_steps == 200


AXOLOTL = """
base_model: some/model
rl: ipo
rl_beta: 0.3
datasets:
  - path: some/pairs
    split: train
    type: chat_template.default
sequence_len: 2048
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 1
learning_rate: 0.0002
lr_scheduler: cosine
optimizer: adamw_bnb_8bit
adapter: qlora
lora_r: 32
lora_alpha: 64
lora_dropout: 0.05
lora_target_linear: true
flash_attention: true
bf16: auto
"""


@pytest.mark.parametrize(("beta", "kl", "by_ratio"), [("", 0.0, False), ("rl_beta: 0.04\n", 0.04, True)])
def test_axolotl_s_grpo_has_trl_s_kl(tmp_path, beta, kl, by_ratio):
    """TRL's GRPO has beta 0 where nobody says one, and weighs the KL by the ratio."""
    run = translate("axolotl", write(tmp_path, f"base_model: m\nrl: grpo\n{beta}"), devices=1).run()
    assert (run.objective.kl, run.objective.kl_by_ratio) == (kl, by_ratio)


def test_a_config_of_axolotl(tmp_path):
    found = translate("axolotl", write(tmp_path, AXOLOTL), devices=2)
    run = found.run()
    assert run.objective == IPO(tau=0.3, logp_reduction="mean") and run.data == "some/pairs"
    assert run.prompts_per_round == 2 * 4 * 2 and run.microbatch == 2 and run.optim == "adamw_8bit"
    assert run.load_in_4bit and run.lora.r == 32 and run.bf16
    assert [line for line in found.lost if "lora_dropout" in line]


OPENRLHF = r"""
deepspeed --module openrlhf.cli.train_dpo \
   --save_path ./out \
   --train_batch_size 256 \
   --micro_train_batch_size 1 \
   --model.model_name_or_path some/model \
   --bf16 \
   --max_epochs 1 \
   --data.max_len 8192 \
   --zero_stage 3 \
   --adam.lr 5e-7 \
   --model.beta 0.1 \
   --data.dataset some/pairs \
   --data.apply_chat_template \
   --chosen_key chosen \
   --rejected_key rejected \
   --nll_loss_coef 0.2
"""


def test_a_command_line_of_openrlhf(tmp_path):
    found = translate("openrlhf", write(tmp_path, OPENRLHF, "run.sh"))
    run = found.run()
    assert run.objective == WithSFT(DPO(0.1), nll=0.2) and run.learning_rate == 5e-7
    assert run.prompts_per_round == 256 and run.microbatch == 1 and run.max_length == 8192 and run.bf16
    assert run.model == "some/model" and run.data == "some/pairs"


def test_ppo_of_openrlhf_has_a_critic(tmp_path):
    text = "python -m openrlhf.cli.train_ppo_ray --pretrain m --reward_pretrain r --prompt_data d --init_kl_coef 0.02\n"
    run = translate("openrlhf", write(tmp_path, text, "ppo.sh")).run()
    assert isinstance(run.objective, ActorCriticPPO) and run.reward.path == "r"
    assert {s.name: s.options for s in run.stages}["kl_per_token"] == {"beta": 0.02}


@pytest.mark.parametrize(
    "tool, text, says",
    [
        ("trl", "a: [", "not YAML"),
        ("trl", "just words", "expected keys"),
        ("trl", "loss_type: nonsense", "nonsense"),
        ("llamafactory", "stage: pt", "stage: 'pt'"),
        ("axolotl", "base_model: m", "rl: not set"),
        ("openrlhf", "python train.py", "no module"),
    ],
)
def test_a_file_that_is_none_is_told(tool, text, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        translate(tool, write(tmp_path, text))
