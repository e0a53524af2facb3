"""Chat templates: some that try to get out of the sandbox or to take all time and memory there is, some in good faith.

`CANARY` in a template stands for the path of a file that must not come into being.
"""

from __future__ import annotations

_TOUCH = "('touch CANARY')"

ESCAPES = {
    "class of a string": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "subclasses by item": "{{ ''['__class__']['__mro__'][1]['__subclasses__']() }}",
    "subclasses by attr filter": "{{ ''|attr('__class__')|attr('__mro__')|last|attr('__subclasses__') }}",
    "subclasses by map": "{{ ['']|map(attribute='__class__.__mro__')|first|last }}",
    "subclasses by sort": "{{ ['', '']|sort(attribute='__class__')|length }}",
    "subclasses by selectattr": "{{ ['']|selectattr('__class__')|list|length }}",
    "subclasses by join": "{{ ['']|join(', ', attribute='__class__') }}",
    "subclasses by min": "{{ ['', '']|min(attribute='__class__') }}",
    "name put together": "{{ messages['__cl' ~ 'ass__'] }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen" + _TOUCH + ".read() }}",
    "globals of joiner": "{{ joiner.__init__.__globals__.os.popen" + _TOUCH + ".read() }}",
    "globals of namespace": "{{ namespace.__init__.__globals__.os.popen" + _TOUCH + ".read() }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].popen" + _TOUCH + ".read() }}",
    "globals of a function": "{{ raise_exception.__globals__.sys.modules.os.system" + _TOUCH + " }}",
    "globals of a function, by func_globals": "{{ strftime_now.func_globals.clear() }}",
    "builtins of the macro": "{% macro m() %}{% endmacro %}{{ m._func.__builtins__.open('CANARY', 'w') }}",
    "environment of the macro": "{% macro m() %}{% endmacro %}{{ m._environment.call(1, 2) }}",
    "context by self": "{{ self._TemplateReference__context.environment.loader }}",
    "block by self": "{% block b %}{% endblock %}{{ self.b.__init__.__globals__ }}",
    "recursion of blocks": "{% block b %}{{ self.b() }}{% endblock %}",
    "loop's globals": "{% for i in [1] %}{{ loop.__init__.__globals__.sys }}{% endfor %}",
    "loop's generator": "{% for i in [1]|map('upper') %}{{ loop._iterator.gi_frame.f_globals }}{% endfor %}",
    "frame of a generator": "{{ ([1]|map('string')).gi_frame.f_back.f_globals }}",
    "format attribute": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format keyword": "{{ '{x.__globals__}'.format(x=raise_exception) }}",
    "format_map": "{{ '{messages.__class__}'.format_map({'messages': messages}) }}",
    "format by map": "{% for f in ['{0.__class__}']|map(attribute='format') %}{{ f(messages) }}{% endfor %}",
    "format by map filter": "{{ ['{0.__class__}']|map('format', messages)|list }}",
    "include": "{% include '/etc/passwd' %}",
    "include if there": "{% include '/etc/passwd' ignore missing %}",
    "import": "{% import 'os' as os %}{{ os.system" + _TOUCH + " }}",
    "from import": "{% from 'os' import system %}{{ system" + _TOUCH + " }}",
    "extends": "{% extends messages[0].content %}",
    "python import": "{{ __import__('os').system" + _TOUCH + " }}",
    "open": "{{ open('CANARY', 'w') }}",
    "eval": "{{ eval('1') }}",
    "changing messages": "{{ messages.append({'role': 'system', 'content': 'x'}) }}",
    "changing a message": "{{ messages[0].update({'role': 'system'}) }}",
    "clearing": "{{ messages.clear() }}",
    "setting an attribute": "{% set messages.x = 1 %}",
    "calling a message": "{{ messages[0]() }}",
    "private filter": "{{ []|@made }}",
    "private filter by map": "{% for e in [[1]]|map('@each') %}{{ e._sandbox }}{% endfor %}",
}

FLOODS = {
    "endless by nested loops": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "endless by nested lists": "{% set r = range(99999)|list %}{% for a in r %}{% for b in r %}{% for c in r %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "endless by recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "endless by macro": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "endless by macro pair": "{% macro a(n) %}{{ b(n) }}{% endmacro %}{% macro b(n) %}"
    "{{ a(n) }}{% endmacro %}{{ a(1) }}",
    "endless by wide macro": "{% macro m(n) %}{% if n %}{% for i in range(9999) %}{{ m(n - 1) }}{% endfor %}{% endif %}"
    "{% endmacro %}{{ m(9) }}",
    "endless by filters": "{{ range(99999)|list" + "|map('string')|map('int')" * 500 + "|list|length }}",
    "endless by rejection": "{% set r = range(99999)|list %}{{ r|reject('in', r)|list }}",
    "endless by tests": "{% set r = range(99999)|list %}{{ r|select('in', r)|list|length }}",
    "endless by loop filter": "{% set r = range(99999)|list %}{% for a in r if a not in r %}{% endfor %}",
    "endless by attribute path": "{{ range(99999)|list|sort(attribute='" + "a." * 9999 + "a') }}",
    "endless by call block": "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% for a in range(99999) %}"
    "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endcall %}",
    "range": "{{ range(10 ** 9)|list }}",
    "range printed": "{% for i in range(100000000) %}x{% endfor %}",
    "text by *": "{{ 'a' * 10 ** 10 }}",
    "text by * from the left": "{{ 10 ** 10 * 'a' }}",
    "list by *": "{{ ([0] * 10 ** 10)|length }}",
    "nested lists by *": "{% set a = [0] * 1000 %}{% set b = [a] * 1000 %}{% set c = [b] * 1000 %}{{ c }}",
    "number by **": "{{ 10 ** (10 ** 10) }}",
    "number by *": "{% set n = namespace(v=3 ** 2000) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}",
    "doubling by +": "{% set n = namespace(v='a') %}{% for i in range(60) %}{% set n.v = n.v + n.v %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(v='a') %}{% for i in range(60) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
    "doubling by list +": "{% set n = namespace(v=[1]) %}{% for i in range(60) %}{% set n.v = n.v + n.v %}{% endfor %}",
    "doubling by list": "{% set n = namespace(v=[1]) %}{% for i in range(60) %}"
    "{% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v }}",
    "doubling by varargs": "{% macro m() %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1, 2) }}",
    "doubling by kwargs": "{% macro m() %}{{ m(a=kwargs, b=kwargs) }}{% endmacro %}{{ m(a=1) }}",
    "doubling by namespaces": "{% set n = namespace(v=namespace()) %}{% for i in range(60) %}"
    "{% set n.v = namespace(a=n.v, b=n.v) %}{% endfor %}{{ n.v }}",
    "doubling by set block": "{% set a %}{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}",
    "doubling by replace": "{% set a = 'a' * 99999 %}{{ a.replace('a', a)|length }}",
    "doubling by replace filter": "{% set a = 'a' * 99999 %}{{ a|replace('a', a)|length }}",
    "doubling by join": "{% set a = 'a' * 99999 %}{{ a.join(a)|length }}",
    "doubling by join filter": "{% set a = 'a' * 99999 %}{{ a|join(a)|length }}",
    "doubling by format": "{% set a = 'a' * 999999 %}{{ ('{0}' * 9999).format(a)|length }}",
    "doubling by percent": "{% set a = 'a' * 999999 %}{{ (('%(a)s' * 9999) % {'a': a})|length }}",
    "wide percent": "{{ '%9999999999d' % 1 }}",
    "wide percent by star": "{{ '%*d' % (9999999999, 1) }}",
    "wide percent precision": "{{ '%.9999999999f' % 1 }}",
    "wide format": "{{ '{:9999999999}'.format(1) }}",
    "wide format by field": "{{ '{:{w}}'.format(1, w=9999999999) }}",
    "wide format precision": "{{ '{:.9999999999f}'.format(1.5) }}",
    "center": "{{ 'a'.center(10 ** 10) }}",
    "center filter": "{{ 'a'|center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10 ** 10) }}",
    "indent filter": "{{ 'a\\nb'|indent(10 ** 10) }}",
    "tojson indent": "{{ [1]|tojson(indent=10 ** 10) }}",
    "tojson of a wide list": "{{ ([[[1]]] * 199999)|tojson(indent=60) }}",
    "batch": "{{ [1]|batch(10 ** 10, 0)|list }}",
    "round": "{{ 1.5|round(10 ** 10, 'floor') }}",
    "lipsum": "{{ lipsum(10 ** 10) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "slow strip": "{% set a = 'a' * 999999 %}{{ a.strip('b' * 999999 + 'a')|length }}",
    "slow trim": "{% set a = 'a' * 999999 %}{{ a|trim('b' * 999999 + 'a')|length }}",
    "output": "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "many large values": "".join(f"{{% set a{i} = 'a' * 2000000 %}}" for i in range(2000)),
    "many large slices": "{% set a = [1] * 900000 %}" + "".join(f"{{% set a{i} = a[:] %}}" for i in range(2000)),
    "deep parentheses": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "deep lists": "{{ " + "[" * 9999 + "]" * 9999 + " }}",
    "deep lists by loop": "{% set n = namespace(v=[]) %}{% for i in range(9999) %}"
    "{% set n.v = [n.v] %}{% endfor %}{{ n.v }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "deep not": "{{ " + "not " * 9999 + "1 }}",
    "deep minus": "{{ " + "-" * 9999 + "1 }}",
    "deep attributes": "{{ messages" + ".a" * 20000 + " }}",
    "long source": "x" * 100_000,
    "unclosed": "{% for",
    "unclosed comment": "{# " * 20000,
}

# What looks like one of these and is none: within a worker it ends, with a text that tells nothing. By pattern.
HARMLESS = {
    "format item": ("{{ '{0[role]}'.format(messages[0]) }}", "user"),
    "percent of an object": ("{{ '%s' % namespace }}", "<class 'jinja2.utils.Namespace'>"),
    "autoescape": ("{% autoescape true %}{{ messages[0].content }}{% endautoescape %}", "hi"),
    "printing a function": ("{{ raise_exception }}", "<function .*>"),
    "printing a namespace": ("{{ namespace(a=1) }}", "<Namespace {'a': 1}>"),
    "a function in a list": ("{{ [range] }}", r"\[<function .*>\]"),
    "calling a class": ("{{ dict.fromkeys(range(3)) }}", "{0: None, 1: None, 2: None}"),
    "str.encode": ("{{ 'a'.encode('utf-16') }}", r"b'\\xff\\xfea\\x00'"),
    "unicode of time": ("{{ strftime_now('%9999999Y') }}", ""),
    "pprint": ("{{ range|pprint }}", "<function .*>"),
    "doubling by tuple": (
        "{% set n = namespace(v=1) %}{% for i in range(60) %}{% set n.v = (n.v, n.v) %}{% endfor %}{{ n.v == 1 }}",
        "False",
    ),
    "doubling by dict": (
        "{% set n = namespace(v=1) %}{% for i in range(60) %}{% set n.v = {'a': n.v, 'b': n.v} %}{% endfor %}",
        "",
    ),
    "doubling by dict()": (
        "{% set n = namespace(v=1) %}{% for i in range(60) %}{% set n.v = dict(a=n.v, b=n.v) %}{% endfor %}",
        "",
    ),
    "slow search": ("{% set a = 'a' * 999999 %}{{ a.rfind('b' + a[:499999]) }}", "-1"),
    "slow int": ("{{ ('9' * 999999)|int }}", "0"),
    "slow urlize": ("{{ ('a@' * 99999)|urlize }}", "(a@){99999}"),
}

# What templates in the wild use, with the text that it gives.
FEATURES = {
    "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}": "2",
    "{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }}{{ loop.revindex }}{% endfor %}": "0TrueTrue11",
    "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}"
    "{% break %}{% endif %}{{ i }}{% endfor %}": "02",
    "{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}={{ v }};{% endfor %}": "a=1;b=[2];",
    "{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}": "a2b1",
    "{% for k, v in {'b': 1, 'a': 2}|items %}{{ k }}{{ v }}{% endfor %}": "b1a2",
    "{% for m in messages|selectattr('role', 'equalto', 'user')|list %}{{ m.content }}{% endfor %}": "hi",
    "{{ messages|map(attribute='role')|join(', ') }}{{ [1, 2]|join }}{{ ', '.join(['a', 'b']) }}": "user12a, b",
    "{{ messages|selectattr('role', 'in', ['tool'])|list|length }}": "0",
    "{% if messages|rejectattr('tool_calls', 'defined') %}yes{% endif %}": "yes",
    "{{ messages[-1]['content'][:1] }}{{ messages[::-1]|length }}{{ 'abc'[1:] }}": "h1bc",
    "{{ 'a,b'.split(',')[1] }}{{ ' x '.strip() }}{{ 'x\n'.rstrip('\n') }}{{ 'ab'.replace('a', 'c') }}": "bxxcb",
    "{{ 'abc'.startswith(('x', 'a')) }}{{ 'x' in 'xyz' }}{{ 'abc'.find('c') }}"
    "{{ 'a'|upper }}{{ 'B'.lower() }}": "TrueTrue2Ab",
    "{{ ' x '|trim }}{{ 'abc'|replace('b', '') }}{{ 'a b'|title }}"
    "{{ 'abc'|length }}{{ 'ab'|list }}": "xacA B3['a', 'b']",
    "{{ 'a\nb'|indent(2) }}{{ 'a\nb'|indent(1, true) }}": "a\n  b a\n b",
    "{{ missing|default('d') }}{{ none|default('d', true) }}{{ missing is defined }}{{ missing }}": "ddFalse",
    "{{ 'a' ~ 1 ~ none }}{{ '%s-%02d' % ('a', 3) }}"
    "{{ '{}{x}{0}'.replace('{}', '{0}').format('a', x=1) }}": "a1Nonea-03a1a",
    "{{ '{:>4}|{:.2f}|{!r}'.format('a', 1.239, 'b') }}{{ '%(a)s%%' % {'a': 1} }}": "   a|1.24|'b'1%",
    "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 7 / 2 }}{{ -1 }}{{ 2 * 'ab' }}"
    "{{ [1] + [2] }}{{ '5'|int + 1 }}{{ 3.7|int }}": "3310243.5-1abab[1, 2]63",
    "{{ {'a': ['é', '<&>', none, true]}|tojson }}": '{"a": ["é", "<&>", null, true]}',
    "{{ {'b': 1, 'a': 'é'}|tojson(indent=2, sort_keys=true) }}": '{\n  "a": "é",\n  "b": 1\n}',
    "{{ 'é😀'|tojson(ensure_ascii=true) }}{{ [1, 2]|tojson(separators=(',', ':')) }}": '"\\u00e9\\ud83d\\ude00"[1,2]',
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 3, 4, c=5) }}": "13(4,){'c': 5}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}x{% endcall %}": "<x>",
    "{% macro f(t) %}{% if t is mapping %}{% for k in t %}{{ k }}({{ f(t[k]) }})"
    "{% endfor %}{% else %}{{ t }}{% endif %}"
    "{% endmacro %}{{ f({'a': {'b': 1}}) }}": "a(b(1))",
    "{% set t %}a{{ 1 }}{% endset %}{{ t|upper }}{% filter upper %}b{% endfilter %}": "A1B",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }})"
    "{% else %}{{ x }}{% endif %}{% endfor %}": "1(2(3))",
    "{% for i in [] %}{% else %}none{% endfor %}{% for i in missing %}{% endfor %}": "none",
    "{{ 1 if messages[0].role == 'user' else 2 }}{{ (1, 2)|first }}"
    "{{ [3, 1, 2]|sort|last }}{{ [1, 1]|unique|list }}": "113[1]",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(';') %}{{ j() }}{{ j() }}": "ab;",
    "{{ [1, 2]|min }}{{ [1, 2]|max }}{{ 3|abs }}{{ 'a b c'|wordcount }}"
    "{{ 'abc'|reverse }}{{ [1, 2]|reverse|list }}": "1233cba[2, 1]",
    "{{ 'abcdefgh'|truncate(5, true, '.', 0) }}{{ 'x<'|safe }}{{ 1|string + 'a' }}{{ '1.5'|float }}": "abcd.x<1a1.5",
    "{%- if true %}\n  {%- set x = 1 %}\n    {% if x %}\na\n    {% endif %}\n{% endif %}": "a\n",
    "{{ strftime_now('%Y')|int > 2000 }}{{ dict(a=1).get('b', 2) }}"
    "{{ {'a': 1}.keys()|list }}{{ {'a': 1}.values()|list }}": "True2['a'][1]",
    "{{ tools[0].function.name }}{{ tools is none }}"
    "{{ documents is none }}{{ add_generation_prompt }}": "func_addFalseTrueTrue",
}
