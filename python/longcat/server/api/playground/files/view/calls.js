// Tool calls of an answer, and the form for what the tools answered.
import {say} from "../words/words.js";
import {button, grow, make} from "./dom.js";

export const EXAMPLE_TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather of a city",
    parameters: {
      type: "object",
      properties: {city: {type: "string"}, days: {type: "integer"}},
      required: ["city"],
    },
  },
};
const EXAMPLE_RESULT = '{"temperature": 21}';

export function callCard(call) {
  const {name} = call.function;
  return make("div", {className: "call"}, make("div", {className: "note"}, say("calls")),
    make("code", {}, make("b", {}, name), `(${pretty(call.function.arguments)})`));
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

// Asks for a text for each call; `given` are earlier results. `send` takes the new ones.
export function resultForm(calls, given, send, cancel) {
  const form = make("form", {className: "results"});
  const boxes = calls.map((call, index) => {
    const {name} = call.function;
    const example = name === EXAMPLE_TOOL.function.name ? EXAMPLE_RESULT : "";
    const box = make("textarea", {rows: 1, className: "code", value: given?.[index]?.text ?? example,
      placeholder: say("resultHint"), "aria-label": say("result", name)});
    box.addEventListener("input", () => grow(box));
    box.addEventListener("keydown", event => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    return box;
  });
  const buttons = make("div", {className: "buttons"}, make("button", {className: "main"}, say("sendResults")));
  if (cancel) buttons.append(button("cancel", cancel));
  form.append(...boxes, buttons);
  form.addEventListener("submit", event => {
    event.preventDefault();
    send(calls.map((call, index) => ({id: call.id, name: call.function.name, text: boxes[index].value})));
  });
  return form;
}
