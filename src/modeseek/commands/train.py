"""Train a model: `modeseek train CONFIG [--flags]`."""

import os


def main(words: list[str]) -> int:
    """Train a model: `modeseek train CONFIG [--flags]`."""
    from modeseek import config

    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            words = ["dpo", "--help"]
        else:
            raise ValueError(f"which config? A YAML file or one of {', '.join(config.names())}")
    resume = [w for w in words if w in ("--resume", "--resume=true")]
    run = config.load(words[0], [w for w in words[1:] if w not in resume])
    from modeseek.runs import train as train_run

    folder = train_run(run, resume=bool(resume))
    if os.environ.get("RANK", "0") == "0":  # torchrun's number of this process: one of them speaks
        print(f"{folder}/model is the model; `modeseek report {folder}` makes its page")
    return 0
