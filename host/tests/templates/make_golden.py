"""Renders chats with transformers' chat templates, for host/tests/templates.rs.

    pip install transformers jinja2
    python make_golden.py > golden.json                     the made-up templates below
    python make_golden.py FOLDER > real.json                every *.jinja of a folder

Each line of the output is one rendering: template, context, and the text or the error.
"""

import json
import pathlib
import sys

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city: <warm> & 'cold' \"wet\"",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


CHATS = {
    "one": [say("user", "Hello")],
    "system": [say("system", "Be short."), say("user", "Hello")],
    "turns": [say("user", "Hi"), say("assistant", "Hello!"), say("user", "How are you?")],
    "system turns": [say("system", " Be kind.\n"), say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d"), say("user", "e")],
    "answered": [say("user", "Hi"), say("assistant", "Hello!")],
    "odd": [say("user", " \n<b>&amp;</b> \"q\" 'q' {{ x }} {% y %} \\n 🐍\u200b ünï ")],
    "empty": [say("user", "")],
    "no messages": [],
    "assistant first": [say("assistant", "I begin"), say("user", "ok")],
    "two users": [say("user", "a"), say("user", "b")],
    "unknown role": [say("narrator", "once")],
    "parts": [say("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])],
    "none content": [say("user", "w"), say("assistant", None, tool_calls=[CALL]), say("tool", "{\"t\": 20.5}", name="get_weather", tool_call_id="abcdef123"), say("user", "thanks")],
    "calls": [say("system", "s"), say("user", "w"), say("assistant", "", tool_calls=[CALL]), say("tool", "cold", name="get_weather", tool_call_id="abcdef123")],
    "thinking": [say("user", "a"), say("assistant", "<think>\nwhy\n</think>\n\nbecause"), say("user", "b")],
}

LOOP = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
MADE_UP = {
    "plain": LOOP,
    "bos": "{{ bos_token }}" + LOOP + "{{ eos_token }}",
    "blocks": "  {% for m in messages %}\n    {{ m['role'] }}\n  {%- if loop.first %} first {% elif loop.last -%}  last {% else %}middle{% endif %}\n  {# a comment #}\n{% endfor %}\n\n",
    "plus": "a\n   {%+ if true %}b{% endif +%}\n c\n{{- 'd' -}}\n e {%- if true -%} f {%- endif -%} g\n",
    "crlf": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n",
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.cycle('a', 'b') }} {{ loop.previtem.role if loop.previtem is defined else '-' }} {{ loop.nextitem.role if loop.nextitem is defined else '-' }};{% else %}nothing{% endfor %}",
    "controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% if loop.index > 3 %}{% break %}{% endif %} {% endfor %}",
    "raise": "{% if messages[0].role != 'user' %}{{ raise_exception('A chat begins with user, not ' + messages[0].role + '!') }}{% endif %}" + LOOP,
    "raise lines": "{% if not messages %}{{ raise_exception('Nothing to say') }}{% endif %}" + LOOP,
    "alternate": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{{ m.content | trim }}\n{% endfor %}",
    "system first": "{% if messages and messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set rest = messages[1:] %}{% else %}{% set system = 'You help.' %}{% set rest = messages %}{% endif %}<<{{ system }}>>{% for m in rest %}[{{ m.role }}]{{ m.content }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='', found=false) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.content %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.last }} {{ ns.found }}",
    "scope": "{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "macro": "{% macro say(role, text='none', mark=false) %}<{{ role }}{{ '*' if mark }}>{{ text }}{% endmacro %}{% for m in messages %}{{ say(m.role, m.content, mark=loop.last) }}{% endfor %}{{ say('end') }}",
    "call block": "{% macro box(title) %}[{{ title }}: {{ caller() }}]{% endmacro %}{% for m in messages %}{% call box(m.role) %}{{ m.content }}{% endcall %}{% endfor %}",
    "filter block": "{% filter upper %}{% for m in messages %}{{ m.role }} {% endfor %}{% endfilter %}",
    "set block": "{% set text %}{% for m in messages %}{{ m.role }},{% endfor %}{% endset %}{{ text | length }}:{{ text }}",
    "tojson": "{{ messages | tojson }}\n{{ tools | tojson }}",
    "tojson indent": "{{ messages | tojson(indent=4) }}\n{% if tools %}{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}{% endif %}",
    "tojson options": "{{ messages | tojson(ensure_ascii=True) }} {{ {'b': 1, 'a': [1, 2.5, true, none, 1e20, 1.0, 0.00001, -0.0]} | tojson(sort_keys=True) }} {{ [1, {'a': 2}] | tojson(separators=(',', ':')) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }}",
    "python values": "{{ true }} {{ false }} {{ none }} {{ 1 }} {{ 1.0 }} {{ 2.5 }} {{ 1e16 }} {{ 1e-5 }} {{ 123456789.125 }} {{ [1, 'a', true, none, 1.5] }} {{ {'k': 'v', 'n': none, 'l': ['it\\'s', 'say \"x\"']} }} {{ undefined_name }}|{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} {{ -3 }}",
    "concatenation": "{{ 'a' ~ 1 ~ true ~ none ~ 2.0 }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ 'ab' * 2 }}",
    "filter string": "{{ [1, 'x'] | string }} {{ {'a': true} | string }} {{ 3 | string }} {{ messages | length }} {{ 'abc' | upper }} {{ 'ABC' | lower }} {{ 'a b' | title }} {{ 'abc' | capitalize }} {{ 'x' | default('y') }} {{ zz | default('y') }} {{ '' | default('y', true) }} {{ none | default('z') }}",
    "filter lists": "{{ [3, 1, 2] | sort | join('-') }} {{ ['b', 'A'] | sort }} {{ [1, 2, 3] | first }} {{ [1, 2, 3] | last }} {{ [1, 2] | reverse | list }} {{ 'abc' | list }} {{ [1, 1, 2] | unique | list }} {{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1, 'a': 2} | items | list }} {{ [1, 2, 3, 4] | sum }} {{ [1, 2, 3] | max }} {{ 'a,b' | replace(',', ';') }} {{ '  x ' | trim }} {{ 'xxaxx' | trim('x') }}",
    "filter select": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | join(',') }} {{ messages | map(attribute='role') | unique | join(' ') }} {{ [1, 2, 3, 4] | select('even') | list }} {{ [0, 1] | reject('odd') | list }} {{ messages | selectattr('content') | list | length }} {{ ['a', 'b'] | map('upper') | list }}",
    "indent": "{{ 'a\\nb\\nc' | indent(2) }}|{{ 'a\\nb' | indent(3, true) }}",
    "tests": "{% for v in [1, 1.5, true, none, 'a', [1], {'k': 1}] %}{{ v is string }}{{ v is number }}{{ v is integer }}{{ v is boolean }}{{ v is none }}{{ v is mapping }}{{ v is sequence }}{{ v is iterable }}{{ v is defined }} {% endfor %}{{ zz is defined }} {{ zz is undefined }} {{ 4 is even }} {{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ 'a' is in ['a'] }} {{ true is true }} {{ 'a' is eq 'a' }}",
    "methods": "{{ ' a b '.strip() }} {{ 'xax'.lstrip('x') }} {{ 'xax'.rstrip('x') }} {{ 'a b c'.split() }} {{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',')[-1] }} {{ 'abc'.startswith('a') }} {{ 'abc'.endswith('bc') }} {{ 'aXb'.upper() }} {{ 'aXb'.lower() }} {{ 'abc'.replace('b', 'd') }} {{ 'abc'.find('c') }} {{ 'a-b'.title() }} {{ ','.join(['a', 'b']) }} {{ {'a': 1}.items() | list }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 'c') }} {{ {'a': 1}.keys() | list }} {{ {'a': 1}.values() | list }} {{ 'aba'.count('a') }} {{ '12'.isdigit() }} {{ 'a\\nb'.splitlines() }}",
    "split limits": "{{ 'a</think>b</think>c'.split('</think>')[-1] }} {{ 'a</think>b</think>c'.split('</think>', 1)[1] }} {{ 'a</think>b'.split('</think>')[0].split('<think>')[-1].lstrip('\\n') }}",
    "slices": "{{ messages[-1].role if messages }} {{ messages[1:] | length }} {{ messages[::-1] | map(attribute='role') | join(' ') }} {{ 'abcdef'[1:3] }} {{ 'abcdef'[-2:] }} {{ [1, 2, 3][:-1] }} {{ 'abc'[0] }}",
    "logic": "{{ 'a' if 1 > 2 else 'b' }} {{ 'x' if false }}| {{ 1 < 2 and 2 < 3 }} {{ not true }} {{ 1 == 1.0 }} {{ 'a' in 'abc' }} {{ 'k' in {'k': 1} }} {{ 2 not in [1] }} {{ (none or 'd') }} {{ ('' and 'x') }}| {{ 1 <= 1 != 2 }}",
    "attributes": "{% for m in messages %}{{ m.get('name', 'nobody') }} {{ m.name }} {{ m['tool_call_id'] }}{% if 'tool_calls' in m %}{% for c in m.tool_calls %}{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% if not loop.last %}, {% endif %}{% endfor %}){% endfor %}{% endif %};{% endfor %}",
    "arguments": "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% elif m.content is string %}{{ m.content }}{% elif m.content is iterable %}{% for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}|{% endfor %}",
    "tools": "{% if tools is not none and tools %}Tools:\n{% for t in tools %}{{ t.function.name }}: {{ t['function']['description'] }} {{ t.function.parameters.properties | tojson }}\n{% endfor %}{% endif %}{{ tools is defined }} {{ tools is none }} {{ documents is none }}" + LOOP,
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{%- generation -%} x {%- endgeneration %}\n{% endfor %}",
    "date": "{{ strftime_now('%Y')[:2] }}{{ strftime_now('%d %b %Y') | length }}{{ strftime_now('%%') }}" + LOOP,
    "date defined": "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') | length }}{% endif %}",
    "syntax error": "{% for m in messages %}{{ m.role }",
    "unknown filter": "{{ messages | from_json }}",
    "missing attribute": "{{ nothing.here }}",
    "list append": "{% set l = [] %}{{ l.append(1) }}",
    "raw": "{% raw %}{{ not }} {% this %}{% endraw %}{{ '{{' }}",
    "nested": "{% for m in messages %}{% set outer = loop %}{% for c in [1, 2] %}{{ outer.index }}.{{ loop.index }} {% endfor %}{% endfor %}",
    "unpack": "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% endfor %}{% set a, b = 1, 2 %}{{ b }}",
    "with": "{% with a = 1, b = 'x' %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "recursive": "{% macro show(d) %}{% if d is mapping %}{% for k, v in d.items() %}{{ k }}:{{ show(v) }};{% endfor %}{% elif d is sequence and d is not string %}[{% for v in d %}{{ show(v) }},{% endfor %}]{% else %}{{ d }}{% endif %}{% endmacro %}{{ show(messages) }}",
    "format": "{{ '%s-%d' | format('a', 3) }} {{ 'a{}b'.format(1) }}",
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2, 8, 3) | list }}",
    "inline if loop": "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }}{% endfor %}",
}


def renderings(name, template, contexts):
    for chat, messages in contexts:
        for tools in (None, [TOOL]):
            for prompt in (False, True):
                # Fewer of those that show nothing new.
                if (tools and "tools" not in template) or (prompt and "add_generation_prompt" not in template):
                    continue
                context = {"messages": messages, "tools": tools, "add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>"}
                out = {"name": f"{name}/{chat}", "template": name, "chat": chat, "tools": bool(tools), "prompt": prompt}
                try:
                    named = {k: v for k, v in context.items() if k not in ("messages", "tools")}
                    out["text"] = render_jinja_template([json.loads(json.dumps(messages))], tools=tools, chat_template=template, **named)[0][0]
                except jinja2.exceptions.TemplateError as error:
                    out["raised"] = type(error) is jinja2.exceptions.TemplateError
                    out["error"] = error.message or ""
                except Exception as error:  # what Python itself refuses
                    out["raised"], out["error"] = False, f"{type(error).__name__}: {error}"
                yield out


def main():
    if len(sys.argv) > 1:
        # A template that uses strftime_now has the date of its making: compare at once.
        paths = sorted(pathlib.Path(sys.argv[1]).glob("*.jinja"))
        templates, few = {path.name: path.read_text(encoding="utf-8") for path in paths}, False
    else:
        templates, few = MADE_UP, True
    some = ["one", "system turns", "odd", "calls", "no messages"]
    out = {"chats": CHATS, "tool": TOOL, "templates": templates, "renderings": []}
    for name, template in templates.items():
        uses_chat = "messages" in template
        chats = [(c, m) for c, m in CHATS.items() if not few or uses_chat and (name in ("plain", "raise", "raise lines", "alternate", "attributes", "arguments", "tools", "system first") or c in some) or c == "one"]
        out["renderings"] += renderings(name, template, chats)
    json.dump(out, sys.stdout, ensure_ascii=False, indent=0, sort_keys=False)
    print()


main()
