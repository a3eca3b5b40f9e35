"""The manifests run gcd as it is meant to run: without rights, with time to stop, and never twice."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from apscheduler.triggers.cron import CronTrigger

from gcd.config import load_config
from gcd.daemon.http import Pages
from tests.contract.shipped import KUBERNETES, check_call, check_variable, shutdown_timeout

Tree = dict[str, Any]
PAGES = Pages(lambda: b"gcd_build_info 1\n", lambda: [], lambda: [])


def manifest(name: str) -> Tree:
    """The only document of a file."""
    (found,) = yaml.safe_load_all((KUBERNETES / f"{name}.yaml").read_text())
    return dict(found)


CONFIG, CRONJOB, DEPLOYMENT = map(manifest, ("config", "cronjob", "deployment"))
TEMPLATES: dict[str, Tree] = {
    "CronJob": CRONJOB["spec"]["jobTemplate"]["spec"]["template"],
    "Deployment": DEPLOYMENT["spec"]["template"],
}


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> Tree:
    """The pods of each in turn."""
    return TEMPLATES[request.param]


@pytest.fixture
def container(template: Tree) -> Tree:
    """Their only container."""
    (found,) = template["spec"]["containers"]
    return dict(found)


def environment(container: Tree) -> dict[str, str]:
    """What gcd finds in its environment; what comes from a Secret is made up."""
    return {each["name"]: each.get("value", "made-up") for each in container["env"]}


def test_each_is_what_its_file_says() -> None:
    kinds = [(each["apiVersion"], each["kind"]) for each in (CONFIG, CRONJOB, DEPLOYMENT)]
    assert kinds == [("v1", "ConfigMap"), ("batch/v1", "CronJob"), ("apps/v1", "Deployment")]
    assert len(list(KUBERNETES.iterdir())) == len(kinds)


def test_the_pods_are_restricted(template: Tree, container: Tree) -> None:
    # The Pod Security Standard "restricted", and a read-only root.
    pod = template["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "fsGroup" not in pod  # it would change the group of every artifact
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_pods_know_nothing_of_the_cluster(template: Tree) -> None:
    assert template["spec"]["automountServiceAccountToken"] is False
    # Variables of a Service that is called gcd begin with GCD_.
    assert template["spec"]["enableServiceLinks"] is False


def test_the_pods_have_the_time_to_stop_that_they_take(template: Tree) -> None:
    grace = timedelta(seconds=template["spec"]["terminationGracePeriodSeconds"])
    assert grace > shutdown_timeout()


def test_the_memory_is_bounded_and_the_cpu_is_not(container: Tree) -> None:
    assert set(container["resources"]["limits"]) == {"memory"}
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}


def test_gcd_understands_its_command_line(container: Tree) -> None:
    assert container["command"] == ["gcd"]
    assert container["args"][-2] == "--config"
    check_call(container["args"])


def test_what_is_mounted_is_there_and_holds_the_configuration(
    template: Tree, container: Tree
) -> None:
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    file = Path(container["args"][-1])
    source = volumes[mounts[str(file.parent)]["name"]]
    assert source["configMap"]["name"] == CONFIG["metadata"]["name"]
    assert list(CONFIG["data"]) == [file.name]


def test_the_configuration_is_valid_with_the_environment_of_the_pods(
    container: Tree, tmp_path: Path
) -> None:
    (name,) = CONFIG["data"]
    (tmp_path / name).write_text(CONFIG["data"][name])
    config = load_config(tmp_path / name, environ=environment(container))
    store = config.store()
    assert ":made-up@" in store.backend_store_uri
    assert store.artifacts_destination in {each["mountPath"] for each in container["volumeMounts"]}
    # Nothing goes before the operator has read a plan; a surprise stops the cycle.
    assert config.daemon.mode == "observe"
    assert config.fuse.max_share < 1


def test_secrets_come_from_a_secret(container: Tree) -> None:
    for each in container["env"]:
        if each["name"].startswith("GCD_"):
            check_variable(each["name"])
        else:
            assert set(each["valueFrom"]) == {"secretKeyRef"}, each


class TestTheCronJob:
    """One cycle a night."""

    spec = CRONJOB["spec"]
    job = CRONJOB["spec"]["jobTemplate"]["spec"]

    def test_its_time_is_one(self) -> None:
        CronTrigger.from_crontab(self.spec["schedule"], ZoneInfo(self.spec["timeZone"]))

    def test_it_asks_nobody(self) -> None:
        (container,) = TEMPLATES["CronJob"]["spec"]["containers"]
        assert container["args"][:2] == ["gc", "--yes"]

    def test_there_is_one_at_a_time_which_ends_before_the_next(self) -> None:
        assert self.spec["concurrencyPolicy"] == "Forbid"
        assert 3600 <= self.spec["startingDeadlineSeconds"] < 86_400
        assert self.job["activeDeadlineSeconds"] < 86_400

    def test_what_failed_is_seen_and_not_repeated(self) -> None:
        assert self.job["backoffLimit"] == 0
        assert TEMPLATES["CronJob"]["spec"]["restartPolicy"] == "Never"
        assert self.spec["failedJobsHistoryLimit"] > 0


class TestTheDeployment:
    """The daemon."""

    spec = DEPLOYMENT["spec"]
    container: Tree = TEMPLATES["Deployment"]["spec"]["containers"][0]
    annotations: Tree = TEMPLATES["Deployment"]["metadata"]["annotations"]

    def test_it_listens_where_it_is_asked(self) -> None:
        (port,) = self.container["ports"]
        host, _, number = environment(self.container)["GCD_DAEMON__LISTEN"].rpartition(":")
        assert host == "0.0.0.0"  # loopback is the container's own
        assert int(number) == port["containerPort"]
        assert self.annotations["prometheus.io/port"] == number
        for probe in ("livenessProbe", "readinessProbe"):
            assert self.container[probe]["httpGet"]["port"] == port["name"]

    def test_what_it_is_asked_it_answers(self) -> None:
        paths = [
            self.container[f"{probe}Probe"]["httpGet"]["path"]
            for probe in ("liveness", "readiness")
        ]
        assert paths == ["/healthz", "/readyz"]
        for path in (*paths, self.annotations["prometheus.io/path"]):
            assert PAGES.answer(path)[0] == HTTPStatus.OK
        assert self.annotations["prometheus.io/scrape"] == "true"

    def test_a_pause_is_no_death(self) -> None:
        probe = self.container["livenessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 120

    def test_the_old_one_works_until_the_new_one_does(self) -> None:
        assert self.spec["strategy"]["type"] == "RollingUpdate"
        assert self.spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}

    def test_it_takes_its_own_pods_and_no_others(self) -> None:
        wanted = self.spec["selector"]["matchLabels"].items()
        assert wanted <= TEMPLATES["Deployment"]["metadata"]["labels"].items()
        assert not wanted <= TEMPLATES["CronJob"]["metadata"]["labels"].items()
