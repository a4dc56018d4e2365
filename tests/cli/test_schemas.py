"""The schemas of docs/schemas: legal, complete, and true of what is written; `invoke` compares all that is printed."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from conftest import Invoke
from image_files import save
from jsonschema import Draft202012Validator
from schemas import FOLDER, SCHEMA_OF, faults, schema

from postproc_export.cli.commands import app

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
WRITTEN = ("kit", "metrics", "parity", "record", "steps-record", "shared")  # not printed by a command


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, images and values, in which commands can run."""
    folder = tmp_path_factory.mktemp("written")
    hosts.write(hosts.score_and_map(), folder / "raw.onnx")
    generator = np.random.default_rng(0)
    for index in range(4):
        pixels = generator.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        if index < 2:
            pixels[2:5, 3:6] = 250
            mask = np.zeros((8, 8), np.uint8)
            mask[2:5, 3:6] = 255
            save(folder / "images" / "ground_truth" / "bad" / f"{index}_mask.png", mask)
        save(folder / "images" / ("bad" if index < 2 else "good") / f"{index}.png", pixels)
    return folder


def test_there_is_one_for_each_command_and_the_page_leads_to_all() -> None:
    """None is missing, and none is left over."""
    commands = {SCHEMA_OF.get(name, name) for name in app if not name.startswith("-")}
    assert sorted({*commands, *WRITTEN}) == NAMES
    page = (FOLDER.parent / "json.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"(schemas/{name}.json)" not in page] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_legal(name: str) -> None:
    """By the schema of schemas; it says what it is of."""
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["description"].endswith(".")


def test_what_is_written_and_printed_is_as_they_say(
    written: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that commands write, and the records of a tail and of a step in a model's metadata."""
    monkeypatch.chdir(written)
    steps = ("--step", "gaussian:sigma=1")
    for line in (
        ("calibrate", "raw.onnx", "--images", "images", "--image-size", 8, *steps, "-o", "stats.json", "--json"),
        ("attach", "raw.onnx", "--stats", "stats.json", *steps, "-o", "model.onnx", "--json"),
        ("inspect", "model.onnx", "--json"),
        ("predict", "model.onnx", "images", "-o", "predicted", "--json"),
        ("report", "stats.json", "-o", "report.html", "--json"),
        ("vectors", "model.onnx", "-o", "kit", "--count", 200, "--json"),
    ):
        result = invoke(*line)
        assert result.exit_code == 0, result.stderr
    assert faults("metrics", json.loads((written / "predicted" / "metrics.json").read_text())) == []
    assert faults("kit", json.loads((written / "kit" / "kit.json").read_text())) == []
    records = {entry.key: entry.value for entry in onnx.load(written / "model.onnx").metadata_props}
    assert faults("record", json.loads(records["postproc_export"])) == []
    assert faults("steps-record", json.loads(records["postproc_export_transform"])) == []


def objects(document: Any) -> list[dict[str, Any]]:
    """Return every object in a document, itself first."""
    inside = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return [*([document] if isinstance(document, dict) else []), *(found for each in inside for found in objects(each))]


def test_what_is_otherwise_is_told(written: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is missing or not described, and a value of another type, in any object but those that stay open."""
    monkeypatch.chdir(written)
    document = json.loads(invoke("inspect", "raw.onnx", "--json").stdout)
    assert faults("inspect", document) == []
    for number, found in enumerate(objects(document)):
        changed = deepcopy(document)
        objects(changed)[number]["not described"] = [1]
        assert faults("inspect", changed), sorted(found)
    assert faults("inspect", {key: value for key, value in document.items() if key != "notes"})
    assert faults("inspect", {**document, "opset": "17"})
    port = Draft202012Validator(schema("shared")["$defs"]["port"])  # as readers have it
    assert port.is_valid({"name": "input", "dtype": "float32", "shape": None, "not described": 1})
