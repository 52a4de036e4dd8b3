"""How a command finds the data that a word names."""

from pathlib import Path

from modeseek.data.formats import SUFFIXES


def data_file(name: str) -> str:
    """A folder stands for the one data file in it; of several the reader asks for a name."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = [p for p in folder.iterdir() if p.name.removesuffix(".gz").endswith(SUFFIXES)]
    return str(files[0]) if len(files) == 1 else name
