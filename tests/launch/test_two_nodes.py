"""The command of *Two machines*, as printed, on two hosts made of network namespaces."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOSTS = Path(__file__).with_name("two_hosts.sh")


@pytest.fixture(scope="module")
def two_hosts() -> list[str]:
    """What runs two commands on two hosts that reach each other."""
    missing = [name for name in ("unshare", "ip", "mount", "hostname") if shutil.which(name) is None]
    if missing or sys.platform != "linux":
        pytest.skip(f"no {missing or 'network namespaces'} here")
    command = ["bash", str(HOSTS)]
    tried = subprocess.run([*command, "true", "true"], capture_output=True, text=True, timeout=30)
    if tried.returncode:
        pytest.skip(f"network namespaces are not allowed here: {tried.stderr.strip()[-200:]}")
    return command


def test_the_hosts_are_two(two_hosts: list[str]) -> None:
    tell = "hostname; ip -4 -brief address show scope global"
    done = subprocess.run([*two_hosts, tell, f"sleep 0.2; {tell}"], capture_output=True, text=True)
    words = done.stdout.split()
    assert [words[0], words[4]] == ["node0", "node1"]
    assert "10.77.0.1/24" in words[:4]
    assert "10.77.0.2/24" in words[4:]
    assert subprocess.run([*two_hosts, "exit 3", "true"]).returncode == 3


def on_both(two_hosts: list[str], words: list[str]) -> str:
    """Run the printed command, so changed, on both hosts; what it said on standard error."""
    command = shlex.join([sys.executable, "-m", "torch.distributed.run", *words[1:]])
    done = subprocess.run(
        [*two_hosts, command, command],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LOGLEVEL": "INFO", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def test_two_nodes_meet(two_hosts: list[str], printed: list[list[str]]) -> None:
    [words] = [words for words in printed if "--nnodes=2" in words]
    words = [word.replace("--nproc-per-node=8", "--nproc-per-node=1") for word in words]
    said = on_both(two_hosts, [*words[: words.index("train")], "--version"])
    assert said.count("global_world_sizes=[2]") == 2  # each node's launcher knows of both processes
    assert said.count("group_rank=0") == said.count("group_rank=1") == 1


@pytest.mark.slow
def test_two_nodes_train_together(
    two_hosts: list[str], printed: list[list[str]], small: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    [words] = [words for words in printed if "--nnodes=2" in words]
    words = [word.replace("--nproc-per-node=8", "--nproc-per-node=1") for word in words]
    words = [word.replace("fcos_r50_fpn_1x", "fcos_mnv2_320") for word in words]
    words = [f"data.root={tiny_data}" if word.startswith("data.root=") else word for word in words]
    words = [f"out={tmp_path / 'run'}" if word.startswith("out=") else word for word in words]
    assert on_both(two_hosts, [*words, *small]).count("global_world_sizes=[2]") == 2
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert "bbox/AP" in (tmp_path / "run" / "evaluation.json").read_text()
