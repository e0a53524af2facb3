"""The calibration text that comes with longcat."""

import json
import shutil
from pathlib import Path

import longcat
import pytest
from longcat.checkpoint.calibration.texts import default_token_ids
from longcat.request.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "longcat-tiny"
EOS = json.loads((TINY / "config.json").read_text())["eos_token_id"]


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, tmp_path / name)
    return tmp_path


def documents(ids):
    text = Tokenizer(TINY).decode(ids, skip_special_tokens=False)
    return text.split(Tokenizer(TINY).decode([EOS], skip_special_tokens=False))


def test_what_the_small_checkpoint_reads():
    ids = default_token_ids(TINY)
    text = "".join(documents(ids))
    assert 3000 < len(ids) < 16384 and ids[-1] == EOS
    assert "Nora had a small red boat" in text and "<longcat_tool_call>create_event" in text
    assert "清晨" not in text  # its tokenizer, trained on English, writes a token for each byte


def test_no_sentence_of_the_texts_that_are_measured():
    measured = (ROOT / "tests" / "data" / "stories.txt").read_text(encoding="utf-8")
    sentences = [s for d in documents(default_token_ids(TINY)) for s in d.split(". ") if len(s) > 40]
    assert len(sentences) > 50 and not [s for s in sentences if s in measured]


def test_a_tokenizer_that_knows_all_kinds_reads_all(monkeypatch):
    monkeypatch.setattr("longcat.checkpoint.calibration.texts._MOST_TOKENS_PER_BYTE", 1.1)
    text = "".join(documents(default_token_ids(TINY)))
    for part in ("清晨六点", "class RingBuffer", "SELECT c.city", "<longcat_user>我想学做饭", "Nora had"):
        assert part in text


def test_without_a_chat_template_there_are_no_chats(folder):
    with_chats = default_token_ids(folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert default_token_ids(folder) == with_chats[: len(default_token_ids(folder))]
    assert 0 < len(default_token_ids(folder)) < len(with_chats)


def test_a_checkpoint_without_a_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(longcat.Error, match=r"tokenizer\.json is missing"):
        default_token_ids(folder)
