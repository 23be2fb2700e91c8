"""Chat templates are foreign code: what they cost is bounded, what they break is one request."""

from pathlib import Path

import pytest

from trimtab_workers.engine.errors import InvalidRequestError, ModelCorruptError
from trimtab_workers.engine.template import ChatTemplate

TALK = [{"role": "user", "content": "Hi 🙂 \ud83d"}]
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"


def a_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_texts={"bos_token": "<s>"})


def test_renders_what_jinja_renders():
    """Messages, special texts and the opening of the assistant's turn reach the template."""
    template = a_template(PLAIN + "{% if add_generation_prompt %} assistant:{% endif %}")
    text = template.render(TALK, add_generation_prompt=True)
    assert text == "<s>user: Hi 🙂 \ud83d assistant:"
    assert template.render(TALK, add_generation_prompt=False) == "<s>user: Hi 🙂 \ud83d"


def test_helpers_of_hugging_face():
    """Templates may dump JSON, tell the date, leave loops and raise exceptions."""
    source = "{{ messages|tojson }}{{ strftime_now('%Y')|length }}{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}"
    assert a_template(source).render([{"a": "é"}], add_generation_prompt=True) == '[{"a": "é"}]41'
    with pytest.raises(InvalidRequestError, match=r"refuses them: roles must alternate\."):
        a_template("{{ raise_exception('roles must alternate') }}").render(
            TALK, add_generation_prompt=True
        )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 'a' * 10**10 }}", "MemoryError"),
        ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "more than 4194304 characters"),
        ("{{ messages|nofilter }}", "nofilter"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
)
def test_hostile_templates_end_one_request(source: str, words: str):
    """Memory, length, unknown names and ways out of the sandbox are refusals that say why."""
    with pytest.raises(InvalidRequestError, match=words) as caught:
        a_template(source).render(TALK, add_generation_prompt=True)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_time_is_bounded():
    """A template without end is stopped by the kernel, and the next conversation is served."""
    template = a_template(
        "{% if messages|length > 1 %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}ok"
    )
    with pytest.raises(InvalidRequestError, match="more than 2 s of processor time"):
        template.render(TALK * 2, add_generation_prompt=True)
    assert template.render(TALK, add_generation_prompt=True) == "ok"


def test_a_renderer_that_died_is_replaced():
    """A renderer that the kernel killed costs at most the request it was busy with."""
    template = a_template(PLAIN)
    template.start()
    process = template._process
    process.kill()
    process.wait()
    assert template.render(TALK, add_generation_prompt=False).startswith("<s>user")
    assert template._process is not process


def test_the_kernel_ends_the_renderer_before_the_engine():
    """Where memory runs out the renderer is the first to go; its addresses are bounded."""
    template = a_template(PLAIN)
    template.render(TALK, add_generation_prompt=True)
    process = Path(f"/proc/{template._process.pid}")
    assert (process / "oom_score_adj").read_text() == "1000\n"
    [limit] = [x for x in (process / "limits").read_text().splitlines() if "address space" in x]
    assert limit.split()[3] == str(256 << 20)


def test_a_template_that_is_gone_leaves_no_process():
    """Removing a model ends its renderer."""
    template = a_template(PLAIN)
    template.start()
    process = template._process
    del template
    assert process.poll() is not None


@pytest.mark.parametrize("source", ["{% for %}", "{{ " + "(" * 5000, "a" * (65 << 10)])
def test_bad_source_is_a_corrupt_model(source: str):
    """Source that is no Jinja2, or too long, is found when the model is opened."""
    with pytest.raises(ModelCorruptError, match="chat template"):
        a_template(source)
