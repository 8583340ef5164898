"""``cluster.yaml`` is what Ray's launcher accepts, and says what the project promises of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster.yaml"
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
HEAD, GPU, CPU = "head", "gpu_worker", "cpu_worker"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    jsonschema.validate(config, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_wokers", 3, "'max_wokers' was unexpected"),
        ("max_workers", "many", "'many' is not of type 'integer'"),
        ("setup_commands", "pip install .", "is not of type 'array'"),
        ("available_node_types", {HEAD: {"resources": {}}}, "'node_config' is a required"),
    ],
)
def test_the_schema_finds_mistakes(
    config: dict[str, Any], name: str, value: object, message: str
) -> None:
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(config | {name: value}, SCHEMA)


def test_ray_finds_a_head_type_that_is_not_there(config: dict[str, Any]) -> None:
    broken = prepare_config(config | {"head_node_type": HEAD})
    broken["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(broken)


def test_the_node_types_are_these(config: dict[str, Any]) -> None:
    assert set(config["available_node_types"]) == {HEAD, GPU, CPU}
    assert config["head_node_type"] == HEAD


def test_the_head_schedules_no_work(config: dict[str, Any]) -> None:
    head = config["available_node_types"][HEAD]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0


@pytest.mark.parametrize(("name", "gpus"), [(GPU, 1), (CPU, 0)])
def test_workers_state_what_they_have(config: dict[str, Any], name: str, gpus: int) -> None:
    resources = config["available_node_types"][name]["resources"]
    assert resources["CPU"] >= 1
    assert resources["GPU"] == gpus


def test_the_cluster_shrinks_to_its_head_and_grows_within_its_limit(
    config: dict[str, Any],
) -> None:
    types = config["available_node_types"].values()
    assert all(kind["min_workers"] == 0 <= kind["max_workers"] for kind in types)
    assert config["max_workers"] == sum(kind["max_workers"] for kind in types)
    assert 0 < config["idle_timeout_minutes"] <= 15


def test_every_machine_runs_the_same_image_and_workers_reach_the_bucket(
    config: dict[str, Any],
) -> None:
    nodes = {name: kind["node_config"] for name, kind in config["available_node_types"].items()}
    assert len({node["ImageId"] for node in nodes.values()}) == 1
    assert all(nodes[name]["IamInstanceProfile"] for name in (GPU, CPU))


def test_what_is_installed_is_there(config: dict[str, Any]) -> None:
    assert all((ROOT / place).exists() for place in config["file_mounts"].values())
    [install] = [command for command in config["setup_commands"] if "pip install" in command]
    assert "-c constraints.txt ." in install


def test_it_gives_the_commands_and_every_job_it_names(config: dict[str, Any]) -> None:
    text = FILE.read_text()
    for command in ("ray up", "ray job submit", "ray down"):
        assert f"#   {command}" in text
    assert (ROOT / "jobs" / "train_all.py").exists() and "jobs/train_all.py" in text
