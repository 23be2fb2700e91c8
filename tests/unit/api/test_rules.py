"""Rules across fields and the schema, as the file reader applies them."""

from __future__ import annotations

import pytest
import yaml

from tests.unit.api.manifest_cases import RULE_CASES, SCHEMA_CASES, RuleCase, SchemaCase, a_profile
from trimtab.api.v1alpha1.manifests import KINDS, ManifestError, broken_rules, read


@pytest.mark.parametrize("case", RULE_CASES, ids=lambda case: f"{case.kind}: {case.message}")
def test_rule_accepts_and_refuses_as_the_table_says(case: RuleCase) -> None:
    """Each accepted manifest breaks no rule at all; each refused one breaks the rule it stands for."""
    kind = KINDS[case.kind]
    for manifest in case.accepted:
        assert broken_rules(kind.from_cluster(manifest)) == []
    for manifest in case.refused:
        broken = broken_rules(kind.from_cluster(manifest))
        assert [message for message in broken if case.message in message], manifest


def test_every_rule_that_a_file_can_break_has_a_case() -> None:
    """A rule without accepted and refused manifests cannot be merged."""
    tested = [(case.kind, case.message) for case in RULE_CASES if case.accepted and case.refused]
    untested = [
        (name, rule.message)
        for name, kind in KINDS.items()
        for rule in (*kind.RULES, *kind.SPEC_RULES)
        if rule.holds and not any(name == k and part in rule.message for k, part in tested)
    ]
    assert untested == []


@pytest.mark.parametrize("case", SCHEMA_CASES, ids=lambda case: case.id)
def test_file_reader_names_object_field_and_value(case: SchemaCase) -> None:
    """A person reads which object, which field, which value and what would be right."""
    with pytest.raises(ManifestError) as refused:
        read(yaml.safe_dump(case.manifest), origin="given.yaml")
    message = str(refused.value)
    assert message.startswith(f"given.yaml: {case.manifest['kind']} ")
    assert case.file in message


def test_file_reader_reports_every_mistake_of_every_document() -> None:
    """Two broken documents give two lines, so nobody corrects a file in ten rounds."""
    text = yaml.safe_dump_all([a_profile(intervalHours=0), a_profile(nodeSelektor={}), a_profile()])
    with pytest.raises(ManifestError) as refused:
        read(text, origin="f.yaml")
    lines = str(refused.value).splitlines()
    assert lines == [
        (
            "f.yaml: GPUProfile subject: spec.intervalHours is 0: input should be greater than or "
            "equal to 1."
        ),
        "f.yaml: GPUProfile subject: spec.nodeSelektor is unknown: remove it or correct its name.",
    ]


def test_file_reader_passes_over_other_groups_but_not_over_our_typos() -> None:
    """A ConfigMap beside a profile is somebody else's; `trimtab.dev/v1` is a mistake."""
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    found = read(yaml.safe_dump_all([other, a_profile()]), origin="f.yaml")
    assert [resource.kind for resource in found] == ["GPUProfile"]
    wrong = a_profile() | {"apiVersion": "trimtab.dev/v1"}
    with pytest.raises(ManifestError, match=r"holds trimtab.dev/v1 GPUProfile: expected"):
        read(yaml.safe_dump(wrong), origin="f.yaml")


def test_file_reader_unfolds_lists_and_keeps_timestamps_as_text() -> None:
    """The output of `kubectl get -o yaml` can be read back."""
    item = a_profile()
    item["metadata"] |= {"creationTimestamp": "2026-11-01T00:00:00Z", "uid": "u-1"}
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [item]}).replace("'", "")
    (found,) = read(text, origin="f.yaml")
    assert found.metadata.creation_timestamp is not None
    assert found.metadata.creation_timestamp.isoformat() == "2026-11-01T00:00:00+00:00"


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "just words"])
def test_file_reader_refuses_what_is_no_object(text: str) -> None:
    """A file that is no manifest is refused with its name, not with a traceback."""
    with pytest.raises(ManifestError, match=r"^f\.yaml "):
        read(text, origin="f.yaml")
