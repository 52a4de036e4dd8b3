"""The table of methods and objectives, from the code: `modeseek objectives`."""

import json


def main(words: list[str]) -> int:
    """The table of methods and objectives, from the code."""
    if words and words[0] in ("-h", "--help"):
        print("usage: modeseek objectives [--json]\n\nThe methods and objectives there are, and what each reads.")
        return 0
    if words and words != ["--json"]:
        raise ValueError(f"unknown words {' '.join(words)!r}; there is --json")
    from modeseek import catalogue

    if words:
        print(json.dumps(catalogue.rows(), indent=2))
    else:
        print(catalogue.text())
    return 0
