"""Rendered files are valid for the programs that read them, say what the recipe says, and hold no secret."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagpr_rl.cli import main
from tagpr_rl.config import Recipe, load_recipe
from tagpr_rl.deploy.render import FILES, as_text, locked_version, object_name, render, write_files
from tagpr_rl.types import TagprError

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ROOT / "recipes" / "smoke.yaml"
EVERYTHING = (
    "cluster={storage: /mnt/runs, node_type: p5en.48xlarge, accelerator: H200, cpus: 96, memory_gb: 512, shm_gb: 64, "
    'time_limit_h: 48, retries: 2, env: [WANDB_API_KEY, HF_TOKEN], setup: ["echo \'x: y\'", "a\\nb"], '
    "kubernetes: {storage_claim: claim, namespace: team, env_secret: keys}, slurm: {partition: gpu, account: lab}}"
)
STAGES = ("stages.base.batch_size=32", "stages.sft.batch_size=32", "stages.guided.micro_batch_size=1",
          "stages.explore.micro_batch_size=1")  # fmt: skip
OVERRIDES = ('data.tasks=[LaMP_1, "LaMP_2"]', "log.project=it's")


def made(device: str, nodes: int, *more: str) -> Recipe:
    size = (f"platform.device={device}", f"platform.nodes={nodes}", "platform.devices_per_node=8")
    return load_recipe(SMOKE, (EVERYTHING, *size, *STAGES, *OVERRIDES, *more))


def files(target: str, device: str, nodes: int, *more: str) -> dict[str, str]:
    return render(made(device, nodes, *more), target, SMOKE, OVERRIDES)


CASES = pytest.mark.parametrize("device, nodes", [("cpu", 1), ("cpu", 4), ("cuda", 1), ("cuda", 4)])


@CASES
@pytest.mark.parametrize("target", FILES)
def test_every_target_runs_the_recipe_as_given(
    target: str, device: str, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    text = as_text(files(target, device, nodes))
    assert "s3cret" not in text
    assert target == "docker" or ("WANDB_API_KEY" in text and "HF_TOKEN" in text)
    assert str(ROOT) not in text


def ray_processes(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


@CASES
def test_kuberay_manifests_meet_kuberays_schema(
    device: str, nodes: int, kuberay_schemas: dict[str, dict[str, Any]]
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for text in files("kuberay", device, nodes).values():
        manifest = yaml.safe_load(text)
        validator = jsonschema.Draft7Validator(kuberay_schemas[manifest["kind"]])
        assert [error.message for error in validator.iter_errors(manifest)] == []
        misspelt = yaml.safe_load(text.replace("mountPath:", "mountpath:").replace('num-gpus: "8"', "num-gpus: 8"))
        mistakes = {error.message for error in validator.iter_errors(misspelt)}
        assert "'mountPath' is a required property" in mistakes and "8 is not of type 'string'" in mistakes


@CASES
def test_kuberay_asks_for_the_platforms_nodes_and_devices(device: str, nodes: int) -> None:
    written = {name: yaml.safe_load(text) for name, text in files("kuberay", device, nodes).items()}
    job, cluster = written["rayjob.yaml"], written["raycluster.yaml"]
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert cluster["metadata"] == {"name": "smoke", "namespace": "team"}
    groups = ray_processes(cluster["spec"])
    assert sum(group.get("replicas", 1) for group in groups) == nodes
    for group in groups:
        # 8 devices x 3 + 12
        assert group["rayStartParams"]["num-cpus"] == "36" and group["rayStartParams"]["num-gpus"] == "8"
        (container,) = group["template"]["spec"]["containers"]
        limits = {"memory": "512Gi"} | ({"nvidia.com/gpu": "8"} if device == "cuda" else {})
        assert container["resources"] == {"requests": {"cpu": "96", "memory": "512Gi"}, "limits": limits}
        assert [item["name"] for item in container["env"]] == ["WANDB_API_KEY", "HF_TOKEN"]
        for item in container["env"]:
            secret = {"name": "keys", "key": item["name"]}
            assert set(item) == {"name", "valueFrom"} and secret.items() <= item["valueFrom"]["secretKeyRef"].items()
        assert container["volumeMounts"][1]["mountPath"] == "/mnt/runs"
    words = shlex.split(job["spec"]["entrypoint"])
    # In K8sJobMode a shell in the submitter pod would split the command at && (ray-project/kuberay issue 3929).
    assert job["spec"]["submissionMode"] == "HTTPMode"
    assert words[:4] == ["cd", "/opt/tagpr_rl", "&&", "python"]
    assert words[-2:] == ["out=/mnt/runs", "platform.ray_address=auto"] and set(OVERRIDES) < set(words)
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (2, 48 * 3600)


@CASES
def test_slurm_scripts_parse_and_ask_for_the_platform(device: str, nodes: int, tmp_path: Path) -> None:
    (text,) = files("slurm", device, nodes).values()
    script = tmp_path / "slurm.sbatch"
    script.write_text(text, encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))
    expected = {"nodes": str(nodes), "ntasks-per-node": "1", "cpus-per-task": "96", "mem": "512G", "time": "48:00:00",
                "partition": "gpu", "account": "lab", "constraint": "p5en.48xlarge"}  # fmt: skip
    assert expected.items() <= options.items()
    assert options.get("gres") == ("gpu:h200:8" if device == "cuda" else None)
    assert options["export"].endswith("VENV,WANDB_API_KEY,HF_TOKEN") and "ALL" not in options["export"]
    first_command = next(line for line in text.splitlines() if line and not line.startswith("#"))
    assert text.index("#SBATCH --export") < text.index(first_command), "sbatch reads no options after a command"
    assert ("ray start" in text) == (nodes > 1)
    run = re.search(r"^run=\((.*)\)$", text, re.MULTILINE)
    assert run is not None and set(OVERRIDES) < set(shlex.split(run.group(1)))


@CASES
def test_skypilot_tasks_ask_for_the_platform(device: str, nodes: int, tmp_path: Path) -> None:
    (text,) = files("skypilot", device, nodes).values()
    task = yaml.safe_load(text)
    assert task["num_nodes"] == nodes and task["resources"]["instance_type"] == "p5en.48xlarge"
    token = {"RAY_AUTH_TOKEN": None} if nodes > 1 else {}
    assert task["secrets"] == {"WANDB_API_KEY": None, "HF_TOKEN": None, **token}
    assert ("export RAY_AUTH_MODE=token" in task["run"]) == (nodes > 1)
    assert task["setup"] == "echo 'x: y'\na\nb\n"
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)
    (other,) = files("skypilot", device, nodes, "cluster.node_type=null").values()
    assert yaml.safe_load(other)["resources"].get("accelerators") == ("H200:8" if device == "cuda" else None)


@pytest.mark.parametrize("target", FILES)
def test_a_second_line_in_the_command_is_refused(target: str) -> None:
    """In SkyPilot's YAML it would be a key of its own."""
    with pytest.raises(TagprError, match="has a second line"):
        render(made("cuda", 4), target, SMOKE.with_name("a\nrun: evil.yaml"), OVERRIDES)
    with pytest.raises(TagprError, match="has a second line"):
        render(made("cuda", 4), target, SMOKE, ("log.notes=a\nrun: evil",))


def test_ray_on_kubernetes_wants_a_token() -> None:
    written = files("kuberay", "cuda", 4)
    cluster, job = (yaml.safe_load(text) for text in written.values())
    assert cluster["spec"]["authOptions"] == {"mode": "token"} == job["spec"]["rayClusterSpec"]["authOptions"]
    assert "kubectl get secret smoke " in written["raycluster.yaml"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_docker_files_install_the_lock_and_leave_the_rest_out(device: str, tmp_path: Path) -> None:
    written = files("docker", device, 1)
    text, ignored = written[f"Dockerfile.{device}"], written[f"Dockerfile.{device}.dockerignore"]
    sources = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert sources[-1] == "." and all((ROOT / source).exists() for source in sources)
    assert {".git", ".venv*", "runs", ".env"} <= set(ignored.splitlines())
    if device == "cuda":
        assert "requirements/gpu.lock" in text and locked_version("cuda-toolkit", "cuda") in text
    hadolint = shutil.which("hadolint")
    if hadolint:
        (tmp_path / "Dockerfile").write_text(text, encoding="utf-8")
        checked = subprocess.run([hadolint, str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "target, lines",
    [
        ("kuberay", ("cluster.storage", "cluster.kubernetes.storage_claim", "stages.sft: batch_size = 16")),
        ("skypilot", ("cluster.storage", "cluster.accelerator", "stages.sft")),
        ("slurm", ("stages.base", "stages.sft")),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_with_everything_it_lacks(
    target: str, lines: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("platform.device=cuda", "platform.devices_per_node=3")
    assert main(["render", str(SMOKE), *size, "--target", target, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert all(f"\n  {line}" in error for line in lines), error
    assert not (tmp_path / "out").exists()


def test_every_mistake_of_a_broken_recipe_is_named_before_rendering(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("cluster.memory_gb=lots", "cluster.imge=x", "platform.nodes=0", "stages.sft.stepz=1")
    assert main(["render", str(SMOKE), *wrong, "--target", "slurm", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "4 mistake(s)" in error and "did you mean 'image'" in error and "did you mean 'steps'" in error
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_files(tmp_path / "out", {"a": "1", "b": "2"})
    assert [path.read_text(encoding="utf-8") for path in written] == ["1", "2"]
    real = Path.write_text

    def fail_at_b(path: Path, text: str, **options: Any) -> int:
        if path.name.startswith(".b"):
            raise OSError(28, "No space left on device")
        return real(path, text, **options)

    monkeypatch.setattr(Path, "write_text", fail_at_b)
    with pytest.raises(OSError, match="No space"):
        write_files(tmp_path / "out", {"a": "new", "b": "new"})
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    assert (tmp_path / "out" / "a").read_text(encoding="utf-8") == "1"


def test_launch_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(SMOKE), "--target", "slurm"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#!/usr/bin/env bash\n")
    assert main(["render", str(SMOKE), "--target", "slurm", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "slurm.sbatch").read_text(encoding="utf-8") == printed


@pytest.mark.parametrize(
    "name, plain",
    [("demo", "demo"), ("LaMP_8B.v2", "lamp-8b-v2"), ("8b", "run-8b"), ("a" * 50, "a" * 40), ("_", "run")],
)
def test_object_names_are_kubernetes_names(name: str, plain: str) -> None:
    assert object_name(name) == plain


def test_a_package_that_is_not_locked_is_our_mistake() -> None:
    with pytest.raises(RuntimeError, match="no version of nonesuch"):
        locked_version("nonesuch", "cpu")


def test_a_target_needs_a_recipe_in_the_checkout(tmp_path: Path) -> None:
    other = tmp_path / "mine.yaml"
    other.write_text(f"extends: {SMOKE}\n", encoding="utf-8")
    with pytest.raises(TagprError, match="not in this checkout"):
        render(load_recipe(other), "slurm", other)
