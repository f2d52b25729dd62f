"""What the deployment files name exists: commands, flags, settings, ports, metrics, targets, users."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from riverkeeper.settings import PREFIX, Settings
from riverkeeper.topics.telemetry import Kind, Metric

ROOT = Path(__file__).parents[2]
K8S = sorted((ROOT / "k8s").glob("*.yaml"))
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PORT = Settings.model_fields["port"].default
AGENTS = {"ingest", "score", "join", "learn", "supervisor"}
OLDEST, NEWEST = "1.27", "1.34"  # minor versions of Kubernetes whose schemas the manifests must meet

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def objects(kind: str) -> dict[str, Document]:
    """Kubernetes objects of a kind, by name."""
    return {d["metadata"]["name"]: d for path in K8S for d in documents(path) if d["kind"] == kind}


def deployed() -> list[Document]:
    return [d for path in K8S for d in documents(path) if d["kind"] != "Kustomization"]


def pods() -> dict[str, Document]:
    """Pod specifications, by the name of what makes them."""
    makers = objects("Deployment") | objects("Job")
    return {name: maker["spec"]["template"]["spec"] for name, maker in makers.items()}


def compose() -> Document:
    (document,) = documents(COMPOSE)
    return document


def ours() -> dict[str, Document]:
    """The services of docker-compose.yml that run riverkeeper."""
    return {name: s for name, s in compose()["services"].items() if s["image"].startswith("riverkeeper")}


# Kubernetes.


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("document", deployed(), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_kubernetes_accepts(document: Document, version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_would_refuse_a_misspelt_field() -> None:
    wrong = objects("Deployment")["riverkeeper-score"]
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_the_kustomization_names_every_file() -> None:
    (kustomization,) = documents(ROOT / "k8s/kustomization.yaml")
    assert sorted([*kustomization["resources"], "kustomization.yaml"]) == [path.name for path in K8S]


def test_every_agent_has_a_deployment_and_a_budget() -> None:
    names = {f"riverkeeper-{agent}" for agent in AGENTS}
    assert objects("Deployment").keys() == names
    assert objects("PodDisruptionBudget").keys() == names


@pytest.mark.parametrize("name", objects("Deployment"))
def test_labels_select_the_agent_s_own_pods(name: str) -> None:
    spec = objects("Deployment")[name]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert objects("PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"] == labels
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    assert labels["app.kubernetes.io/component"] == name.removeprefix("riverkeeper-")


def test_a_budget_lets_one_pod_go_and_keeps_one() -> None:
    for name, budget in objects("PodDisruptionBudget").items():
        assert objects("Deployment")[name]["spec"]["replicas"] > budget["spec"]["maxUnavailable"]


def differing(deployment: Document) -> Document:
    """A deployment's pods without what may differ from agent to agent."""
    template: Document = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    for field in ("args", "resources"):
        del container[field]
    del template["metadata"]["labels"], template["spec"]["topologySpreadConstraints"]
    return template


def test_agents_differ_in_nothing_else() -> None:
    first, *others = [differing(d) for d in objects("Deployment").values()]
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", pods())
def test_pods_are_confined(name: str) -> None:
    pod = pods()[name]
    assert pod["enableServiceLinks"] is False, "a Service named riverkeeper would set RIVERKEEPER_PORT"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_the_secret_is_named_and_not_kept() -> None:
    assert not objects("Secret")
    for pod in pods().values():
        (container,) = pod["containers"]
        assert {"secretRef": {"name": "riverkeeper"}} in container["envFrom"]
        assert {"configMapRef": {"name": "riverkeeper"}} in container["envFrom"]
    assert objects("ConfigMap").keys() == {"riverkeeper"}


# Commands.


def commands() -> Iterator[tuple[str, list[str]]]:
    """Where a command of ours stands, and its words."""
    for name, pod in pods().items():
        yield f"k8s {name}", pod["containers"][0]["args"]
    for name, service in ours().items():
        yield f"compose {name}", service["command"]
    for line in re.findall(r"bin/riverkeeper (.*?)(?: \$\(ARGS\))?$", (ROOT / "Makefile").read_text(), re.M):
        yield "Makefile", shlex.split(line)


def parse(words: list[str]) -> dict[str, Any]:
    """The parameters that the command line takes from these words, without running anything."""
    main = importlib.import_module("riverkeeper.cli").main
    assert isinstance(main, click.Group)
    parameters: dict[str, Any] = {}
    with click.Context(main, info_name="riverkeeper") as context:
        command: click.Command = main
        while isinstance(command, click.Group) and words:
            name, found, words = command.resolve_command(context, words)
            assert found is not None
            command = found
            if not isinstance(command, click.Group):
                parameters = command.make_context(name, list(words), parent=context).params
    return parameters


@pytest.mark.parametrize(("where", "words"), list(commands()))
def test_the_command_line_understands(where: str, words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize(
    "wrong",
    [
        ["walk", "riverkeeper.demos.flights:flights"],
        ["run", "riverkeeper.demos.flights:flights", "--agent-names", "score"],
        ["run"],
    ],
    ids=" ".join,
)
def test_the_command_line_refuses(wrong: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(wrong)


def test_pipelines_named_in_commands_exist() -> None:
    named = {word for _, words in commands() for word in words if ":" in word}
    assert named == {"riverkeeper.demos.flights:flights"}
    for module, attribute in (name.split(":") for name in named):
        assert hasattr(importlib.import_module(module), attribute)


def test_each_process_runs_its_own_agent() -> None:
    def agent(words: list[str]) -> str:
        return words[words.index("--agents") + 1]

    services = {name: s["command"] for name, s in ours().items() if "--agents" in s["command"]}
    assert services.keys() == AGENTS
    assert all(agent(words) == name for name, words in services.items())
    args = {name: pods()[name]["containers"][0]["args"] for name in objects("Deployment")}
    assert all(f"riverkeeper-{agent(words)}" == name for name, words in args.items())


# Settings.


def texts() -> dict[str, str]:
    paths = [*K8S, COMPOSE, ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "README.md"]
    return {str(path.relative_to(ROOT)): path.read_text() for path in [*paths, *(ROOT / "docs").glob("*.md")]}


def unknown_settings(text: str) -> set[str]:
    named = set(re.findall(rf"\b{PREFIX}([A-Z_]+[A-Z])\b", text))
    return {name for name in named if name.lower() not in Settings.model_fields}


@pytest.mark.parametrize("path", texts())
def test_variables_are_settings(path: str) -> None:
    assert not unknown_settings(texts()[path])


def test_a_misspelt_variable_would_be_found() -> None:
    assert unknown_settings("RIVERKEEPER_BROKERS: kafka:9092, RIVERKEEPER_PORT: 1") == {"BROKERS"}


def given(environment: dict[str, str]) -> Settings:
    named = {name.removeprefix(PREFIX).lower(): text for name, text in environment.items()}
    named["signing_key"] = "0" * 64  # comes from the secret, or from .env
    return Settings(**named)  # type: ignore[arg-type]  # the texts of environment variables, converted on the way


def test_values_are_accepted() -> None:
    settings = given(objects("ConfigMap")["riverkeeper"]["data"])
    assert (settings.host, settings.port, settings.log_format) == ("0.0.0.0", PORT, "json")
    for service in ours().values():
        settings = given(service["environment"])
        assert (settings.replication, settings.min_insync) == (1, 1), "compose has one broker"


# Ports.


def test_the_image_exposes_the_port_and_listens_beyond_itself() -> None:
    assert re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.M) == [str(PORT)]
    assert "RIVERKEEPER_HOST=0.0.0.0" in DOCKERFILE


@pytest.mark.parametrize("name", objects("Deployment"))
def test_probes_ask_where_the_process_answers(name: str) -> None:
    template = objects("Deployment")[name]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    paths = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {
        "startup": {"path": "/livez", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }
    annotations = template["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORT)
    assert annotations["prometheus.io/path"] == "/metrics"


def test_compose_asks_where_the_process_answers() -> None:
    for name in AGENTS:
        assert f"http://127.0.0.1:{PORT}/readyz" in ours()[name]["healthcheck"]["test"][-1]


def test_prometheus_finds_every_agent() -> None:
    config = yaml.safe_load(compose()["configs"]["prometheus"]["content"])
    (job,) = config["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert set(discovery["names"]) == AGENTS
    assert discovery["port"] == PORT
    targets = {c["target"] for c in compose()["services"]["prometheus"]["configs"]}
    assert set(config["rule_files"]) <= targets


def test_kafka_is_reached_where_it_listens() -> None:
    kafka = compose()["services"]["kafka"]
    advertised = set(re.findall(r"//([^,]+)", kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]))
    assert {s["environment"]["RIVERKEEPER_BROKER"] for s in ours().values()} <= advertised
    (published,) = kafka["ports"]
    assert published.rpartition(":")[0] in advertised


# Metrics.


def unknown_metrics(text: str) -> set[str]:
    parts = {
        m.series + suffix
        for m in Metric
        if m.kind is Kind.HISTOGRAM
        for suffix in ("_bucket", "_sum", "_count")
    }
    known = {metric.series for metric in Metric} | parts
    return set(re.findall(r"\briverkeeper_[a-z][a-z_]*[a-z]\b", text)) - known


@pytest.mark.parametrize("path", texts())
def test_metrics_exist(path: str) -> None:
    assert not unknown_metrics(texts()[path])


def test_a_misspelt_metric_would_be_found() -> None:
    assert unknown_metrics("rate(riverkeeper_prediction_total[5m])") == {"riverkeeper_prediction_total"}
    assert unknown_metrics("riverkeeper_live_error_sum") == {"riverkeeper_live_error_sum"}
    assert not unknown_metrics("rate(riverkeeper_batch_seconds_bucket[5m])")


def test_alerts_watch_labels_that_exist() -> None:
    rules = yaml.safe_load(compose()["configs"]["alerts"]["content"])["groups"][0]["rules"]
    labels = {label for metric in Metric for label in metric.labels}
    assert rules
    for rule in rules:
        for group in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            assert set(group.split(", ")) <= labels
        assert rule["annotations"]["summary"]


# The image, and make.


def test_the_image_s_user_is_the_pods_user() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M)
    for pod in pods().values():
        context = pod["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    assert all(f"uid={user[0]},gid={user[1]}" in ours()[name]["tmpfs"][1] for name in AGENTS)


def test_the_image_is_given_all_that_its_links_point_to() -> None:
    copied = {
        word.rstrip("/")
        for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.M)
        for word in line.split()
    }
    links = {link.readlink().name for link in (ROOT / "src/riverkeeper").iterdir() if link.is_symlink()}
    assert links == {"agents", "topics", "models", "supervisor"}
    assert links | {"src", "pyproject.toml", "README.md"} <= copied
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied - {".", ""}


def test_sets_iterate_alike_in_every_process() -> None:
    assert re.search(r"\bPYTHONHASHSEED=0\b", DOCKERFILE)


def unknown_targets(text: str) -> set[str]:
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S))
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert declared
    return set(re.findall(r"\bmake ([a-z]\w*)", code)) - set(declared[1].split())


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_make_has_the_targets_that_are_promised(path: Path) -> None:
    assert not unknown_targets(path.read_text())


def test_a_missing_target_would_be_found() -> None:
    assert unknown_targets("We make do. `make demo`\n```\nmake fly ARGS=x\n```") == {"fly"}


def test_make_has_a_rule_for_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = {"install", "demo", "test", "faults", "simulate", "counterexamples", "lint", "bench", "build"}
    assert targets == set(re.findall(r"^([a-z]+):", text, re.M))
