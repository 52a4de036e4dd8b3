"""Every published recipe: its settings say where they come from, and all of it runs in small."""

import re
from importlib import resources

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from modeseek.build import refuse
from modeseek.cli import main
from modeseek.config import load, names, read_tree, recipes
from modeseek.plan.architectures import Architecture, architecture, shipped, written_by
from modeseek.plan.dry_run import dry_run, rehearsal
from modeseek.plan.rows import SCHEMAS, write_rows
from modeseek.plan.tiny import shrunk, tokenizer
from modeseek.record import read

RECIPES = recipes()
FOLDER = resources.files("modeseek.configs").joinpath("full")
FILES = sorted(f.name for f in FOLDER.iterdir() if f.name.endswith(".yaml"))
SOURCES = ("code", "site", "notes", "paper", "memory", "details", "ours")
QUIET = Console(quiet=True)


def test_the_recipes_are_the_papers_and_current_models():
    starts = ("alpacafarm_pythia_1.4b", "ultrafeedback_mistral_7b", "tldr_pythia_1.4b", "tldr_pythia_2.8b")
    starts += ("ultrafeedback_llama_3_8b", "qwen3_0.6b", "qwen3_4b", "qwen3_8b", "llama_3.2_1b", "gemma_3_1b")
    many = {start: sum(r.startswith(f"full/{start}_") for r in RECIPES) for start in starts}
    assert list(many.values()) == [9, 3, 4, 4, 2, 2, 2, 2, 2, 2]
    assert sum(many.values()) == len(RECIPES)


def test_recipes_are_not_methods():
    assert not {r.removeprefix("full/") for r in RECIPES} & {*names()}
    assert {load(r).method for r in RECIPES} <= {*names()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_goes_together(recipe):
    run = load(recipe)
    refuse(run)
    assert run.output_dir == f"runs/{recipe}"
    assert run.warmup_steps < run.max_steps


@pytest.mark.parametrize("file", FILES)
def test_every_setting_says_where_it_comes_from(file):
    text = FOLDER.joinpath(file).read_text()
    assert text.startswith("# ")
    for key, rest in re.findall(r"^(\w+):(.*)$", text, re.M):
        if key not in ("extends", "output_dir", "responses"):  # which parts, where to, and the shape of the data
            said = re.findall(r"  # (\w+)", rest)
            assert said and said[0] in SOURCES, key


def test_models_and_rewards_of_a_recipe_are_known_or_written_by_another():
    for recipe in RECIPES:
        run = load(recipe)
        for model in filter(None, (run.model, getattr(run.reward, "path", ""), run.critic)):
            assert model in shipped() or written_by(model) in RECIPES
            architecture(model)
        for data in (run.data, *(m.path for m in run.mixture)):
            assert not data or data in SCHEMAS


@pytest.mark.parametrize("name", [n for n in shipped() if "deduped" not in n and not n.endswith(("-pt", "3-8B"))])
def test_a_shipped_shape_has_the_parameters_that_are_published(name):
    known = dict(shipped()[name].config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(known.pop("model_type"), **known))
    assert sum(p.numel() for p in model.parameters()) == shipped()[name].parameters


def test_a_tiny_model_shares_heads_and_ties_embeddings_as_the_real_one():
    """Gemma 3: four query heads to one key head, tied, two kinds of layers. Llama 3 8B: four to one, untied."""
    gemma, llama = (
        shrunk(architecture(name), tokenizer(None))
        for name in ("google/gemma-3-1b-it", "meta-llama/Meta-Llama-3-8B-Instruct")
    )
    assert (gemma.num_attention_heads, gemma.num_key_value_heads, gemma.tie_word_embeddings) == (4, 1, True)
    assert gemma.layer_types == ["sliding_attention", "full_attention"]
    assert (llama.num_attention_heads, llama.num_key_value_heads, llama.tie_word_embeddings) == (8, 2, False)


@pytest.mark.parametrize(
    ("name", "rendered"),
    {  # as the models' cards show it
        "Qwen/Qwen3-0.6B": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "google/gemma-3-1b-it": "<|begin_of_text|><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "meta-llama/Llama-3.2-1B-Instruct": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    }.items(),
)
def test_a_template_renders_turns_as_the_models_own_does(name, rendered):
    made = tokenizer(architecture(name).template)
    turns = [{"role": "user", "content": "Hi"}]
    assert made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == rendered


def test_every_marker_of_a_template_is_one_token_and_text_comes_back():
    made = tokenizer(architecture("Qwen/Qwen3-0.6B").template)
    assert len(made) < 300
    assert len(made.encode("<|im_start|>a", add_special_tokens=False)) == 2
    assert made.decode(made.encode("Größe, 3 €", add_special_tokens=False)) == "Größe, 3 €"


def test_what_a_rehearsal_replaces_is_said(tmp_path):
    ready = rehearsal(load("full/tldr_pythia_1.4b_hypo"), tmp_path)
    said = {line.partition(":")[0] for line in ready.replaced}
    assert {"model", "data", "reward", "lora", "max_length", "prompts_per_round", "output_dir"} <= said
    assert not {"objective", "source", "stages", "learning_rate", "schedule", "bf16", "seed"} & said
    assert "model: the shape of EleutherAI/pythia-1.4b-deduped" in ready.replaced


def test_unknown_data_and_models_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="data: nobody/nothing is no file"):
        write_rows("nobody/nothing", tmp_path)
    with pytest.raises(ValueError, match="model: nobody/nothing is neither"):
        architecture("nobody/nothing")
    with pytest.raises(ValueError, match="underneath itself"):
        (tmp_path / "a.yaml").write_text(f"extends: {tmp_path}/a.yaml\n")
        read_tree(str(tmp_path / "a.yaml"))


def test_a_config_extends_another_and_changes_only_what_it_says(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: hypo\nobjective: {beta: 0.2}\nsource: {type: offline}\n")
    tree = read_tree(str(tmp_path / "mine.yaml"))
    assert tree["objective"] == {"type": "hypo", "beta": 0.2, "kl": 0.01, "kl_baseline": "leave_one_out"}
    assert tree["source"] == {"type": "offline"}  # another part: nothing of the old one is left
    assert tree["method"] == "hypo"


def test_an_architecture_is_read_from_a_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 4}')
    found = architecture(str(tmp_path))
    assert found == Architecture(name=str(tmp_path), config={"model_type": "llama", "num_attention_heads": 4})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_in_small(recipe, tmp_path):
    """Two optimiser steps of every stage, the evaluation and the page."""
    made = read(dry_run(load(recipe), tmp_path, QUIET))
    steps = [row["step"] for row in made.rows if "loss" in row]
    assert steps == [1, 2]
    assert any(key.startswith("eval/") for row in made.rows for key in row)
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert (tmp_path / "model").is_dir()


@pytest.mark.slow
def test_the_command_line_rehearses_a_recipe(capsys):
    assert main(["train", "full/qwen3_0.6b_dpo_lora_24gb", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "report.html" in said.out and "prompts_per_round: 64 -> 4" in said.err
    assert main(["train", "full/qwen3_0.6b_dpo_lora_24gb", "--dry-run", "--resume"]) == 2
