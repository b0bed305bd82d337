"""The four folders are one installed namespace, and pyproject.toml names all that is in them."""

from __future__ import annotations

import importlib
import re
import tomllib
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("broker", "cache", "worker", "autoscaler")
COMMANDS = {
    "cache": "batchyard.cache.admin:cache",
    "put": "batchyard.cache.commands:put",
    "get": "batchyard.cache.commands:get",
    "worker": "batchyard.worker.commands:worker",
    "up": "batchyard.worker.up:up",
    "doctor": "batchyard.worker.doctor:doctor",
}


def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def entry_points(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in distribution("batchyard").entry_points if entry.group == group}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_type_checkers_link_leads_to_the_folder(folder: str) -> None:
    link = ROOT / ".ci" / "ns" / "batchyard" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder
    assert not link.readlink().is_absolute()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folder_is_a_package_of_the_namespace(folder: str) -> None:
    package = importlib.import_module(f"batchyard.{folder}")
    assert package.__file__ is not None
    assert Path(package.__file__).resolve() == ROOT / folder / "__init__.py"
    assert package.__doc__


def test_the_namespace_itself_is_no_package() -> None:
    assert not (ROOT / ".ci" / "ns" / "batchyard" / "__init__.py").exists()
    assert getattr(importlib.import_module("batchyard"), "__file__", None) is None


def test_every_sub_package_is_listed() -> None:
    found = {
        "batchyard." + ".".join(init.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(setuptools_table()["packages"])


def test_every_folder_with_code_has_an_init_file() -> None:
    folders = {module.parent for folder in FOLDERS for module in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_each_part_says_that_it_is_typed() -> None:
    assert all((ROOT / folder / "py.typed").exists() for folder in FOLDERS)


def test_lua_files_are_package_data() -> None:
    globs = setuptools_table()["package-data"]["*"]
    for script in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.lua")):
        package = next(parent for parent in script.parents if (parent / "__init__.py").exists())
        assert any(script.relative_to(package).match(glob) for glob in globs), script


def test_the_console_script_is_the_brokers_cli() -> None:
    assert {name: entry.value for name, entry in entry_points("console_scripts").items()} == {
        "batchyard": "batchyard.broker.cli:main"
    }


def test_the_upper_layers_give_their_commands_as_entry_points() -> None:
    assert {name: entry.value for name, entry in entry_points("batchyard.commands").items()} == COMMANDS


@pytest.mark.parametrize("target", ["batchyard.broker.cli:main", *COMMANDS.values()])
def test_every_entry_point_names_something_that_can_be_called(target: str) -> None:
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_installed_version_is_that_of_pyproject() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert distribution("batchyard").version == version
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
