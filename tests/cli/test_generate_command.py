"""`longcat generate`: where the prompt comes from, several completions, forms, JSON; progress bars."""

import io
import json
import subprocess
import sys

import pytest
from longcat.cli import main

GREEDY = ["--max-tokens", "8", "--temperature", "0"]


class Input(io.StringIO):
    """Standard input, of a terminal or not."""

    def __init__(self, text: str, terminal: bool):
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("arguments", [[], ["-"]])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_pipe_is_read_without_the_line_end_of_echo(tiny, capsys, monkeypatch, arguments, end):
    main(["generate", tiny, "Once upon\na time", *GREEDY])
    expected = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", Input(f"Once upon\na time{end}", terminal=False))
    assert main(["generate", tiny, *arguments, *GREEDY]) == 0
    assert capsys.readouterr().out == expected != ""


def test_a_terminal_is_not_waited_for(tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Input("never read", terminal=True))
    assert main(["generate", tiny]) == 2
    error = capsys.readouterr().err
    assert "found no prompt; expected a text" in error and error.count("\n") == 1


def test_json_holds_what_python_returns(tiny, capsys):
    import longcat

    assert main(["generate", tiny, "Once", *GREEDY, "--json", "-n", "2", "--min-p", "0.1", "--seed", "1"]) == 0
    made = json.loads(capsys.readouterr().out)
    with longcat.Engine(tiny) as engine:
        output = engine.generate("Once", max_tokens=8, temperature=0, n=2, min_p=0.1, seed=1)
    assert made["prompt_token_ids"] == output.prompt_token_ids
    num_prompt, times = len(output.prompt_token_ids), made["timings"]
    assert made["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 16,
        "total_tokens": num_prompt + 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert times["predicted_n"] == 16 and 0 < times["first_token_ms"] < times["total_ms"]
    assert [completion["text"] for completion in made["outputs"]] == [completion.text for completion in output.outputs]
    assert [completion["token_ids"] for completion in made["outputs"]] == [
        completion.token_ids for completion in output.outputs
    ]
    assert {completion["finish_reason"] for completion in made["outputs"]} == {"length"}


def test_several_completions_and_stop_strings(tiny, capsys):
    assert main(["generate", tiny, "Once", "-n", "3", "--stop", ".", "--stop", ",", "--max-tokens", "40"]) == 0
    out = capsys.readouterr().out
    assert [f"[{i}]" in out for i in (1, 2, 3, 4)] == [True, True, True, False] and "." not in out and "," not in out


def test_a_schema_holds_the_completion(tiny, capsys, tmp_path):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["age"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), str(tmp_path / "schema.json")):
        assert main(["generate", tiny, "How old?", "--max-tokens", "30", "--json-schema", given]) == 0
        assert 0 <= json.loads(capsys.readouterr().out)["age"] <= 9
    for wrong, said in [("[1", "expected a JSON schema"), ("[1]", "a list; expected a JSON object")]:
        assert main(["generate", tiny, "x", "--json-schema", wrong]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_chat_takes_the_prompt_as_a_message(tiny, capsys):
    import longcat

    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello! I am Freya."}]
    with longcat.Engine(tiny) as engine:
        reply = engine.chat(messages, max_tokens=8, temperature=0)
    given = ["generate", tiny, "Hello! I am Freya.", "--chat", "--system", "Be kind.", *GREEDY]
    assert main(given) == 0
    assert capsys.readouterr().out == reply.message["content"] + "\n"
    assert main([*given, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["outputs"][0]["text"] == reply.message["content"]
    assert made["outputs"][0]["token_ids"] == reply.outputs[0].token_ids
    assert main([*given, "-n", "2"]) == 0
    assert capsys.readouterr().out.count(reply.message["content"]) == 2
    assert main(["generate", tiny, "x", "--system", "y"]) == 2
    assert "--system goes with --chat" in capsys.readouterr().err


def test_no_bar_outside_a_terminal(tiny, tmp_path):
    """A bar with no delay would be drawn at once."""
    program = (
        "import sys; from longcat.cli.progress import ByteBar\n"
        "with ByteBar('loading') as bar:\n"
        "    bar._bar.delay = 0\n"
        "    for done in range(0, 101, 10): bar.update(done, 100)\n"
        "    bar.print('a line')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line\n", "")
