"""lm-eval's local-completions on a task of its own: echoed log-probabilities, and generated text.

Needs the extra `eval-test`.
"""

import json
import math
import shutil

import longcat
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval-test`")
pytest.importorskip("transformers", reason="needs the extra `eval-test`")

QUESTIONS = [
    ("Once upon a", ["time", "zebra"]), ("There was a little", ["girl", "whereas"]), ("She was very", ["happy", "of"]),
    ("They went to the", ["park", "is"]), ("Tom and his", ["mom", "because"]), ("The dog ran", ["away", "eleven"]),
]  # fmt: skip


def make_tasks(folder):
    rows = [{"q": question, "choices": choices, "answer": 0} for question, choices in QUESTIONS]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/data.jsonl\ntest_split: test\n"
    (folder / "choice.yaml").write_text(
        f'task: words_choice\n{data}output_type: multiple_choice\ndoc_to_text: "{{{{q}}}}"\ndoc_to_choice: choices\n'
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "text.yaml").write_text(
        f'task: words_text\n{data}output_type: generate_until\ndoc_to_text: "{{{{q}}}}"\n'
        'doc_to_target: "{{choices[answer]}}"\nmetric_list:\n  - metric: exact_match\n'
        'generation_kwargs:\n  until: ["."]\n  max_gen_toks: 8\n  temperature: 0\n'
    )


def test_local_completions(server, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_tasks(tmp_path)
    tokenizer = tmp_path / "tokenizer"  # alone: transformers does not know every config.json
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{tiny}/{name}", tokenizer)
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=f"model=tiny,base_url={server.url}/v1/completions,tokenizer={tokenizer},num_concurrent=2,max_retries=1",
        tasks=["words_choice", "words_text"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
    )
    assert results["results"]["words_choice"]["acc,none"] >= 0.8
    with longcat.Engine(tiny) as engine:
        for sample in results["samples"]["words_choice"]:
            question, choices = QUESTIONS[sample["doc_id"]]
            for choice, [[found, _]] in zip(choices, sample["resps"], strict=True):
                start = len(engine.encode(question))
                score = engine.score([question + " " + choice])[0]
                expected = sum(score.logprobs[start - 1 :])
                assert math.isclose(float(found), expected, abs_tol=1e-3)
        for sample in results["samples"]["words_text"]:
            question, _ = QUESTIONS[sample["doc_id"]]
            text = engine.generate(question, max_tokens=8, temperature=0, stop=["."]).text
            assert sample["resps"][0][0] == text
