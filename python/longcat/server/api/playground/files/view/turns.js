// Draws the turns of a chat, each with its buttons.
import {parent, path, versions} from "../data/conversation.js";
import {say} from "../words/words.js";
import {callCard, resultForm} from "./calls.js";
import {$, button, copy, grow, make, signButton} from "./dom.js";
import {Markup} from "./markup.js";
import {tokenView} from "./tokens.js";

const NEAR_END = 120;  // pixels: closer to the end, the view follows the text
const LABELS = {user: "you", assistant: "model", tool: "toolResults"};

// Redraws all turns. `running`: the turn that is being written, or null. `actions`: see main.js.
// Returns the view of the running turn.
export function drawTurns(chat, running, actions) {
  const turns = path(chat);
  const views = turns.map((turn, index) => drawTurn(chat, turn, {running, actions, isLast: index === turns.length - 1}));
  const empty = make("div", {id: "empty"}, make("p", {}, say("empty")), make("p", {className: "note"}, say("emptyMore")));
  $("log").replaceChildren(...(views.length ? views.map(view => view.element) : [empty]));
  return views.find(view => view.turn === running) ?? null;
}

export function toEnd(force) {
  const log = $("log");
  if (force || log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END) log.scrollTop = log.scrollHeight;
}

function drawTurn(chat, turn, context) {
  const element = make("article", {className: `turn ${turn.role}`, "aria-label": say(LABELS[turn.role])});
  element.dataset.turn = turn.id;
  const view = {turn, element, update: () => {}};
  const draw = {user: drawUser, assistant: drawAssistant, tool: drawResults}[turn.role];
  draw(view, chat, context);
  return view;
}

// Versions, and the buttons of a turn. While an answer is written, only what changes nothing.
function toolbar(chat, turn, {running, actions}, ...buttons) {
  const bar = make("div", {className: "bar"});
  const all = versions(chat, turn), at = all.indexOf(turn);
  if (all.length > 1) {
    const [back, on] = [["‹", "previous", at - 1], ["›", "next", at + 1]].map(([sign, label, to]) => {
      const made = signButton(sign, say(label), () => actions.choose(all[to]));
      made.disabled = !all[to] || running !== null;
      return made;
    });
    bar.append(back, make("span", {className: "hidden"}, say("version", at + 1, all.length)),
      make("span", {className: "version", "aria-hidden": "true"}, `${at + 1} / ${all.length}`), on);
  }
  bar.append(...buttons);
  return bar;
}

function copyButton(turn) {
  const made = button("copy", () => copy(turn.text, made));
  return made;
}

function drawUser(view, chat, context) {
  const {turn, element} = view, {running, actions} = context;
  const bubble = make("div", {className: "bubble"});
  if (turn.files?.length) {
    bubble.append(make("ul", {className: "chips"}, ...turn.files.map(file =>
      make("li", {title: file.name}, make("span", {}, file.name), make("small", {}, say("numTokens", file.tokens))))));
  }
  bubble.append(make("div", {className: "plain"}, turn.text));
  const edit = button("edit", () => editor(view, turn.text, say("saveAndSend"), text => actions.editUser(turn, text), actions.draw));
  edit.dataset.action = "edit";
  element.append(bubble, toolbar(chat, turn, context, ...(running ? [] : [edit]), copyButton(turn)));
}

function drawAssistant(view, chat, context) {
  const {turn, element} = view, {running, actions, isLast} = context;
  const isRunning = turn === running;
  const thinking = make("details", {className: "thinking", open: isRunning && !turn.text}, make("summary", {}, say("thinking")), make("div", {className: "plain"}));
  const markup = new Markup(), calls = make("div"), ending = make("div");
  const showsTokens = !isRunning && turn.tokens?.length > 0 && actions.showsTokens(turn);
  element.append(thinking, showsTokens ? tokenView(turn.tokens) : markup.element, calls, ending);

  view.update = () => {
    thinking.hidden = !turn.thinking;
    thinking.lastChild.textContent = turn.thinking;
    markup.show(turn.text, !isRunning);
    calls.replaceChildren(...turn.calls.map(callCard));
  };
  view.update();
  if (isRunning) {
    element.setAttribute("aria-busy", "true");
    ending.className = "cursor";
    return;
  }

  const end = endOf(turn);
  if (end) ending.append(make("p", {className: turn.error ? "note error" : "note"}, end));
  if (isLast && turn.reason === "tool_calls" && !running) {
    ending.append(resultForm(turn.calls, null, results => actions.sendResults(turn, results)));
  }
  const buttons = turn.text ? [copyButton(turn)] : [];
  if (!running) {
    if (turn.text) buttons.push(button("edit", () => editor(view, turn.text, say("save"), text => actions.editAnswer(turn, text), actions.draw)));
    buttons.push(named("again", button("again", () => actions.again(turn))));
    if (isLast && turn.text && !turn.calls.length) buttons.push(named("goOn", button("goOn", () => actions.goOn(turn))));
    if (turn.tokens?.length) buttons.push(named("tokens", button(showsTokens ? "text" : "tokens", () => actions.toggleTokens(turn))));
  }
  const bar = toolbar(chat, turn, context, ...buttons);
  const {tokens, speed} = turn.figures ?? {};
  if (tokens) bar.append(make("span", {className: "note"}, speed ? say("figures", tokens, speed.toFixed(1)) : say("numTokens", tokens)));
  element.append(bar);
}

function named(action, made) {
  made.dataset.action = action;
  return made;
}

// How an answer ended, where that is not by itself.
function endOf({reason, error}) {
  if (error) return error;
  if (["stop", "tool_calls", "edited"].includes(reason)) return "";
  if (reason === "stopped") return say("stopped");
  if (reason === "length" || reason === "abort") return say(`ended_${reason}`);
  return reason ? say("ended_other", reason) : say("ended_interrupted");
}

function drawResults(view, chat, context) {
  const {turn, element} = view, {running, actions} = context;
  const {calls} = parent(chat, turn);
  for (const {name, text} of turn.results) element.append(make("div", {className: "result"}, make("b", {}, name), " → ", make("code", {}, text)));
  const edit = button("edit", () => {
    element.replaceChildren(resultForm(calls, turn.results, results => actions.sendResults(parent(chat, turn), results), actions.draw));
    element.querySelector("textarea").focus();
  });
  element.append(toolbar(chat, turn, context, ...(running ? [] : [edit])));
}

// Replaces a turn by a box with its text.
function editor({element}, text, word, save, cancel) {
  const box = make("textarea", {value: text, className: "editor", "aria-label": say("message")});
  const submit = () => { if (box.value.trim()) save(box.value.trim()); };
  const ok = make("button", {type: "button", className: "main"}, word);
  ok.addEventListener("click", submit);
  box.addEventListener("input", () => grow(box));
  box.addEventListener("keydown", event => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  element.replaceChildren(box, make("div", {className: "buttons"}, ok, button("cancel", cancel)));
  grow(box);
  box.focus();
}
