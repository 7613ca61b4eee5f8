"""What the page on launching prints, and the files in `launch/`, name what exists and do what they say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.main import get_command

import boxwright as bw
from boxwright.cli.app import app
from boxwright.config import apply_overrides

ROOT = Path(__file__).resolve().parents[2]
SLURM, JOB = ROOT / "launch" / "slurm.sh", ROOT / "launch" / "pytorchjob.yaml"
DOCKER, APPTAINER = ROOT / "Dockerfile", ROOT / "launch" / "apptainer.def"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def check_boxwright(words: list[str]) -> None:
    """A command of ours: that it, its options, its recipe and its overrides exist."""
    name, *rest = words
    command = get_command(app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    context = command.make_context(name, list(rest))  # refuses unknown options
    own = ("out", "data.root")
    if name == "train" and context.params["words"][0] in bw.recipes():
        recipe, *overrides = context.params["words"]
        assert any(word.startswith("out=") for word in overrides)
        apply_overrides(bw.recipe(recipe), [w for w in overrides if w.split("=")[0] not in own])


def check_torchrun(words: list[str]) -> None:
    """A command of torchrun: that its options exist, and the command that it starts."""
    arguments = get_args_parser().parse_args(words[1:])
    assert arguments.module
    assert arguments.training_script == "boxwright"
    check_boxwright(arguments.training_script_args)


def test_printed_commands_exist(printed: list[list[str]]) -> None:
    kinds = [words[0] for words in printed]
    assert {"torchrun", "sbatch", "kubectl", "docker", "apptainer"} <= set(kinds)
    for words in printed:
        if "torchrun" in words:
            check_torchrun(words[words.index("torchrun") :])
        elif "boxwright" in words:
            check_boxwright(words[words.index("boxwright") + 1 :])
        elif words[:2] == ["apptainer", "run"]:
            check_boxwright(words[words.index("boxwright.sif") + 1 :])
        elif words[0] == "sbatch":
            check_boxwright(["train", *words[words.index("launch/slurm.sh") + 1 :]])
        for word in words:
            assert not word.startswith("launch/") or (ROOT / word).is_file(), word


@pytest.mark.slow
def test_one_machine_trains_as_printed(
    printed: list[list[str]], small: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    words = next(words for words in printed if "--nproc-per-node=2" in words)
    words = [
        w.replace("datasets/bccd", str(tiny_data)).replace("runs/bccd", str(tmp_path / "run")) for w in words
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words[1:], *small],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "bbox/AP" in (tmp_path / "run" / "evaluation.json").read_text()


# --- SLURM


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Stand-ins for SLURM's commands: they note their words; the step is a process that SIGTERM ends."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": 'echo "srun $*" >>"$NOTES"; echo $$ >"$NOTES.step"\n'
        "trap 'echo saved >>\"$NOTES\"; exit 143' TERM\n"
        'for _ in $(seq "$TENTHS"); do sleep 0.1; done',
        "scontrol": 'echo "scontrol $*" >>"$NOTES"\n[ "$1" != show ] || printf "n1\\nn2\\n"',
        "scancel": 'echo "scancel $*" >>"$NOTES"\nkill -TERM "$(cat "$NOTES.step")"',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"JOB_ID": "71234", "JOB_NODELIST": "n[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "4"}
    return {
        **os.environ,
        **{f"SLURM_{key}": value for key, value in job.items()},
        "SLURM_CPUS_PER_TASK": "32",
        "PATH": f"{folder}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "TENTHS": "2",
    }


def submit(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", str(SLURM), *words], env=environment, stderr=subprocess.PIPE, text=True)


WORDS = ("fcos_r50_fpn_1x", "data.root=/d", "out=/runs/a b")


def test_slurm_starts_one_torchrun_a_node(cluster: dict[str, str]) -> None:
    assert submit(cluster, *WORDS).wait() == 0
    notes = Path(cluster["NOTES"]).read_text().splitlines()
    assert notes[0] == "scontrol show hostnames n[1-2]"
    words = notes[1].split()
    assert words[0] == "srun"
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=n1:21234", "--rdzv-id=71234.0"} <= set(words)
    assert "--cpus-per-task=32" in words  # which srun does not take from sbatch
    start = words.index("torchrun")
    check_torchrun(
        [*words[start : words.index("boxwright")], "boxwright", "train", *WORDS, "--resume", "--quiet"]
    )
    assert words[-2:] == ["--resume", "--quiet"]
    assert len(notes) == 2  # a job that has ended is not requeued


def test_slurm_saves_and_requeues_ahead_of_the_time_limit(cluster: dict[str, str]) -> None:
    job = submit({**cluster, "TENTHS": "100"}, *WORDS)
    step = Path(cluster["NOTES"] + ".step")
    while not (step.exists() and step.read_text()):
        time.sleep(0.02)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 143
    notes = Path(cluster["NOTES"]).read_text().splitlines()
    assert notes[2:] == ["scancel --signal=TERM 71234", "saved", "scontrol requeue 71234"]


def test_slurm_waits_for_a_preempted_run_to_save(cluster: dict[str, str]) -> None:
    job = submit({**cluster, "TENTHS": "5"}, *WORDS)
    step = Path(cluster["NOTES"] + ".step")
    while not (step.exists() and step.read_text()):
        time.sleep(0.02)
    time.sleep(0.1)
    job.send_signal(signal.SIGTERM)  # SLURM signals the step by itself, and requeues
    assert job.wait() == 0
    assert len(Path(cluster["NOTES"]).read_text().splitlines()) == 2


def test_slurm_says_how_it_is_called(cluster: dict[str, str]) -> None:
    job = submit(cluster, "fcos_r50_fpn_1x")
    assert job.wait() == 2
    assert job.stderr is not None
    assert "usage: sbatch launch/slurm.sh RECIPE out=FOLDER" in job.stderr.read()


def test_slurm_asks_for_what_the_page_says() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE))
    assert asked["signal"] == "B:USR1@300"
    assert asked["ntasks-per-node"] == "1"
    assert "requeue" in asked
    [seconds] = re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", SLURM.read_text())
    assert int(seconds) < 300


@pytest.mark.parametrize("script", [SLURM, Path(__file__).with_name("two_hosts.sh")], ids=lambda p: p.name)
def test_shell_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "--severity=warning", str(script)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


# --- Kubernetes

# The fields of kubeflow.org/v1 PyTorchJob that the manifest may have, by place; {} is anything.
ELASTIC = {
    "rdzvBackend",
    "rdzvId",
    "rdzvHost",
    "rdzvPort",
    "minReplicas",
    "maxReplicas",
    "maxRestarts",
    "metrics",
}
POLICY = {"cleanPodPolicy", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit", "suspend"}


def test_the_job_has_the_structure_of_the_operator() -> None:
    [job] = yaml.safe_load_all(JOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert set(spec) <= {"elasticPolicy", "runPolicy", "pytorchReplicaSpecs", "nprocPerNode"}
    assert set(spec["elasticPolicy"]) <= ELASTIC
    assert spec["elasticPolicy"]["rdzvBackend"] == "c10d"
    assert set(spec["runPolicy"]) <= POLICY
    assert spec["runPolicy"]["cleanPodPolicy"] in ("None", "Running", "All")
    # With an elastic policy there are workers alone.
    assert set(spec["pytorchReplicaSpecs"]) == {"Worker"}
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert set(worker) == {"replicas", "restartPolicy", "template"}
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    assert spec["elasticPolicy"]["minReplicas"] <= worker["replicas"] <= spec["elasticPolicy"]["maxReplicas"]


def test_the_pod_is_whole() -> None:
    pod = the_pod()
    [container] = pod["containers"]
    assert container["name"] == "pytorch"  # the operator's default container, which gets its environment
    mounted = [mount["name"] for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in pod["volumes"])
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert "/dev/shm" in paths
    command = container["command"]
    check_torchrun(command)
    for word in command:
        if word.startswith(("data.root=", "out=")):
            assert word.partition("=")[2].startswith(tuple(paths)), f"{word} is on no volume"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(processes(command))
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert all(isinstance(value, str) for value in values.values())
    assert int(values["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def the_pod() -> dict[str, Any]:
    job = yaml.safe_load(JOB.read_text())
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def processes(words: list[str]) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith("--nproc-per-node="))


def test_torchrun_reads_what_the_operator_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("NNODES", "2:2"),
        ("RDZV_BACKEND", "c10d"),
        ("RDZV_ENDPOINT", "boxwright-worker-0:23456"),
    ):
        monkeypatch.setenv(f"PET_{name}", value)
    [container] = the_pod()["containers"]
    arguments = get_args_parser().parse_args(container["command"][1:])
    assert (arguments.nnodes, arguments.rdzv_backend) == ("2:2", "c10d")
    assert arguments.rdzv_endpoint == "boxwright-worker-0:23456"
    assert arguments.nproc_per_node == "8"


# --- containers


def test_the_images_install_extras_that_exist() -> None:
    for file in (DOCKER, APPTAINER):
        asked = re.findall(r"pip install [^\n]*?'[./\w]*\[([\w,]+)\]'", file.read_text())
        assert asked, file
        for extra in ",".join(asked).split(","):
            assert extra in PROJECT["optional-dependencies"], f"{file.name}: no extra {extra}"
    bases = [
        re.search(r"^F(?:ROM|rom:) python:(\d+)\.(\d+)", f.read_text(), re.MULTILINE)
        for f in (DOCKER, APPTAINER)
    ]
    versions = {(int(base[1]), int(base[2])) for base in bases if base}
    assert len(versions) == 1
    assert PROJECT["requires-python"] == ">=3.11"
    assert versions.pop() >= (3, 11)


def test_the_images_have_a_compiler() -> None:
    """Without one the Triton kernels, which are the default on GPUs, end in an error at their first use."""
    for file in (DOCKER, APPTAINER):
        asked = re.search(r"apt-get install ([^&\n]*)", file.read_text())
        assert asked, file
        assert "g++" in asked[1].split()


def test_the_dockerfile_copies_what_is_there_and_sent() -> None:
    lines = DOCKER.read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert steps[0][0] == "FROM"
    assert {step for step, _ in steps} <= {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert {"pyproject.toml", "boxwright"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in sent, f"{name} is not sent to the builder"
    build = {PROJECT["readme"], *PROJECT["license-files"]}
    assert build <= set(copied), "the package does not build without them"
    command = next(rest for step, rest in steps if step == "CMD")
    assert yaml.safe_load(command)[0] in PROJECT["scripts"]


def test_the_apptainer_definition_copies_what_is_there() -> None:
    sections = dict(re.findall(r"^%(\w+)\n((?:(?!^%).*\n)*)", APPTAINER.read_text(), re.MULTILINE))
    assert {"files", "post", "runscript", "test"} <= set(sections)
    copied = [line.split()[0] for line in sections["files"].splitlines() if line.strip()]
    assert {"boxwright", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"exec (\w+) ", sections["runscript"])[1] in PROJECT["scripts"]  # pyright: ignore
    check_words = shlex.split(sections["test"])
    assert check_words[0] in PROJECT["scripts"]
    for name in ("post", "runscript", "test"):
        subprocess.run(["sh", "-n"], input=sections[name], text=True, check=True)
