"""Every case runs here and in Prefect's own functions; ``prefect=`` lists where the two differ."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from dispatcher.prefect_api import schemas
from executors import errors, templates

ENVIRON = {"MYENV": "envval", "EMPTY": ""}
VALUES = {"x": 3, "s": "hi", "d": {"k": [1, {"z": 9}]}, "n": None, "b": True, "f": 1.5}
MISSING = templates.MISSING

SECRET_ID = "11111111-1111-1111-1111-111111111111"
BLOCKS: dict[tuple[str, str], dict[str, Any]] = {
    ("secret", "plain"): {"value": "pw"},
    ("secret", "dict"): {"value": {"token": "T", "l": [{"q": 1}], "values": "V", "nothing": None}},
    ("secret", "value-in-value"): {"value": {"value": "inner"}},
    ("json", "two"): {"value": "v", "other": {"a": [1, 2]}},
    ("json", "values"): {"values": "not unwrapped"},
    ("json", "looks-like-variable"): {"value": "{{ prefect.variables.w }}"},
    ("json", "looks-like-block"): {"value": "{{ prefect.blocks.secret.plain }}"},
    ("json", "empty"): {},
}
VARIABLES = {
    "w": 7,
    "v": {"a": 1},
    "none": None,
    "text": "t",
    "dotted.name": "found",
    "looks-like-variable": "{{ prefect.variables.w }}",
}


@dataclass
class Reader:
    """The blocks and variables above; it notes what it was asked for."""

    asked: list[object] = field(default_factory=list)

    def read_block_document(self, type_slug: str, name: str) -> schemas.BlockDocument | None:
        self.asked.append((type_slug, name))
        data = BLOCKS.get((type_slug, name))
        return None if data is None else schemas.BlockDocument(id=uuid.uuid4(), data=data)

    def read_block_document_by_id(self, block_document_id: str) -> schemas.BlockDocument | None:
        self.asked.append(block_document_id)
        if block_document_id != SECRET_ID:
            return None
        return schemas.BlockDocument(id=uuid.UUID(SECRET_ID), data=BLOCKS["secret", "plain"])

    def read_variable(self, name: str) -> Any:
        self.asked.append(name)
        return VARIABLES.get(name, MISSING)


@dataclass
class PrefectClient:
    """The same objects, in the form in which Prefect's functions ask for them."""

    not_found: type[Exception]
    reader: Reader = field(default_factory=Reader)

    async def read_block_document_by_name(self, name: str, block_type_slug: str) -> object:
        return self._existing(self.reader.read_block_document(block_type_slug, name))

    async def read_block_document(self, block_document_id: str) -> object:
        return self._existing(self.reader.read_block_document_by_id(block_document_id))

    async def read_variable_by_name(self, name: str) -> object:
        value = self.reader.read_variable(name)
        return None if value is MISSING else SimpleNamespace(value=value)

    def _existing(self, block: object) -> object:
        if block is None:
            raise self.not_found(http_exc=LookupError())  # type: ignore[call-arg]
        return block


@pytest.fixture(scope="module")
def prefect() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prefect.utilities import templating
    return templating


@pytest.fixture(scope="module", autouse=True)
def environ() -> Iterator[None]:
    """Prefect reads the environment of the process; ours is handed over."""
    os.environ.update(ENVIRON)
    yield
    for name in ENVIRON:
        del os.environ[name]


@pytest.fixture
def client(prefect: ModuleType) -> PrefectClient:
    from prefect.exceptions import ObjectNotFound

    return PrefectClient(not_found=ObjectNotFound)


def ours(template: Any, values: dict[str, Any] = VALUES) -> Any:
    return templates.apply_values(template, values, environ=ENVIRON)


def theirs(prefect: ModuleType, template: Any, values: dict[str, Any] = VALUES) -> Any:
    result = prefect.apply_values(template, values)
    return MISSING if result is prefect.NotSet else result


VALUE_CASES: Sequence[tuple[Any, Any]] = [
    # a text that is one placeholder keeps the value's type
    ("{{ x }}", 3),
    ("{{x}}", 3),
    ("{{\tx\n}}", 3),
    ("{{ f }}", 1.5),
    ("{{ n }}", None),
    ("{{ b }}", True),
    ("{{ d }}", {"k": [1, {"z": 9}]}),
    # in a longer text it is written as str() does
    (" {{ x }}", " 3"),
    ("{{ x }}\n", "3\n"),
    ("v-{{ x }}", "v-3"),
    ("{{ x }}{{ s }}", "3hi"),
    ("{{ x }}{{ x }}{{x}}", "333"),
    ("d={{ d }}", "d={'k': [1, {'z': 9}]}"),
    ("n={{ n }}", "n=None"),
    ("b={{ b }}", "b=True"),
    # paths: dots, brackets, negative and digit-only parts
    ("{{ d.k[1].z }}", 9),
    ("{{ d.k.1.z }}", 9),
    ("{{ d.k[-1].z }}", 9),
    ("{{ d.k[1_0] }}", MISSING),
    ("{{ d.k[2] }}", MISSING),
    ("{{ d.k[0].z }}", MISSING),
    ("{{ d.nope }}", MISSING),
    ("{{ d..k }}", MISSING),
    ("{{ n.a }}", MISSING),
    ("{{ s[0] }}", "h"),
    ("{{ s.upper }}", MISSING),
    # missing values
    ("{{ missing }}", MISSING),
    ("a-{{ missing }}-b", "a--b"),
    ({"a": "{{ x }}", "m": "{{ missing }}", "k": {"mm": "{{ missing }}"}}, {"a": 3, "k": {}}),
    (["{{ x }}", "{{ missing }}", "c"], [3, "c"]),
    ([["{{ missing }}"], {"a": ["{{ x }}"]}], [[], {"a": [3]}]),
    # the environment: unset is empty, never removed
    ("{{ $MYENV }}", "envval"),
    ("{{ $$MYENV }}", "envval"),
    ("{{ $NOPE }}", ""),
    ("p/{{ $NOPE }}", "p/"),
    ("{{ $EMPTY }}", ""),
    ({"a": "{{ $NOPE }}"}, {"a": ""}),
    # not placeholders
    ("{{ x | upper }}", "{{ x | upper }}"),
    ("{{ x y }}", "{{ x y }}"),
    ("{{ 'x' }}", "{{ 'x' }}"),
    ("{ x }", "{ x }"),
    ("{{}}", "{{}}"),
    ("{{{{ x }}}}", "{{3}}"),
    ("{{{ x }}}", "{3}"),
    ({"{{ x }}": 1}, {"{{ x }}": 1}),
    ("", ""),
    # other leaves
    (None, None),
    (True, True),
    (0, 0),
    (1.5, 1.5),
    ({}, {}),
    ([], []),
    # references are for the later steps
    ("{{ prefect.blocks.secret.plain }}", "{{ prefect.blocks.secret.plain }}"),
    ("{{ prefect.variables.w }}-{{ x }}", "{{ prefect.variables.w }}-3"),
]


@pytest.mark.parametrize(("template", "expected"), VALUE_CASES, ids=repr)
def test_values_are_applied_as_prefect_applies_them(
    prefect: ModuleType, template: Any, expected: Any
) -> None:
    result = ours(template)
    assert result == expected
    assert type(result) is type(expected)
    assert theirs(prefect, template) == expected


def test_a_value_that_looks_like_a_placeholder_stays_as_it_is(prefect: ModuleType) -> None:
    values = {"t": "{{ x }}", "x": 1}
    assert ours("{{ t }}", values) == theirs(prefect, "{{ t }}", values) == "{{ x }}"


def test_in_a_longer_text_such_a_value_stays_too_where_prefect_has_no_order() -> None:
    values = {"t": "{{ x }}", "x": 1}
    assert ours("{{ t }}-{{ x }}", values) == "{{ x }}-1"  # Prefect: this, or "1-1"
    assert ours("{{ x }}-{{ t }}", values) == "1-{{ x }}"


def test_a_number_in_a_path_names_a_key_that_is_written_so_or_an_index(
    prefect: ModuleType,
) -> None:
    for template, expected in (("{{ a.0 }}", "key"), ("{{ b.0 }}", "item")):
        values = {"a": {"0": "key"}, "b": ["item"]}
        assert ours(template, values) == theirs(prefect, template, values) == expected
    assert ours("{{ a.1 }}", {"a": {"0": "key"}}) is MISSING


@pytest.mark.parametrize("leaf", [(1,), {1}, b"x", object()], ids=["tuple", "set", "bytes", "any"])
def test_what_json_does_not_have_is_refused(prefect: ModuleType, leaf: object) -> None:
    with pytest.raises(errors.ConfigurationError, match=f"a {type(leaf).__name__};"):
        ours({"a": [leaf]})
    with pytest.raises(ValueError, match="Unexpected template type"):
        theirs(prefect, {"a": [leaf]})


def test_the_environment_of_the_process_is_the_default() -> None:
    assert templates.apply_values("{{ $MYENV }}", {}) == "envval"


def test_applying_values_changes_neither_argument() -> None:
    template = {"a": ["{{ d }}", {"b": "{{ missing }}"}]}
    values = {"d": {"k": [1]}}
    assert ours(template, values) == {"a": [{"k": [1]}, {}]}
    assert template == {"a": ["{{ d }}", {"b": "{{ missing }}"}]}
    assert values == {"d": {"k": [1]}}


def test_placeholders_are_listed_once_in_order_with_their_kind(prefect: ModuleType) -> None:
    template = {
        "{{ key }}": "{{ b }}-{{ a }}-{{ b }}",
        "list": ["{{ $E }}", {"x": "{{ prefect.blocks.t.n }}"}, 1, None],
        "last": "{{ prefect.variables.v }} {{ a | b }}",
    }
    found = templates.find_placeholders(template)
    assert [(each.text, each.name, each.kind) for each in found] == [
        ("{{ b }}", "b", templates.PlaceholderKind.VALUE),
        ("{{ a }}", "a", templates.PlaceholderKind.VALUE),
        ("{{ $E }}", "$E", templates.PlaceholderKind.ENVIRONMENT),
        ("{{ prefect.blocks.t.n }}", "prefect.blocks.t.n", templates.PlaceholderKind.BLOCK),
        ("{{ prefect.variables.v }}", "prefect.variables.v", templates.PlaceholderKind.VARIABLE),
    ]
    theirs_found = {(each.full_match, each.name) for each in prefect.find_placeholders(template)}
    assert {(each.text, each.name) for each in found} == theirs_found


# Blocks


BLOCK_CASES: Sequence[tuple[Any, Any]] = [
    ("{{ prefect.blocks.secret.plain }}", "pw"),
    ("{{ prefect.blocks.secret.plain.value }}", "pw"),
    ("tok={{ prefect.blocks.secret.plain }}", "tok=pw"),
    ("{{ prefect.blocks.secret.plain }}/{{ prefect.blocks.secret.dict.token }}", "pw/T"),
    ("{{ prefect.blocks.secret.plain }}{{ other }}", "pw{{ other }}"),
    ("{{ prefect.blocks.secret.dict }}", BLOCKS["secret", "dict"]["value"]),
    ("{{ prefect.blocks.secret.dict.token }}", "T"),
    ("{{ prefect.blocks.secret.dict.value.token }}", "T"),
    ("{{ prefect.blocks.secret.dict.values }}", "V"),
    ("{{ prefect.blocks.secret.dict.nothing }}", None),
    ("x{{ prefect.blocks.secret.dict.nothing }}", "xNone"),
    ("{{ prefect.blocks.secret.dict.l[0].q }}", 1),
    ("x{{ prefect.blocks.secret.dict.l[0].q }}", "x1"),
    ("{{ prefect.blocks.secret.value-in-value }}", {"value": "inner"}),
    ("{{ prefect.blocks.secret.value-in-value.value.value }}", "inner"),
    ("{{ prefect.blocks.json.two }}", {"value": "v", "other": {"a": [1, 2]}}),
    ("{{ prefect.blocks.json.two.value }}", "v"),
    ("{{ prefect.blocks.json.two.other.a[1] }}", 2),
    ("{{ prefect.blocks.json.values }}", {"values": "not unwrapped"}),
    ("{{ prefect.blocks.json.values.values }}", "not unwrapped"),
    ("{{ prefect.blocks.json.empty }}", {}),
    ("{{ prefect.blocks.json.looks-like-block }}", "{{ prefect.blocks.secret.plain }}"),
    ({"$ref": {"block_document_id": SECRET_ID}}, {"value": "pw"}),
    ({"a": [{"$ref": {"block_document_id": SECRET_ID}, "b": 1}]}, {"a": [{"value": "pw"}]}),
    ({"$ref": {"block_document_id": ""}}, {"$ref": {"block_document_id": ""}}),
    ({"$ref": {"other": "x"}}, {"$ref": {"other": "x"}}),
    ({"{{ prefect.blocks.secret.plain }}": 1}, {"{{ prefect.blocks.secret.plain }}": 1}),
    (["{{ x }}", "{{ prefect.variables.w }}", 1, None, (2,)], None),
]


@pytest.mark.parametrize(("template", "expected"), BLOCK_CASES, ids=repr)
def test_blocks_are_resolved_as_prefect_resolves_them(
    prefect: ModuleType, client: PrefectClient, template: Any, expected: Any
) -> None:
    expected = template if expected is None and isinstance(template, list) else expected
    assert templates.resolve_block_references(template, Reader()) == expected
    resolving = prefect.resolve_block_document_references(template, client=client)
    assert asyncio.run(resolving) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ prefect.blocks.secret.nope }}", "block 'nope' of type 'secret', which .* refers to,"),
        ("a {{ prefect.blocks.x.y.z }}", "block 'y' of type 'x', which {{ prefect.blocks.x.y.z }}"),
        ("{{ prefect.blocks.secret.plain.nope }}", "'plain' of type 'secret' has no .* 'nope'"),
        ("{{ prefect.blocks.secret.plain. }}", "'plain' of type 'secret' has no value at ''"),
        ("{{ prefect.blocks.secret.dict.l[1] }}", "'dict' of type 'secret' has no .* 'l\\[1\\]'"),
        ("x{{ prefect.blocks.secret.dict }}", "{{ prefect.blocks.secret.dict }} is a dict"),
        ("x{{ prefect.blocks.secret.dict.l }}", "{{ prefect.blocks.secret.dict.l }} is a list"),
        ("{{ prefect.blocks.secret }}", "{{ prefect.blocks.secret }} does not name a block"),
        ("{{ prefect.blocks..plain }}", "does not name a block"),
        ({"$ref": {"block_document_id": "gone"}}, "block document 'gone' does not exist"),
    ],
)
def test_an_unusable_block_reference_is_named_and_no_secret_told(
    prefect: ModuleType, client: PrefectClient, template: Any, message: str
) -> None:
    with pytest.raises(errors.ConfigurationError, match=message.replace("{{", r"\{\{")) as caught:
        templates.resolve_block_references(template, Reader())
    assert not re.search(r"\bpw\b|\bT\b|inner", str(caught.value))
    with pytest.raises((ValueError, client.not_found)):
        asyncio.run(prefect.resolve_block_document_references(template, client=client))


def test_a_ref_that_is_no_mapping_is_ordinary_data() -> None:
    # Prefect fails here with an AttributeError; a JSON schema in a job variable has such texts.
    template = {"$ref": "#/definitions/Thing"}
    assert templates.resolve_block_references(template, Reader()) == template


def test_each_block_is_read_once() -> None:
    reader = Reader()
    reference = {"$ref": {"block_document_id": SECRET_ID}}
    text = "{{ prefect.blocks.secret.plain }}{{ prefect.blocks.secret.plain.value }}"
    templates.resolve_block_references([text, text, reference, reference], reader)
    assert reader.asked == [("secret", "plain"), SECRET_ID]


def test_what_a_block_resolves_to_can_be_changed_without_changing_the_block() -> None:
    first, second = templates.resolve_block_references(
        ["{{ prefect.blocks.secret.dict }}", "{{ prefect.blocks.secret.dict }}"], Reader()
    )
    first["token"] = "changed"
    first["l"].clear()
    assert second["token"] == "T"
    assert BLOCKS["secret", "dict"]["value"]["l"] == [{"q": 1}]


# Variables


VARIABLE_CASES: Sequence[tuple[Any, Any]] = [
    ("{{ prefect.variables.w }}", 7),
    ("n={{ prefect.variables.w }}", "n=7"),
    ("{{ prefect.variables.v }}", {"a": 1}),
    ("{{ prefect.variables.none }}", None),
    ("n={{ prefect.variables.none }}", "n=None"),
    ("{{ prefect.variables.missing }}", ""),
    ("a{{ prefect.variables.missing }}b", "ab"),
    ("{{ prefect.variables.v.a }}", ""),
    ("{{ prefect.variables.dotted.name }}", "found"),
    ("{{ prefect.variables.w }}{{ prefect.variables.text }}", "7t"),
    ("{{ prefect.variables.looks-like-variable }}", "{{ prefect.variables.w }}"),
    ("{{ x }}{{ prefect.variables.w }}", "{{ x }}7"),
    ("{{ prefect.blocks.secret.plain }}", "{{ prefect.blocks.secret.plain }}"),
    ({"a": ["{{ prefect.variables.w }}", 1, None]}, {"a": [7, 1, None]}),
    ({"{{ prefect.variables.w }}": 1}, {"{{ prefect.variables.w }}": 1}),
]


@pytest.mark.parametrize(("template", "expected"), VARIABLE_CASES, ids=repr)
def test_variables_are_resolved_as_prefect_resolves_them(
    prefect: ModuleType, client: PrefectClient, template: Any, expected: Any
) -> None:
    assert templates.resolve_variables(template, Reader()) == expected
    assert asyncio.run(prefect.resolve_variables(template, client=client)) == expected


def test_each_variable_is_read_once_also_if_it_is_missing() -> None:
    reader = Reader()
    text = "{{ prefect.variables.w }}{{ prefect.variables.missing }}"
    templates.resolve_variables([text, text], reader)
    assert reader.asked == ["w", "missing"]


def test_a_variable_can_be_changed_without_changing_its_other_uses() -> None:
    first, second = templates.resolve_variables(["{{ prefect.variables.v }}"] * 2, Reader())
    first["a"] = 2
    assert second == {"a": 1}


def test_a_failing_reader_is_not_taken_for_a_missing_object() -> None:
    class Unreachable(Reader):
        def read_variable(self, name: str) -> Any:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        templates.resolve_variables("{{ prefect.variables.w }}", Unreachable())


# Random templates, against Prefect. Where texts have several placeholders, neither the values
# nor the text between can form a new one; there alone Prefect's result has an order.

NAMES = ("x", "s", "d", "d.k", "d.k[1].z", "d.k[7]", "n", "b", "nope", "$MYENV", "$NOPE")
REFERENCES = ("prefect.blocks.secret.plain", "prefect.variables.w")
PLACEHOLDERS = strategies.builds(
    "{{{{{}{}{}}}}}".format,
    strategies.sampled_from(["", " ", "  "]),
    strategies.sampled_from(NAMES + REFERENCES),
    strategies.sampled_from(["", " "]),
)
ORDERLY_TEXTS = strategies.lists(
    strategies.one_of(PLACEHOLDERS, strategies.text("ab -_/.$[]|", max_size=4)), max_size=5
).map("".join)
FRAGMENTS = (
    "{{",
    "}}",
    "{",
    "}",
    " ",
    "\n",
    "x",
    "s",
    "d.k[",
    "]",
    ".",
    "1",
    "-",
    "$",
    "MYENV",
    "|",
)
WILD_TEXTS = (
    strategies.lists(strategies.sampled_from(FRAGMENTS), max_size=12)
    .map("".join)
    .filter(lambda text: len(templates.find_placeholders(text)) <= 1)
)
LEAVES = strategies.one_of(
    ORDERLY_TEXTS,
    WILD_TEXTS,
    strategies.none(),
    strategies.booleans(),
    strategies.integers(),
    strategies.floats(allow_nan=False),
)
TEMPLATES = strategies.recursive(
    LEAVES,
    lambda inner: strategies.one_of(
        strategies.lists(inner, max_size=3),
        strategies.dictionaries(ORDERLY_TEXTS, inner, max_size=3),
    ),
    max_leaves=8,
)


@hypothesis.settings(deadline=None)
@hypothesis.given(template=TEMPLATES)
def test_random_templates_come_out_as_from_prefect(prefect: ModuleType, template: Any) -> None:
    assert ours(template) == theirs(prefect, template)


@hypothesis.settings(deadline=None)
@hypothesis.given(template=TEMPLATES)
def test_random_placeholders_are_found_as_by_prefect(prefect: ModuleType, template: Any) -> None:
    found = {(each.text, each.name) for each in templates.find_placeholders(template)}
    expected = {(each.full_match, each.name) for each in prefect.find_placeholders(template)}
    assert found == expected
