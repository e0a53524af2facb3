"""Settings from outside the command line: flag > variable > file > default, and errors with their place."""

import re

import pytest
from longcat.cli import _apply_settings, main, make_parser
from longcat.cli.settings import _NO_FLAGS

from support.documents import ROOT


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The settings file of the user, in a configuration folder of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "longcat").mkdir()
    return tmp_path / "longcat" / "config.toml"


def parsed(*arguments: str):
    parser = make_parser(arguments[:1])
    _apply_settings(parser, arguments)
    return parser.parse_args(arguments)


def error_of(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("longcat: [") and error.count("\n") == 1, error
    return error


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(file, monkeypatch):
    assert parsed("serve", "F").port == 8000
    file.write_text("[serve]\nport = 1\n")
    assert parsed("serve", "F").port == 1
    monkeypatch.setenv("LONGCAT_PORT", "2")
    assert parsed("serve", "F").port == 2
    assert parsed("serve", "F", "--port", "3").port == 3


def test_tables_hold_for_the_commands_that_have_the_flags(file):
    file.write_text(
        "[engine]\nnum-threads = 3\nmax_num_seqs = 5\n[sampling]\ntemperature = 0.5\nstop = ['a', 'b']\n"
        "[serve]\nnum-threads = 4\ndisable-access-log = true\nserved-model-name = 'm'\napi-key = ['k', 'l']\n"
        "speculative = {method = 'ngram'}\nenable-prefix-caching = false\n[bench.latency]\nbatch-size = 7\n"
    )
    serve, chat = parsed("serve", "F"), parsed("chat", "F")
    assert (serve.num_threads, serve.max_num_seqs, chat.num_threads) == (4, 5, 3)
    assert serve.disable_access_log and serve.served_model_name == ["m"] and not serve.enable_prefix_caching
    assert serve.speculative == {"method": "ngram"} and serve.api_key == ["k", "l"]
    assert (chat.temperature, chat.stop) == (0.5, ["a", "b"])
    assert parsed("bench", "latency", "F").batch_size == 7


def test_flags_that_collect_values_replace_those_of_the_file(file):
    file.write_text("[sampling]\nstop = ['a', 'b']\n[serve]\napi-key = ['k']\n")
    assert parsed("chat", "F", "--stop", "c", "--stop", "d").stop == ["c", "d"]
    assert parsed("serve", "F", "--api-key", "x").api_key == ["x"]
    assert parsed("serve", "F", "--no-enable-prefix-caching").api_key == ["k"]


def test_a_named_file_stands_in_for_the_users(file, tmp_path, monkeypatch):
    file.write_text("[serve]\nport = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[serve]\nport = 2\n")
    assert parsed("serve", "F", "--config", str(other)).port == 2
    assert parsed("serve", "F", f"--config={other}").port == 2
    monkeypatch.setenv("LONGCAT_CONFIG", str(other))
    assert parsed("serve", "F").port == 2


@pytest.mark.parametrize(
    "text, said",
    [
        ("[serve]\n\nprot = 1\n", "line 3: prot is an unknown key; did you mean port?"),
        ("[serve]\nport = 70000\n", "line 2: port is 70000; expected an integer from 0 to 65535"),
        ("[serve]\nport = true\n", "line 2: port is true; expected a value as --port takes it"),
        ("[serve]\nlog-level = 'inof'\n", 'line 2: log-level is inof; did you mean "info"?'),
        ("[serve]\ndisable-access-log = 'maybe'\n", "line 2: disable-access-log is maybe; expected true or false"),
        ("[srve]\nport = 1\n", "line 1: srve is an unknown table; did you mean serve?"),
        ("port = 1\n", "line 1: port is in no table; expected it in [engine], [sampling] or a command's"),
        ("[engine]\nthraeds = 1\n", "line 2: thraeds is an unknown key; did you mean threads?"),
        ("[serve]\nport = \n", "line 2"),
        ("serve = 3\n", "line 1: serve is 3; expected a table, [serve]"),
        ("[bench]\nbatch-size = 1\n", ""),  # of another command
        ("[serve]\nconfig = 'x'\n", "line 2: config is an unknown key"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(capsys, file, text, said):
    file.write_text(text)
    if not said:
        assert parsed("serve", "F").port == 8000
        said, arguments = "in [bench.latency]", ("bench", "latency", "nowhere")
    else:
        arguments = ("serve", "nowhere")
    error = error_of(capsys, *arguments)
    assert str(file) in error and said in error


@pytest.mark.parametrize("command", ["serve", "plan", "convert", "pull"])
def test_a_file_that_is_not_there_is_one_line(capsys, tmp_path, command):
    assert f"[config] {tmp_path}/no.toml cannot be read" in error_of(
        capsys, command, "x", "--config", f"{tmp_path}/no.toml"
    )


@pytest.mark.parametrize(
    "variable, value, said",
    [
        ("LONGCAT_PORT", "http", "[environment] LONGCAT_PORT is http; expected an integer from 0 to 65535"),
        ("LONGCAT_PROT", "1", "[environment] LONGCAT_PROT names no flag; did you mean LONGCAT_PORT?"),
        ("LONGCAT_DISABLE_LOG_STATS", "si", "LONGCAT_DISABLE_LOG_STATS is si; expected true or false"),
    ],
)
def test_a_wrong_variable_is_one_line(capsys, file, monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    assert said in error_of(capsys, "serve", "nowhere")


def test_variables_of_other_commands_and_of_the_core_are_left_alone(file, monkeypatch):
    for name, value in [("PORT", "9"), ("ISA", "avx2"), ("TOKEN", "x"), ("THOROUGH", "1"), ("BATCH_SIZE", "3")]:
        monkeypatch.setenv(f"LONGCAT_{name}", value)
    assert parsed("generate", "F").max_tokens == 256
    assert parsed("serve", "F").port == 9
    monkeypatch.setenv("LONGCAT_STOP", '["a", "b"]')
    assert parsed("chat", "F").stop == ["a", "b"]


def test_settings_reach_the_command(tiny, file, capsys):
    file.write_text("[sampling]\nmax-tokens = 3\ntemperature = 0\n")
    assert main(["generate", tiny, "Once", "--json"]) == 0
    assert '"completion_tokens": 3' in capsys.readouterr().out


def test_variables_that_the_code_reads_are_no_flags():
    """Else a variable of the core, such as LONGCAT_SYNC, would be taken for a misspelt flag."""
    reads = re.compile(r"""(?:getenv\(|environ(?:\.get\(|\[))"LONGCAT_([A-Z_]+)""")
    files = [path for folder in ("cpp", "cuda", "python") for path in (ROOT / folder).rglob("*.*")]
    read = {
        name
        for path in files
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py")
        for name in reads.findall(path.read_text())
    }
    assert "SYNC" in read and read <= set(_NO_FLAGS)
