"""`longcat chat` in a terminal: editing, paste, history, commands, Ctrl-C. What is one turn where no cursor moves."""

import io
import json
import subprocess
import sys

import longcat
import pytest
from longcat.chat.reader import ChatChunk, ChatOutput
from longcat.cli.chat.conversation import Conversation
from longcat.cli.chat.views import PlainView, TerminalView
from longcat.request.outputs import RequestMetrics

from support.terminal import Terminal

PROMPT, PASTE, END_OF_PASTE, ENTER, ALT_ENTER, UP = ">", "\x1b[200~", "\x1b[201~", "\r", "\x1b\r", "\x1b[A"
CTRL_C, CTRL_D = "\x03", "\x04"
LINES = """
from longcat.cli.chat.turns import open_turns
print("begin", flush=True)
turns = open_turns([])
while (turn := turns.read()) is not None:
    print("turn", repr(turn), flush=True)
"""


@pytest.fixture
def plain():
    terminal = Terminal([sys.executable, "-c", LINES], {"TERM": "dumb"})
    terminal.wait_for(PROMPT)
    yield terminal
    terminal.write(CTRL_D)
    terminal.end()


@pytest.mark.parametrize(
    "written, turn",
    [
        ("one line\n", "one line"),
        ("first\nsecond\nthird\n", "first\nsecond\nthird"),
        ("def f():\n    return 1\n\nprint(f())\n", "def f():\n    return 1\n\nprint(f())"),
        ("typed \\\nand more\n", "typed \nand more"),
    ],
)
def test_pasted_lines_are_one_turn(plain, written, turn):
    plain.write(written)
    plain.wait_for(f"turn {turn!r}")
    assert plain.shown.count("turn '") == 1


def test_lines_typed_one_after_another_are_turns(plain):
    for index, text in enumerate(("first", "second"), start=1):
        plain.write(text + "\n")
        plain.wait_for(f"turn {text!r}")
        assert plain.shown.count("turn '") == index


# --- with the editor -------------------------------------------------------------------------------------------------


def editor(program: list[str], folder) -> Terminal:
    variables = {
        "TERM": "xterm",
        "XDG_STATE_HOME": str(folder),
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nothing here answers where the cursor is
    }
    return Terminal(program, variables)


def leave(terminal: Terminal) -> None:
    """Ends the program from its prompt."""
    terminal.wait_for(PROMPT)
    terminal.write(CTRL_D)
    assert terminal.end(key=CTRL_D) == 0


def clear(terminal: Terminal) -> None:
    """Drops the one line that the prompt holds. It may be drawn again before, so the end of its line is waited for."""
    terminal.write(CTRL_C)
    terminal.wait_for("\n")
    terminal.wait_for(PROMPT)


def chat(tiny, folder, *arguments: str) -> Terminal:
    options = ["--max-tokens", "12", "--temperature", "0", *arguments]
    terminal = editor([sys.executable, "-m", "longcat", "chat", tiny, *options], folder)
    terminal.wait_for("/help")
    terminal.wait_for(PROMPT)
    return terminal


@pytest.mark.parametrize(
    "typed, turn",
    [
        (f"{PASTE}first\nsecond\r\nthird{END_OF_PASTE}{ENTER}", "first\nsecond\nthird"),
        (f"one \\{ENTER}two{ENTER}", "one \ntwo"),
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f"never said{CTRL_C}said{ENTER}", "said"),
    ],
    ids=["paste", "backslash", "alt-enter", "ctrl-c"],
)
def test_the_editor_takes_several_lines(tmp_path, typed, turn):
    terminal = editor([sys.executable, "-c", LINES], tmp_path)
    terminal.wait_for(PROMPT)
    terminal.write(typed)
    terminal.wait_for(f"turn {turn!r}")
    leave(terminal)


def test_history_is_kept_between_runs_for_the_user_alone(tmp_path):
    for typed in (f"remember me{ENTER}", UP + ENTER):
        terminal = editor([sys.executable, "-c", LINES], tmp_path)
        terminal.wait_for(PROMPT)
        terminal.write(typed)
        terminal.wait_for("turn 'remember me'")
        leave(terminal)
    assert (tmp_path / "longcat" / "chat_history").stat().st_mode & 0o777 == 0o600


def test_a_conversation_with_all_commands(tiny, tmp_path):
    """Each command does what the help says, and an error leaves its text in the prompt."""
    saved = tmp_path / "talk.json"
    terminal = chat(tiny, tmp_path)

    def say(text: str, answer: str) -> str:
        terminal.write(text + ENTER)
        shown = terminal.wait_for(answer)
        terminal.wait_for(PROMPT)
        return shown

    shown = say("Hello! My name is Freya.", "tokens/s, first after")
    assert "Freya" in shown and "\x1b[2m[" in terminal.raw  # the speed is dim
    say("/regen", "tokens/s")
    say("/set max_tokens 3", "[max_tokens 3")
    say("/set temprature 1", "did you mean temperature?")
    clear(terminal)
    say("/set", "[max_tokens 3, temperature 0.0")
    say("And again", "[3 tokens,")
    say("/undo", "[took back: And again")
    say("/system Be kind.", "system message set")
    say(f"/save {saved}", "[2 messages written")
    say("/reset", "conversation forgotten")
    say("/undo", "there is no turn yet")
    clear(terminal)
    say(f"/load {saved}", "2 messages of")
    terminal.write("/udno" + ENTER)
    terminal.wait_for("did you mean /undo?")
    leave(terminal)
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Be kind." and "Freya" in messages[1]["content"]


def test_an_error_keeps_the_typed_text(tiny, tmp_path):
    """A turn that is too long for the context comes back in the prompt, to be shortened."""
    terminal = chat(tiny, tmp_path, "--max-model-len", "64")
    terminal.write(PASTE + "word " * 100 + END_OF_PASTE + ENTER)
    assert "Traceback" not in terminal.wait_for("longcat: ")
    terminal.wait_for("> word word")
    terminal.write(CTRL_C)
    leave(terminal)


def test_ctrl_c_stops_a_completion_and_keeps_the_conversation(tiny, tmp_path):
    saved = tmp_path / "talk.json"
    terminal = chat(tiny, tmp_path, "--max-tokens", "1500")
    for _ in range(9):  # a story of 200 tokens may end before a busy machine lets this test go on
        terminal.write("Tell me a long story" + ENTER)
        terminal.wait_for("Once")
        terminal.write(CTRL_C)
        shown = terminal.wait_for(PROMPT)
        if "[stopped]" in shown:
            break
        terminal.write("/reset" + ENTER)
        terminal.wait_for("conversation forgotten")
        terminal.wait_for(PROMPT)
    terminal.write(f"/save {saved}{ENTER}")
    terminal.wait_for("2 messages written")
    leave(terminal)
    assert "[stopped]" in shown
    assert [message["role"] for message in json.loads(saved.read_text())["messages"]] == ["user", "assistant"]


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_reasoning_is_folded_into_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", shown := io.StringIO())
    view = TerminalView()
    for part in ("First I ", "add the ", "numbers."):
        view.reasoning(part)
    view.content("It is **4**.")
    view.end()
    before, _, after = shown.getvalue().partition("\r\x1b[K")
    assert "add the" not in shown.getvalue() and "thinking ... 5 words" in before
    assert "thought for 0.0 s, 5 words; /thinking shows it" in after and "It is \x1b[1m4\x1b[0m.\n" in after


def test_colours_can_be_turned_off(monkeypatch):
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdout", shown := io.StringIO())
        view = TerminalView()
        view.content("It is **4**.")
        view.end()
        view.note("stopped")
        assert shown.getvalue() == "It is 4.\n[stopped]\n"
        monkeypatch.delenv(name)


def test_a_pipe_stays_plain(tiny, capsys):
    view = PlainView()
    view.reasoning("never shown")
    view.content("It is **4**.")
    view.end()
    assert capsys.readouterr().out == "It is **4**.\n"
    command = [sys.executable, "-m", "longcat", "chat", tiny, "--max-tokens", "8", "--temperature", "0"]
    done = subprocess.run(command, input="Hello!\n/regen\n", capture_output=True, text=True, timeout=60)
    first, again = [line for line in done.stdout.splitlines() if not line.startswith("[")]
    assert done.returncode == 0 and first == again != "" and "\x1b" not in done.stdout


def test_a_completion_that_fails_leaves_the_conversation_as_it_was():
    class Failing:
        def chat(self, *_: object, **__: object):
            yield ChatChunk("part of ")
            output = ChatOutput(
                0, "", [], [], RequestMetrics(), messages=[{"role": "assistant", "content": "part of "}]
            )
            yield ChatChunk("", finish_reason="error", error="[sampler] NaN", output=output)

    talk = Conversation(Failing(), "", None, {}, PlainView())
    with pytest.raises(longcat.Error, match=r"the completion failed: \[sampler\] NaN"):
        talk.say("user", "Hello!")
    assert talk.history == []
