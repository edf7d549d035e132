from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from tokenizer_setups import TOOLS, assistant, like_llama3, trained, user
from transformers import AutoTokenizer

from etymon.errors import RenderError
from etymon.text import Renderer
from etymon.text.template import Template, compiled

TALK = [user("q"), assistant("r")]


def render(source: str, **variables: object) -> str:
    return compiled(source).render({"messages": TALK, **variables})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "source",
    [
        # work
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in 'x' * 900 %}{% for b in 'x' * 900 %}{% for c in 'x' * 900 %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ 9 ** (9 ** (9 ** 9)) }}",
        "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
        # text
        "{{ 'a' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 10000000000 * 'a' }}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('', 'aa') %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ''.join([ns.x, ns.x]) %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x.join('bbb') %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=['aa']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% set ns.x = x %}{% endfor %}",
        "{% set x %}{% for a in range(90000) %}" + "y" * 9000 + "{% endfor %}{% endset %}",
        "{{ 'a'.center(10000000000) }}",
        "{{ 'a'|center(10000000000) }}",
        "{{ 'a'.zfill(10000000000) }}",
        "{{ 'a\\n'|indent(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '%10000000000d'|format(1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10000000000) }}",
        "{{ messages|tojson(indent=10000000000) }}",
        "{{ messages|batch(10000000000, 0)|list }}",
        "{{ messages|slice(10000000000)|list }}",
        "{{ strftime_now('%10000000000d') }}",
        "{{ 1|round(10000000000) }}",
        "{{ 'a'.encode('utf-8') * 10000000000 }}",
        # the interpreter
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(x=1) }}",
        "{{ self._TemplateReference__context }}{{ cycler.__init__.__globals__ }}",
        "{{ ('%s' % messages)|attr('__class__') }}{{ namespace(__class__=1) }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing.more }}",
    ],
)
def test_hostile_templates_are_stopped(source: str) -> None:
    with pytest.raises(RenderError):
        Template(source).render({"messages": TALK})


@pytest.mark.parametrize("source", ["{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format(1) }}"])
def test_private_attributes_are_not_there(source: str) -> None:
    assert render(source) == ""


def test_a_stopped_template_does_not_harm_the_next() -> None:
    with pytest.raises(RenderError, match="too much"):
        render("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}")
    assert render("{{ messages[0].content }}") == "q"


def test_long_conversations_are_not_hostile() -> None:
    talk = [user("word " * 50_000), assistant("reply " * 50_000)] * 5
    rendered = Renderer(trained()).render(talk)
    assert len(rendered.ids) > 100_000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "does not parse: line 1"),
        ("{{ 'a' }", "does not parse"),
        ("{% generation %}", "does not parse"),
        ("{{ x|nofilter }}", "does not parse|cannot render"),
        ("x" * 1_000_001, "at most 1000000"),
        ("{{" + "(" * 50_000 + "1" + ")" * 50_000 + "}}", "nested too deeply|does not parse"),
    ],
)
def test_broken_templates_say_where(source: str, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        Template(source).render({})


def test_what_the_template_says_reaches_the_user() -> None:
    with pytest.raises(RenderError, match="cannot render this conversation: only one at a time"):
        render("{{ raise_exception('only one at a time') }}")


ECOSYSTEM = [
    TOOLS,
    "{%- for m in messages %}\n    {%- if loop.first %}\n  a\n    {% endif %}\n{{ m.role }}\n{% endfor %}\n\n",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}{% endfor %}"
    "{{ ns.n }}",
    "{{ {'a': ['é', '<b>', None, true, 1.5]}|tojson }}{{ messages|tojson(indent=2) }}",
    "{{ strftime_now('%Y') }}{{ none }}{{ undefined_name }}{{ messages[0]['missing'] }}",
    "{% macro say(m) %}[{{ m.content|trim|upper }}]{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "{{ messages|map(attribute='content')|join(', ') }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages[::-1][0].content }}{{ (messages|last).role }}{{ messages|length is odd }}{{ '%s-%d' % ('x', 3) }}",
    "{{ dict(a=1, **{'b': 2}) }}{{ 'a b'.split() }}{{ 'x'.join(['1', '2']) }}{{ 7 // 2 * 2 ** 3 }}{{ 'ab' * 3 }}",
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ messages[0].content ~ 1 ~ none }}{{ '{:>5}'.format('x') }}",
    "{%- set x %}\nblock {{ messages[0].content }}\n{% endset %}{{ x|indent(2, true) }}{{ x is string }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('x') }}{{ range(3)|list }}",
    "{% call(x) m() %}{{ x }}{% endcall %}{% macro m() %}{{ caller('c') }}{% endmacro %}",
    "{% macro m() %}<{{ caller('c') }}>{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}",
    "{% filter upper %}abc{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}{# c #}{% raw %}{{ x }}{% endraw %}",
]


@pytest.mark.parametrize("source", ECOSYSTEM)
def test_templates_mean_what_they_mean_elsewhere(source: str, tmp_path: Path) -> None:
    tokenizer = like_llama3().with_template(source)
    tokenizer.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": "é <b>"}}}]
    talk = [user(" a question\n"), assistant("an answer")]
    try:
        theirs = reference.apply_chat_template(talk, tools=tools, tokenize=False)
    except Exception:
        with pytest.raises(RenderError):
            compiled(source).render({"messages": talk, "tools": tools} | tokenizer.template_variables)
        return
    variables = {"messages": talk, "tools": tools, "documents": None, "add_generation_prompt": False}
    assert compiled(source).render(variables | tokenizer.template_variables) == theirs


def test_one_clock_for_one_conversation() -> None:
    now = datetime(2024, 7, 26, 23, 59)
    assert compiled("{{ strftime_now('%d %b %Y') }}").render({}, now=now) == "26 Jul 2024"


def test_json_is_plain() -> None:
    assert render("{{ messages|tojson }}") == json.dumps(TALK, ensure_ascii=False)
