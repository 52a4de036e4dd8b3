"""The command line: a thin door over public functions. A command is a file of `commands`, imported when it runs."""

import errno
import importlib
import sys
from collections.abc import Callable
from importlib.metadata import version

COMMANDS: dict[str, str] = {
    "quickstart": "show DPO, HyPO and online DPO on a small model, in about three minutes",
    "diagnose": "diagnose MODEL DATA [--reward R]: does it cover this model? will a contrastive run misbehave?",
    "advise": "advise MODEL DATA [--reward R] [--race] [--collect]: which method, which data next, at what cost?",
    "plan": "plan CONFIG [--device H100] [--devices N]: memory, tokens and hours before anything is loaded",
    "train": "train CONFIG --model M --data D: CONFIG is a YAML file or a method's name",
    "check": "check DATA [--model M]: is this data set sound?",
    "collect": "collect MODEL PROMPTS --label SPEC: sample, choose, label, keep; export, import, status",
    "label": "label STORE: a local page on which people say which response is better",
    "iterate": "iterate CONFIG: rounds of collecting, training and evaluating",
    "evaluate": "evaluate POLICY --against REF --prompts P --reward R: did it work?",
    "report": "report RUN...: one HTML page of training runs",
    "export": "export RUN_OR_MODEL OUT [--merge] [--gguf-check] [--push REPO]: a model for other tools",
    "study": "study CONFIG: a grid of runs, claims tested over seeds, one page",
    "import-config": "import-config TOOL FILE: a config of TRL, LLaMA-Factory, Axolotl or OpenRLHF as ours",
    "objectives": "the methods and objectives there are",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 when it did what was asked, 2 when the input was wrong, 1 when the run failed."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"modeseek {version('modeseek')}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, 1)
        said = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
        print(f"modeseek: no command {name!r}{said}", file=sys.stderr)
        return 2
    return _run(name, rest)


def usage() -> str:
    """What `modeseek --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "modeseek: preference fine-tuning of language models that measures first",
            "",
            "usage: modeseek COMMAND ...",
            "",
            *lines,
            "",
            "modeseek COMMAND --help explains a command.",
        ]
    )


def _run(name: str, rest: list[str]) -> int:
    command: Callable[[list[str]], int] = importlib.import_module(f"modeseek.commands.{name.replace('-', '_')}").main
    try:
        return command(rest)
    except ValueError as error:
        print(f"modeseek {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EROFS):
            raise
        print(f"modeseek {name}: {error.filename or 'the disk'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"modeseek {name}: stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from modeseek.train import NotFinite, NothingToLearn

        if not isinstance(error, NotFinite | NothingToLearn):
            raise
        print(f"modeseek {name}: {error}", file=sys.stderr)
        return 1
