"""Whatever a module defines, detection takes one signature by name or refuses; it never guesses."""

from __future__ import annotations

import types

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from trimtab_workers.runner.loading import RefusedError
from trimtab_workers.runner.signatures import ENTRIES, choose

NAMES = sorted({entry.name for entry in ENTRIES} | {"run"})
PARAMETERS = sorted({name for entry in ENTRIES for name in entry.parameters} | {"x"})


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(PARAMETERS), unique=True, max_size=3),
        max_size=3,
    )
)
def test_a_choice_is_the_only_signature_whose_names_fit(functions) -> None:
    """A module is served only if exactly one signature has an entry of its names, and as that one."""
    module = types.ModuleType("main")
    for name, parameters in functions.items():
        exec(f"def {name}({', '.join(parameters)}): ...", vars(module))
    fitting = {
        entry.signature
        for entry in ENTRIES
        if entry.detected and tuple(functions.get(entry.name, ["-"])) == entry.parameters
    }
    if len(fitting) == 1:
        event("served")
        assert {choose(module, signature=None).signature} == fitting
        return
    event("refused")
    with pytest.raises(RefusedError) as refused:
        choose(module, signature=None)
    assert all(signature in str(refused.value) for signature in fitting)
