// Receives an answer of the model into a turn, as it streams.
import {ask, events} from "./api.js";

// Adds to `turn` and calls `changed` after each event. Throws a Problem, or an AbortError.
export async function receive(turn, body, signal, changed) {
  const response = await ask("v1/chat/completions", body, signal);
  let first = 0, start = 0;
  turn.figures = {tokens: 0, speed: 0, used: 0};
  for await (const event of events(response)) {
    const tokens = event.usage?.completion_tokens ?? 0;
    if (tokens > 0) {
      if (!first) [first, start] = [tokens, performance.now()];  // the first chunk may hold several tokens
      const seconds = (performance.now() - start) / 1000;
      turn.figures.tokens = tokens;
      turn.figures.used = event.usage.total_tokens;
      if (tokens > first && seconds > 0) turn.figures.speed = (tokens - first) / seconds;
    }
    for (const choice of event.choices) take(turn, choice);
    changed();
  }
}

function take(turn, {delta, logprobs, finish_reason, error}) {
  turn.thinking += delta.reasoning_content ?? "";
  turn.text += delta.content ?? "";
  for (const {index, id, function: part} of delta.tool_calls ?? []) {
    turn.calls[index] ??= {id, type: "function", function: {name: part.name, arguments: ""}};
    turn.calls[index].function.arguments += part.arguments;
  }
  for (const one of logprobs?.content ?? []) {
    turn.tokens.push({text: one.token, logprob: one.logprob, top: one.top_logprobs.map(top => [top.token, top.logprob])});
  }
  turn.reason = finish_reason ?? turn.reason;
  turn.error = error ?? turn.error;
}
