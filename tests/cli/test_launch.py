"""The launch scripts for accelerators: what they would run, and that they run just that."""

import os
import shlex
import subprocess

import pytest
import yaml
from streams import ROOT

TRAIN = ["--config=configs/default.py", "--workdir=/shared/my run", "--config.seed=1"]
COMMAND = ["python3", "-m", "moecl_jax", "train", *TRAIN]
OVER_ALL = "--config.mesh.data=-1"
AUTO = "--coordinator=auto"


def launch(script, *arguments, check=True, path=None):
    environment = {**os.environ, "PYTHON": "python3"}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    result = subprocess.run(
        ["bash", str(ROOT / "launch" / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if check:
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
    return result


def dry_run(script, *arguments):
    return launch(script, *arguments, "--dry-run").stdout


def test_one_gpu():
    words = shlex.split(dry_run("gpu.sh", *TRAIN))
    assert words == ["env", "CUDA_VISIBLE_DEVICES=0", "JAX_PLATFORMS=cuda", *COMMAND]


def test_several_gpus_share_a_batch():
    words = shlex.split(dry_run("gpu.sh", "--gpus=4", *TRAIN))
    assert words[1] == "CUDA_VISIBLE_DEVICES=0,1,2,3"
    assert words[3:] == [*COMMAND, OVER_ALL]


def test_a_mesh_that_is_given_holds():
    words = shlex.split(dry_run("gpu.sh", "--gpus=4", *TRAIN, "--config.mesh.fsdp=4"))
    assert words[3:] == [*COMMAND, "--config.mesh.fsdp=4"]


def test_slurm_runs_a_process_for_each_gpu():
    words = shlex.split(dry_run("slurm.sh", "--nodes=4", *TRAIN))
    assert words[0] == "sbatch"
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", f"--chdir={ROOT}"} < {*words}
    assert "--signal=TERM@120" in words  # time to save before the job is killed
    step = shlex.split(words[-1].removeprefix("--wrap="))
    assert step == ["srun", "--kill-on-bad-exit=1", *COMMAND, OVER_ALL, AUTO]


def test_a_tpu_pod_runs_on_every_host():
    words = shlex.split(dry_run("tpu_pod.sh", "--tpu=pod", "--zone=us-east5-a", *TRAIN))
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert words[6:8] == ["--zone=us-east5-a", "--worker=all"]
    command = shlex.split(words[8].removeprefix("--command="))
    assert command == ["cd", "moecl_jax", "&&", *COMMAND, OVER_ALL, AUTO]


def test_kubernetes_starts_a_pod_for_each_host():
    text = dry_run("kubernetes.sh", "--image=our/moecl:1", "--claim=disk", "--hosts=2", *TRAIN)
    service, job = yaml.safe_load_all(text)
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == "moecl"
    assert pod["terminationGracePeriodSeconds"] == 120
    (container,) = pod["containers"]
    assert container["image"] == "our/moecl:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    (line,) = container["args"]
    processes = ["--coordinator=moecl-0.moecl:1234", "--process=$JOB_COMPLETION_INDEX/2"]
    assert shlex.split(line) == ["exec", *COMMAND, OVER_ALL, *processes]


def test_an_accelerator_is_checked_with_what_is_installed_first(tmp_path):
    arguments = ["--install=jax[cuda13] extra", f"--output={tmp_path}/a.json", "--shape=tiny"]
    *installs, checks = map(shlex.split, dry_run("accelerator_check.sh", *arguments).splitlines())
    pip = ["python3", "-m", "pip", "install", "--quiet"]
    assert installs[0] == [*pip, "jax[cuda13]", "extra", "--editable", "."]
    assert installs[1] == [*pip, "--no-deps", "-r", "launch/demo-requirements.txt"]
    assert checks[:4] == ["python3", "-m", "moecl_jax.bench.accelerator", "--shape=tiny"]
    assert checks[5] == f"--output={tmp_path}/a.json"
    (alone,) = dry_run("accelerator_check.sh").splitlines()
    assert "--shape=llama-2-7b" in shlex.split(alone)


SCRIPTS = {
    "gpu.sh": ("python3", []),
    "slurm.sh": ("sbatch", []),
    "tpu_pod.sh": ("gcloud", ["--tpu=pod", "--zone=z"]),
    "kubernetes.sh": ("kubectl", ["--image=i", "--claim=c"]),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_dry_run_prints_is_what_runs(script, tmp_path):
    program, options = SCRIPTS[script]
    stub = tmp_path / program
    stub.write_text(f'#!/bin/sh\nprintf "%s\\n" {program} "$@"\n[ -t 0 ] || cat\n')
    stub.chmod(0o755)
    printed = dry_run(script, *options, *TRAIN)
    ran = launch(script, *options, *TRAIN, path=tmp_path).stdout
    if program == "kubectl":
        assert ran == f"kubectl\napply\n-f\n-\n{printed}"
    else:
        words = shlex.split(printed)
        assert ran.splitlines() == words[words.index(program) :]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gpu.sh", ["--config=a.py"], "gpu.sh: error: --workdir=... must be given"),
        ("gpu.sh", ["--workdir=a"], "gpu.sh: error: --config=... must be given"),
        ("gpu.sh", [*TRAIN, "--gpus=no"], "gpu.sh: error: --gpus=no must be a number"),
        ("tpu_pod.sh", TRAIN, "tpu_pod.sh: error: --tpu=... must be given"),
        ("accelerator_check.sh", ["--gpu=1"], "--gpu=1 is no option of this script"),
        ("accelerator_check.sh", ["--seconds=x"], "--seconds=x must be a number, 1 or more"),
        (
            "kubernetes.sh",
            ["--image=i", "--claim=c", "--config=a.py", "--workdir=runs/a"],
            "kubernetes.sh: error: --workdir must be in /shared",
        ),
    ],
)
def test_what_is_missing_is_named(script, arguments, message):
    result = launch(script, *arguments, "--dry-run", check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert message in result.stderr
