"""The Kubernetes manifests: rendered, valid, and in step with the server that they run."""

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from handlers.wire import COMBINED, TASKS
from proxy.metrics import WAIT_S
from proxy.settings import Settings, listed
from tests.support.paths import HOME
from tests.support.running import HANG_S

FOLDER = HOME / "deploy" / "kubernetes"
VERSION = "1.37"
OVERLAYS = ("cpu", "nvidia")


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """An overlay's objects by their kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / request.param)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_S).stdout
    objects = list(yaml.safe_load_all(text))
    assert len({entry["kind"] for entry in objects}) == len(objects)
    return {entry["kind"]: entry for entry in objects}


@pytest.fixture
def pod(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return spec


def proxy_settings(pod: dict[str, Any]) -> Settings:
    """What the proxy's container makes of its variables; a key instead of the Secret's."""
    variables = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"] if "value" in entry}
    return Settings.from_environment(variables | {"SD_API_KEY_FILE": "", "SD_API_KEY": "k", "SD_HOST": "0.0.0.0"})


def test_every_object_is_valid(manifests: dict[str, dict[str, Any]]) -> None:
    for entry in manifests.values():
        kubernetes_validate.validate(entry, VERSION, strict=True)


def test_a_key_that_does_not_exist_is_found(manifests: dict[str, dict[str, Any]]) -> None:
    service = {**manifests["Service"], "spec": {**manifests["Service"]["spec"], "prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSION, strict=True)


def test_both_containers_may_do_as_little_as_possible(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = re.search(r"^USER (\d+)", (HOME / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user and pod["securityContext"]["runAsUser"] == int(user[1])
    for container in pod["containers"] + pod["initContainers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_what_was_begun_is_finished_before_the_pod_ends(pod: dict[str, Any]) -> None:
    settings = proxy_settings(pod)
    pre_stop = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert settings.drain_s > settings.deadline_s > 0  # a request may begin at the last moment, and take its time
    assert pod["terminationGracePeriodSeconds"] >= pre_stop + settings.leave_s + settings.drain_s + 15
    # TorchServe outlives the proxy as a sidecar, and has no hook of its own to wait in
    assert [c["restartPolicy"] for c in pod["initContainers"]] == ["Always"] and len(pod["containers"]) == 1


def test_no_pod_goes_before_another_serves(manifests: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    assert manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2
    start = pod["initContainers"][0]["startupProbe"]
    seconds = start["periodSeconds"] * start["failureThreshold"]
    assert seconds >= 3600 and manifests["Deployment"]["spec"]["progressDeadlineSeconds"] > seconds


def test_the_archive_is_the_one_that_is_asked_for(pod: dict[str, Any]) -> None:
    assert proxy_settings(pod).archive_of_task() == dict.fromkeys(TASKS, COMBINED)
    torchserve = pod["initContainers"][0]
    assert "--combined" in torchserve["args"][-1]
    assert f"/models/{COMBINED}'" in torchserve["startupProbe"]["exec"]["command"][-1]


def test_torchserve_is_asked_on_its_own_port(pod: dict[str, Any]) -> None:
    port = re.search(r"^management_address=.*:(\d+)", (HOME / "config.properties").read_text(), re.MULTILINE)
    torchserve = pod["initContainers"][0]
    assert port and "ports" not in torchserve
    for probe in ("startupProbe", "livenessProbe"):
        assert f"http://127.0.0.1:{port[1]}/" in torchserve[probe]["exec"]["command"][-1]


def test_the_network_lets_in_what_the_service_sends(manifests: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = policy["ingress"]
    assert [port["port"] for port in ingress["ports"]] == [pod["containers"][0]["ports"][0]["containerPort"]]
    assert ingress["from"] and Settings().port == ingress["ports"][0]["port"]
    selected = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= selected.items()


def test_a_pods_name_is_in_the_ids_of_its_jobs(pod: dict[str, Any]) -> None:
    (node,) = (entry for entry in pod["containers"][0]["env"] if entry["name"] == "SD_NODE")
    assert node["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    keys = {"SD_API_KEY": "k", "SD_NODE": "sd-api-server-7d4b9c6f5-x2x9z"}
    assert Settings.from_environment(keys).node


def test_the_proxy_goes_by_the_services_name(manifests: dict[str, dict[str, Any]]) -> None:
    service = manifests["Service"]["metadata"]
    known = listed(manifests["ConfigMap"]["data"]["SD_ALLOWED_HOSTS"])
    assert {service["name"], f"{service['name']}.{service['namespace']}"} <= set(known)


def test_a_gpu_is_asked_for_by_nvidia_alone(manifests: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    model = manifests["ConfigMap"]["data"]["SD_MODEL"]
    of_the_hub = model != "/app/models/embedded"
    limits = pod["initContainers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == ("1" if of_the_hub else None)
    assert bool(manifests["NetworkPolicy"]["spec"]["egress"]) == of_the_hub


def test_the_autoscalers_metric_is_made_of_one_that_the_proxy_has(manifests: dict[str, dict[str, Any]]) -> None:
    values = yaml.safe_load((FOLDER / "monitoring" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = values["rules"]["custom"]
    (metric,) = manifests["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    telemetry = (HOME / "proxy" / "telemetry.py").read_text(encoding="utf-8")
    assert f'Gauge("{rule["seriesQuery"].partition("{")[0]}"' in telemetry
    monitor = yaml.safe_load((FOLDER / "monitoring" / "pod-monitor.yaml").read_text(encoding="utf-8"))
    assert monitor["metadata"]["namespace"] == manifests["Deployment"]["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert int(endpoint["scrapeTimeout"].rstrip("s")) > WAIT_S
