"""The OpenAI client against `longcat serve`."""

import json

import openai
import pytest

STORY = [{"role": "user", "content": "Tell me a story about a dog."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["longcat-tiny", "tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_chat_whole_and_streamed_agree(client):
    options = dict(model="longcat-tiny", messages=STORY, temperature=0, max_tokens=30)
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 30
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert chunks[-2].choices[0].finish_reason == "length" and len({chunk.id for chunk in chunks}) == 1


def test_n_and_seed(client):
    options = dict(model="tiny", messages=STORY, max_tokens=12, n=3, temperature=1.0)
    first, again = (client.chat.completions.create(**options, seed=7) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**options, seed=7, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [text.strip() for text in streamed] == [text.strip() for text in texts]


def test_stop(client):
    options = dict(model="tiny", messages=STORY, temperature=0, max_tokens=40)
    text = client.chat.completions.create(**options).choices[0].message.content
    word = text.split()[3]
    stopped = client.chat.completions.create(**options, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == text[: text.index(word)]
    assert stopped.stop_reason == word


def test_logprobs(client):
    options = dict(model="tiny", messages=STORY, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)
    choice = client.chat.completions.create(**options).choices[0]
    assert len(choice.logprobs.content) == 5
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
    streamed = [
        entry
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == choice.logprobs.content


def test_tools_whole_and_streamed(client):
    options = dict(model="tiny", messages=WEATHER, tools=TOOLS, temperature=0, max_tokens=100)
    choice = client.chat.completions.create(**options).choices[0]
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "get_weather" and call.id
    assert json.loads(call.function.arguments)["city"] == "Paris"
    name, arguments, reason = "", "", None
    for chunk in client.chat.completions.create(**options, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            assert delta.index == 0
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (name, json.loads(arguments), reason) == ("get_weather", json.loads(call.function.arguments), "tool_calls")


def test_the_result_of_a_tool_goes_back(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 21}'},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, temperature=0, max_tokens=40)
    assert answer.choices[0].message.content


def test_tool_choice(client):
    def calls(choice, **more):
        options = dict(model="tiny", messages=STORY, tools=TOOLS, seed=1, max_tokens=300, tool_choice=choice)
        return client.chat.completions.create(**options, **more).choices[0]

    assert calls("none").message.tool_calls is None
    assert calls("required", parallel_tool_calls=False).message.tool_calls[0].function.name == "get_weather"
    named = calls({"type": "function", "function": {"name": "get_weather"}})
    assert isinstance(json.loads(named.message.tool_calls[0].function.arguments)["city"], str)
    assert named.finish_reason == "tool_calls"
    with pytest.raises(openai.BadRequestError, match="not declared"):
        calls({"type": "function", "function": {"name": "fly"}})


def test_json_schema(client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    text = client.chat.completions.create(
        model="tiny", messages=STORY, response_format=form, max_tokens=100, seed=3
    ).choices[0].message.content  # fmt: skip
    assert set(json.loads(text)) == {"name", "age"}
    regex = client.completions.create(
        model="tiny", prompt="Call", max_tokens=20, extra_body={"structured_outputs": {"regex": "[0-9]{3}"}}
    )
    assert regex.choices[0].text.isdigit()


def test_completions(client):
    options = dict(model="tiny", temperature=0, max_tokens=8)
    single = client.completions.create(prompt="Once upon a time", **options)
    many = client.completions.create(prompt=["Once upon a time", "The dog"], **options, n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == single.choices[0].text
    streamed = ["", ""]
    for chunk in client.completions.create(prompt=["Once upon a time", "The dog"], **options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [many.choices[0].text, many.choices[2].text]


def test_echo_with_logprobs_scores_a_prompt(client):
    [choice] = client.completions.create(
        model="tiny", prompt="Once upon a time", echo=True, max_tokens=1, logprobs=2, temperature=0
    ).choices  # fmt: skip
    lp = choice.logprobs
    assert choice.text.startswith("Once upon a time") and "".join(lp.tokens) == choice.text
    assert lp.token_logprobs[0] is None and all(value <= 0 for value in lp.token_logprobs[1:])
    assert max(lp.top_logprobs[-1].values()) == lp.token_logprobs[-1]
    [alone] = client.completions.create(
        model="tiny", prompt="Once upon a time", echo=True, max_tokens=0, logprobs=1
    ).choices
    assert alone.logprobs.token_logprobs == lp.token_logprobs[:-1]


def test_errors_have_the_clients_types(client, server):
    with pytest.raises(openai.NotFoundError, match="other"):
        client.chat.completions.create(model="other", messages=STORY)
    with pytest.raises(openai.BadRequestError, match="max_model_len=2048"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a " * 3000}])
    picture = {"type": "image_url", "image_url": {"url": server.url + "/never"}}
    with pytest.raises(openai.BadRequestError, match="text only"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [picture]}])
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    with pytest.raises(openai.BadRequestError, match="text only"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [sound]}])
    assert not [line for line in server.log() if line["path"] == "/never"]
