"""The demo: `modeseek quickstart`."""


def main(words: list[str]) -> int:
    """The demo."""
    from modeseek import quickstart as demo

    return demo.main(words)
