"""The keys that public configs have (values of our own): what changes results is carried over or lost, the rest is not
said to change them."""

import pytest

from modeseek.config import Mixture
from modeseek.migrate import translate
from modeseek.objectives import APO, DPO, KTO, ORPO, PPO, ActorCriticPPO

HANDBOOK = """
model_name_or_path: some/model
torch_dtype: bfloat16
attn_implementation: flash_attention_2
use_peft: true
load_in_4bit: true
lora_r: 64
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: [q_proj, k_proj]
dataset_mixer: {some/pairs: 1.0}
dataset_splits: [train_prefs, test_prefs]
preprocessing_num_workers: 4
bf16: true
beta: 0.02
do_eval: true
eval_strategy: steps
eval_steps: 50
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
hub_model_id: name
learning_rate: 3.0e-6
log_level: info
logging_steps: 5
lr_scheduler_type: cosine
max_length: 512
num_train_epochs: 1
optim: paged_adamw_32bit
output_dir: out
per_device_train_batch_size: 4
per_device_eval_batch_size: 8
push_to_hub: true
save_strategy: steps
save_steps: 0.5
save_total_limit: 1
seed: 3
warmup_ratio: 0.1
"""

HANDBOOK_MIXTURE = """
model_name_or_path: some/model
model_revision: some-tag
dataset_mixture:
  datasets:
    - {id: some/pairs, config: subset, split: one, columns: [chosen, rejected, prompt], weight: 0.5}
    - {id: other/pairs, split: two}
loss_type: apo_zero
beta: 0.05
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
hub_strategy: every_save
logging_strategy: steps
overwrite_output_dir: true
padding_free: true
use_liger_kernel: true
report_to: [wandb]
"""

AXOLOTL_DPO = """
base_model: some/model
model_type: LlamaForCausalLM
tokenizer_type: AutoTokenizer
special_tokens: {pad_token: "<pad>"}
load_in_8bit: true
load_in_4bit: false
chat_template: llama3
rl: dpo
datasets:
  - {path: some/pairs, type: chat_template.default, field_messages: conversation, roles: {user: [user]}}
dataset_prepared_path:
val_set_size: 0.1
sequence_len: 1024
sample_packing: false
pad_to_sequence_len: true
adapter: lora
lora_model_dir:
lora_r: 16
lora_alpha: 8
lora_target_linear: true
wandb_project:
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0001
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
"""

AXOLOTL_KTO = """
base_model: some/model
strict: false
rl: kto
rl_beta: 0.4
kto_desirable_weight: 0.3
datasets: [{path: some/labels, type: llama3.ultra, split: train}]
remove_unused_columns: false
adapter: qlora
eval_sample_packing: false
lora_r: 8
lora_alpha: 16
train_on_inputs: false
group_by_length: false
early_stopping_patience:
eval_max_new_tokens: 128
loss_watchdog_threshold: 5.0
optimizer: adamw_8bit
"""

FACTORY_PPO = """
model_name_or_path: some/model
trust_remote_code: true
reward_model: some/reward
stage: ppo
do_train: true
finetuning_type: lora
lora_target: all
dataset: one,two
template: llama3
cutoff_len: 1024
overwrite_cache: true
preprocessing_num_workers: 4
output_dir: out
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 4
ddp_timeout: 1000
max_new_tokens: 100
top_k: 0
top_p: 0.9
"""

RLHF_DPO = r"""
set -x

read -r -d '' training_commands <<EOF
openrlhf.cli.train_dpo \
   --save_path ./out \
   --save_steps -1 \
   --eval_steps -1 \
   --train_batch_size 64 \
   --micro_train_batch_size 2 \
   --pretrain some/model \
   --ref_pretrain other/model \
   --param_dtype bf16 \
   --max_epochs 1 \
   --max_len 512 \
   --learning_rate 2e-7 \
   --beta 0.3 \
   --lr_scheduler cosine \
   --dataset some/pairs \
   --apply_chat_template \
   --chosen_key better \
   --rejected_key rejected \
   --packing_samples \
   --gradient_checkpointing
EOF
    # --ipo [for IPO]

if [[ ${1} != "slurm" ]]; then
    torchrun --standalone --nproc-per-node ${NPROC_PER_NODE:-8} -m $training_commands
fi
"""

RLHF_PPO = r"""
python3 -m openrlhf.cli.train_ppo_ray \
   --ref_num_nodes 1 \
   --critic_num_gpus_per_node 8 \
   --vllm_num_engines 4 \
   --vllm_sync_backend nccl \
   --colocate_all_models \
   --pretrain some/model \
   --reward_pretrain some/reward \
   --save_hf_ckpt \
   --train_batch_size 64 \
   --rollout_batch_size 256 \
   --n_samples_per_prompt 2 \
   --max_epochs 3 \
   --num_episodes 2 \
   --prompt_max_len 300 \
   --generate_max_len 200 \
   --zero_stage 3 \
   --param_dtype bf16 \
   --actor_learning_rate 4e-7 \
   --critic_learning_rate 9e-6 \
   --init_kl_coef 0.02 \
   --lambd 0.9 \
   --prompt_data some/prompts \
   --input_key context \
   --normalize_reward \
   --lr_scheduler cosine \
   --use_dynamic_batch \
   --train_max_tokens_per_gpu 16384 \
   --enforce_eager
"""


def read(tool, text, tmp_path, **more):
    path = tmp_path / ("run.sh" if tool == "openrlhf" else "run.yaml")
    path.write_text(text)
    return translate(tool, path, **more)


def lost(found):
    return [line.partition(":")[0] for line in found.lost]


def test_the_alignment_handbooks_dpo(tmp_path):
    found = read("trl", HANDBOOK, tmp_path, devices=4)
    run = found.run()
    assert run.objective == DPO(beta=0.02) and run.data == "some/pairs" and run.split == "train_prefs"
    assert run.prompts_per_round == 32 and run.dtype == "bfloat16" and run.optim == "adamw" and run.load_in_4bit
    assert run.eval_steps == 50 and any("save_steps: 0.5: a share" in line for line in found.unneeded)
    assert lost(found) == ["lora_dropout"]


def test_a_mixture_by_shares_of_rows_is_lost_part_by_part(tmp_path):
    found = read("trl", HANDBOOK_MIXTURE, tmp_path)
    run = found.run()
    assert run.objective == APO(beta=0.05, anchor="zero") and run.schedule == "cosine"
    assert run.mixture == (
        Mixture(path="some/pairs", weight=0.5, split="one"),
        Mixture(path="other/pairs", split="two"),
    )
    wanted = ["some/pairs", "config", "lr_scheduler_type", "model_revision", "lr_scheduler_kwargs"]
    assert lost(found) == wanted


def test_axolotls_llama_dpo(tmp_path):
    found = read("axolotl", AXOLOTL_DPO, tmp_path)
    run = found.run()
    assert run.objective == DPO(beta=0.1) and run.lora.target_modules == "all-linear" and run.optim == "adamw_8bit"
    assert run.prompts_per_round == 4 and run.microbatch == 2 and run.eval_size == 0.1 and not run.load_in_4bit
    assert lost(found) == ["load_in_8bit"]


def test_axolotls_kto_and_orpo(tmp_path):
    found = read("axolotl", AXOLOTL_KTO, tmp_path)
    assert found.run().objective == KTO(beta=0.4, desirable=0.3) and found.run().load_in_4bit and lost(found) == []
    found = read("axolotl", AXOLOTL_KTO.replace("rl: kto\nrl_beta", "rl: orpo\norpo_alpha"), tmp_path)
    assert found.run().objective == ORPO(beta=0.4) and lost(found) == ["kto_desirable_weight"]


def test_llama_factorys_ppo(tmp_path):
    found = read("llamafactory", FACTORY_PPO, tmp_path)
    run = found.run()
    assert isinstance(run.objective, ActorCriticPPO) and run.reward.path == "some/reward" and run.trust_remote_code
    assert run.max_completion_length == 100 and [part.path for part in run.mixture] == ["one", "two"]
    assert lost(found) == ["top_p"]


@pytest.mark.parametrize("key", ["ref_model: other/model", "ref_model_adapters: other/adapter"])
def test_another_reference_is_lost_with_its_reason(key, tmp_path):
    (said,) = read("llamafactory", f"stage: dpo\nmodel_name_or_path: m\ndataset: d\n{key}\n", tmp_path).lost
    assert "the reference is the initial policy" in said


def test_openrlhfs_dpo_in_a_here_document(tmp_path):
    """Flags of torchrun and words after the document are none of its own."""
    found = read("openrlhf", RLHF_DPO, tmp_path)
    run = found.run()
    assert run.objective == DPO(beta=0.3) and run.prompts_per_round == 64 and run.microbatch == 2
    assert run.mixture == (Mixture(path="some/pairs", columns={"chosen": "better"}),) and run.model == "some/model"
    assert run.bf16 and run.gradient_checkpointing and run.adam_beta2 == 0.95 and run.max_length == 512
    assert lost(found) == ["ref_pretrain"]


def test_openrlhfs_ppo_batches_count_samples_and_its_rollouts_prompts(tmp_path):
    """256 prompts a round; 64 samples a step are 32 prompts of 2; three epochs over a round, twice over the data."""
    found = read("openrlhf", RLHF_PPO, tmp_path)
    run = found.run()
    assert run.prompts_per_round == 256 and run.minibatch == 32 and run.passes == 3 and run.num_train_epochs == 2
    assert run.microbatch == 2 and run.source.num_generations == 2
    assert run.objective == ActorCriticPPO(clip=0.2, value_clip=0.5, logp_reduction="minibatch_mean")
    options = {stage.name: stage.options for stage in run.stages}
    assert options["kl_per_token"] == {"beta": 0.02} and options["gae"] == {"lam": 0.9}
    assert [stage.name for stage in run.before] == ["share_tokens"] and run.critic == "some/reward"
    assert run.max_completion_length == 200 and run.max_length == 500
    assert run.mixture == (Mixture(path="some/prompts", columns={"prompt": "context"}),)
    assert lost(found) == ["critic_learning_rate", "normalize_reward"]


def test_openrlhfs_estimators_all_have_the_clipped_ratio(tmp_path):
    text = RLHF_PPO.replace("--lambd 0.9", "--advantage_estimator rloo --eps_clip_low_high 0.2 0.3")
    run = read("openrlhf", text, tmp_path).run()
    assert run.objective == PPO(clip=0.2, clip_high=0.3, logp_reduction="minibatch_mean")
    assert "leave_one_out" in [stage.name for stage in run.stages]


def test_groups_before_the_dot_tell_whose_model_it_is(tmp_path):
    text = "python -m openrlhf.cli.train_ppo_ray --actor.model_name_or_path m --reward.model_name_or_path r "
    text += "--ref.model_name_or_path other --data.prompt_dataset x --prompt_data d"
    found = read("openrlhf", text, tmp_path)
    assert found.run().model == "m" and found.run().reward.path == "r"
    assert {"ref_model_name_or_path", "prompt_dataset"} <= {*lost(found)}


@pytest.mark.parametrize(
    ("trainer", "kept"), [("dpo", True), ("kto", True), ("orpo", False), ("online_dpo", False)], ids=str
)
def test_precomputed_reference_log_probs_are_a_reference_cache(trainer, kept, tmp_path):
    """Where a stage asks the reference about the data's responses; else there is nothing to keep."""
    text = "model_name_or_path: m\ndataset_name: d\nprecompute_ref_log_probs: true\nreward_model_path: r\n"
    found = read("trl", text, tmp_path, trainer=trainer)
    run = found.run()
    assert bool(run.reference_cache) == kept
    assert any("precompute_ref_log_probs" in line for line in found.unneeded) != kept


def test_axolotls_precomputed_reference_is_the_same_cache(tmp_path):
    assert read("axolotl", AXOLOTL_DPO + "precompute_ref_log_probs: true\n", tmp_path).run().reference_cache
    assert not read("axolotl", AXOLOTL_DPO + "precompute_ref_log_probs: false\n", tmp_path).run().reference_cache


@pytest.mark.parametrize(
    ("name", "ours"), [("adamw_torch_fused", "adamw"), ("paged_adamw_8bit", "adamw_8bit"), ("lion", None)]
)
def test_optimisers_are_adamw_or_lost(name, ours, tmp_path):
    found = read("trl", f"model_name_or_path: m\ndataset_name: d\nbeta: 0.1\noptim: {name}\n", tmp_path)
    assert found.run().optim == (ours or "adamw") and lost(found) == ([] if ours else ["optim"])
