// The settings: a table of controls, their values in this browser, and what they add to a request.
import {Problem} from "../data/api.js";
import {say} from "../words/words.js";
import {EXAMPLE_TOOL} from "./calls.js";
import {$, make} from "./dom.js";

const STORED = "longcat.settings";
const TOP_TOKENS = 5;  // alternatives of a token

// kind: number, lines (a list of texts), ids (a list of numbers), json, check. The first are always in sight.
const CONTROLS = [
  {name: "temperature", kind: "number", min: 0, max: 2, step: 0.05},
  {name: "top_p", kind: "number", min: 0, max: 1, step: 0.01},
  {name: "top_k", kind: "number", min: 0, step: 1},
  {name: "min_p", kind: "number", min: 0, max: 1, step: 0.01},
  {name: "max_tokens", kind: "number", min: 1, step: 1, standard: "defaultContext"},
  {name: "seed", kind: "number", step: 1, standard: "defaultRandom"},
];
const MORE = [
  {name: "repetition_penalty", kind: "number", min: 0, max: 2, step: 0.01},
  {name: "presence_penalty", kind: "number", min: -2, max: 2, step: 0.1},
  {name: "frequency_penalty", kind: "number", min: -2, max: 2, step: 0.1},
  {name: "min_tokens", kind: "number", min: 0, step: 1},
  {name: "stop", kind: "lines", word: "stopTexts", standard: "defaultNone"},
  {name: "bad_words", kind: "lines", standard: "defaultNone"},
  {name: "stop_token_ids", kind: "ids", standard: "defaultNone"},
  {name: "allowed_token_ids", kind: "ids", standard: "defaultNone"},
  {name: "logit_bias", kind: "json", standard: "defaultNone"},
  {name: "ignore_eos", kind: "check", checked: false},
  {name: "include_stop_str_in_output", kind: "check", checked: false},
  {name: "skip_special_tokens", kind: "check", checked: true},
];
const OTHERS = ["probabilities", "schema", "tools", "tool_choice"];

const wordOf = control => control.word ?? control.name;
const input = control => $(control.name === "stop" ? "stop_texts" : control.name);

export function drawSettings() {
  $("sampling").append(...CONTROLS.map(drawControl));
  $("more-sampling").append(make("div", {className: "pairs"}, ...MORE.filter(one => one.kind === "number").map(drawControl)),
    ...MORE.filter(one => one.kind !== "number").map(drawControl));
  $("settings").addEventListener("change", store);
  $("example-tool").addEventListener("click", () => {
    $("tools").value = JSON.stringify([EXAMPLE_TOOL], null, 1);
    store();
  });
  $("reset-settings").addEventListener("click", () => {
    localStorage.removeItem(STORED);
    fill({});
  });
  fill(JSON.parse(localStorage.getItem(STORED) ?? "{}"));
}

function drawControl(control) {
  const {name, kind, min, max, step} = control, id = name === "stop" ? "stop_texts" : name;
  const word = make("span");
  word.dataset.text = wordOf(control);
  if (kind === "check") return make("label", {className: "check"}, make("input", {id, type: "checkbox"}), " ", word);
  const help = make("span", {id: `${id}-help`, className: "help"});
  help.dataset.text = `${wordOf(control)}Help`;
  const box = kind === "number" ? make("input", {id, type: "number", step: step ?? "any"}) : make("textarea", {id, rows: 1, spellcheck: false, className: "code"});
  if (kind === "number") Object.assign(box, {min: min ?? "", max: max ?? ""});
  box.setAttribute("aria-describedby", help.id);
  return make("label", {}, word, box, help);
}

// Shows the defaults where a control is empty. defaults: by name, as the server tells them.
export function showDefaults(defaults) {
  for (const control of [...CONTROLS, ...MORE]) {
    if (control.kind === "check") continue;
    if (control.name in defaults) input(control).placeholder = say("default", +defaults[control.name].toFixed(4));
    else if (control.standard) input(control).placeholder = say(control.standard);
  }
}

function fill(values) {
  for (const control of [...CONTROLS, ...MORE]) {
    if (control.kind === "check") input(control).checked = values[control.name] ?? control.checked;
    else input(control).value = values[control.name] ?? "";
  }
  $("probabilities").checked = values.probabilities ?? false;
  $("schema").value = values.schema ?? "";
  $("tools").value = values.tools ?? "";
  $("tool_choice").value = values.tool_choice ?? "auto";
}

function store() {
  const read = box => box.type === "checkbox" ? box.checked : box.value;
  const names = [...CONTROLS, ...MORE].map(control => [control.name, read(input(control))]);
  localStorage.setItem(STORED, JSON.stringify(Object.fromEntries([...names, ...OTHERS.map(name => [name, read($(name))])])));
}

function parsed(text, word) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Problem(say("notJson", say(word), error.message), say("adviceSettings"));
  }
}

function valueOf(control) {
  const box = input(control);
  if (control.kind === "check") return box.checked === control.checked ? undefined : box.checked;
  const text = box.value;
  if (!text.trim()) return undefined;
  if (control.kind === "number") return Number(text);
  if (control.kind === "json") return parsed(text, wordOf(control));
  if (control.kind === "lines") return text.split("\n").filter(Boolean).map(line => line.replaceAll("\\n", "\n"));
  const ids = text.split(",").map(Number);
  if (ids.some(Number.isNaN)) throw new Problem(say("notIds", say(wordOf(control))), say("adviceSettings"));
  return ids;
}

// The fields of a request, without its messages. Throws a Problem that names the control.
export function requestFields(isAfterTools) {
  const body = {};
  for (const control of [...CONTROLS, ...MORE]) {
    const value = valueOf(control);
    if (value !== undefined) body[control.name] = value;
  }
  if ($("probabilities").checked) Object.assign(body, {logprobs: true, top_logprobs: TOP_TOKENS});
  if ($("schema").value.trim()) {
    body.response_format = {type: "json_schema", json_schema: {name: "answer", schema: parsed($("schema").value, "schema")}};
  }
  if ($("tools").value.trim()) {
    body.tools = parsed($("tools").value, "functions");
    body.tool_choice = isAfterTools ? "auto" : $("tool_choice").value;
  }
  return body;
}
