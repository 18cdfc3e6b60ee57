"""The JSON Schema says what the loader does."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import Meta, Struct

from fastchat_serve.config import Tables
from fastchat_serve.configfile.schema import config_json_schema, field_docs

CONF = Path(__file__).parent.parent.parent / "conf"


class Size(Struct, frozen=True, forbid_unknown_fields=True):
    """How large."""

    width: int = 1
    """In characters."""


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """What the backend "typed" has to set."""

    device: str = "auto"
    """Where it runs."""
    size: Size = Size()
    layers: Annotated[int, Meta(ge=1, description="How many layers.")] = 1


def validator(**options: type[Struct]) -> Draft202012Validator:
    schema = config_json_schema(options)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def with_options(backend: str, **options: Any) -> dict[str, Any]:
    return {"worker": [{"backend": backend, "options": options}]}


def test_the_schema_is_json_of_the_current_draft() -> None:
    schema = json.loads(json.dumps(config_json_schema({"typed": Options}), allow_nan=False))

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", sorted(CONF.glob("**/*.toml")), ids=lambda path: path.name)
def test_the_example_configs_are_valid(path: Path) -> None:
    validator().validate(tomllib.loads(path.read_text(encoding="utf-8")))


def test_options_are_checked_by_the_struct_of_their_backend() -> None:
    typed = validator(typed=Options)

    assert typed.is_valid(with_options("typed", device="cpu", size={"width": 3}))
    assert not typed.is_valid(with_options("typed", devise="cpu"))
    assert not typed.is_valid(with_options("typed", size={"height": 3}))
    assert not typed.is_valid(with_options("typed", layers=0))


def test_options_of_other_backends_are_not_judged() -> None:
    assert validator(typed=Options).is_valid(with_options("other", devise="cpu"))


def test_two_backends_may_name_their_structs_alike() -> None:
    other = msgspec.defstruct("Options", [("loop", bool, False)], forbid_unknown_fields=True, module="elsewhere")
    both = validator(typed=Options, other=other)

    assert both.is_valid({"worker": [{"backend": "typed", "options": {"layers": 2}}]})
    assert both.is_valid(with_options("other", loop=True))
    assert not both.is_valid(with_options("other", layers=2))


def test_descriptions_come_from_the_docstrings_of_the_fields() -> None:
    schema = config_json_schema({"typed": Options})

    properties = schema["$defs"]["Options"]["properties"]
    assert properties["device"]["description"] == "Where it runs."
    assert properties["layers"]["description"] == "How many layers."
    assert schema["$defs"]["Size"]["properties"]["width"]["description"] == "In characters."
    assert schema["$defs"]["Server"]["properties"]["port"]["description"].startswith("TCP port.")


def test_every_key_of_a_config_is_described() -> None:
    schema = config_json_schema()

    for table in (schema, *schema["$defs"].values()):
        for key, value in table["properties"].items():
            assert value.get("description"), (table["title"], key)


def test_docstrings_are_found_by_field() -> None:
    assert field_docs(Size) == {"width": "In characters."}
    assert set(field_docs(Tables)) == {field.name for field in msgspec.structs.fields(Tables)}
