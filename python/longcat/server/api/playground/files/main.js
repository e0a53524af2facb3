// The page: one chat is open, and at most one answer is being written.
import {ask, Problem, setKey} from "./data/api.js";
import {receive} from "./data/answer.js";
import {addTurn, choose, messages, newChat, parent, path, removeTurn} from "./data/conversation.js";
import {deleteChat, openStore, saveChat} from "./data/store.js";
import {drawChats, listChats} from "./view/chats.js";
import {drawComposer, drawFiles, giveBack, take} from "./view/composer.js";
import {$, button, make} from "./view/dom.js";
import {drawKeys, openPanel} from "./view/keys.js";
import {drawSettings, requestFields, showDefaults} from "./view/settings.js";
import {drawTurns, toEnd} from "./view/turns.js";
import {choose as chooseLanguage, language, say, translate} from "./words/words.js";

const SAVE_INTERVAL = 2000;  // while an answer is written [ms]
const MOST_SPOKEN = 1000;  // characters of an answer that a screen reader is given at once
const NEW_ANSWER = {role: "assistant", text: "", thinking: "", calls: [], tokens: [], reason: ""};

let chat = newChat();
let running = null;  // {turn, abort}
let contextLength = 0;
let defaults = {};  // of sampling
const tokenChoice = new Map();  // by turn: whether its tokens are shown

// --- what the buttons of turns do ---

const actions = {
  draw: () => draw(),
  choose: turn => { choose(chat, turn); changed(); },
  again: turn => answer(parent(chat, turn)),
  goOn: turn => answer(parent(chat, turn), {continued: turn}),
  sendResults: (turn, results) => answer(addTurn(chat, turn, {role: "tool", results})),
  editUser: (turn, text) => answer(addTurn(chat, parent(chat, turn), {role: "user", text, files: turn.files})),
  editAnswer: (turn, text) => {
    addTurn(chat, parent(chat, turn), {...NEW_ANSWER, thinking: turn.thinking, text, calls: turn.calls, tokens: [], reason: turn.calls.length ? turn.reason : "edited"});
    changed();
  },
  showsTokens: turn => tokenChoice.get(turn) ?? $("probabilities").checked,
  toggleTokens: turn => { tokenChoice.set(turn, !actions.showsTokens(turn)); draw(); },
};

function draw() {
  const view = drawTurns(chat, running?.turn ?? null, actions);
  $("stop").hidden = !running;
  $("send").hidden = running !== null;
  return view;
}

// After a change of the chat: draws it, and keeps it from its first turn on.
async function changed() {
  draw();
  await keep(chat);
}

async function keep(kept) {
  kept.changed = Date.now();
  await (path(kept).length ? saveChat(kept) : deleteChat(kept.id));
  await listChats();
}

// --- answers ---

function send() {
  if (running) return;
  const typed = take();
  if (!typed) return;
  answer(addTurn(chat, path(chat).at(-1) ?? null, {role: "user", ...typed}), {typed});
}

// Lets the model answer a turn. continued: the answer to go on with. typed: the message that goes back into the box
// when there is no answer.
async function answer(asked, {continued, typed} = {}) {
  stop();
  clearProblem();
  const own = chat, before = own.chosen[asked.id];
  const turn = continued ?? addTurn(own, asked, structuredClone(NEW_ANSWER));
  const run = running = {turn, abort: new AbortController()};
  turn.error = undefined;
  const length = turn.text.length, earlier = turn.reason;
  turn.reason = "";
  $("status").textContent = say("writing");
  const view = draw();
  toEnd(true);
  keep(own);
  const saver = setInterval(() => saveChat(own), SAVE_INTERVAL);
  let problem = null;
  try {
    await receive(turn, body(own, asked, continued), run.abort.signal, () => {
      if (own !== chat) return;
      view.update();
      showFigures(turn.figures);
      toEnd();
    });
  } catch (error) {
    if (error.name === "AbortError") turn.reason = "stopped";
    else problem = error;
  }
  clearInterval(saver);
  if (running === run) running = null;
  const isEmpty = !turn.thinking && !turn.calls.length && turn.text.length === length;
  if (isEmpty && continued && turn.reason !== "stop") turn.reason = earlier;
  else if (isEmpty && (problem || turn.reason === "stopped")) takeBack(own, asked, turn, before, typed);
  else if (problem) turn.error = problem.message;
  if (own === chat) {
    draw();
    toEnd();
    if (problem) report(problem, typed && isEmpty ? null : () => answer(asked, {continued}));
    $("status").textContent = turn.text.slice(length, length + MOST_SPOKEN);
    ($("log").querySelector("form.results textarea") ?? $("text")).focus();
  }
  await keep(own);
}

// Removes an answer without a word, and the message that it was to answer.
function takeBack(own, asked, turn, before, typed) {
  removeTurn(own, turn);
  if (before !== undefined) own.chosen[asked.id] = before;
  if (!typed || own !== chat) return;
  removeTurn(own, asked);
  giveBack(typed);
}

function body(own, asked, continued) {
  return {
    ...requestFields(asked.role === "tool"),
    stream: true,
    stream_options: {include_usage: true, continuous_usage_stats: true},
    messages: messages(own, continued ?? asked),
    ...(continued && {continue_final_message: true, add_generation_prompt: false}),
  };
}

// Ends the running answer; returns whether there was one.
function stop() {
  const wasRunning = running !== null;
  running?.abort.abort();
  running = null;
  return wasRunning;
}

function showFigures({speed, used} = {speed: 0, used: 0}) {
  $("speed").textContent = speed ? say("speed", speed.toFixed(1)) : "";
  $("context").textContent = contextLength ? say("context", used, contextLength) : "";
  $("meter").value = contextLength ? used / contextLength : 0;
}

// --- chats ---

function open(next) {
  stop();
  clearProblem();
  chat = next;
  $("system").value = chat.system;
  draw();
  toEnd(true);
  showFigures(path(chat).findLast(turn => turn.figures)?.figures);
  listChats();
  if ($("chats").classList.contains("open")) openPanel("chats", false);
  $("text").focus();
}

const startNew = () => open(newChat($("system").value));

// --- problems ---

// Shows what went wrong and what to do about it; `retry` may do it again.
function report(problem, retry) {
  const advice = problem.advice ? [problem.advice, $("text").value ? say("kept") : ""].filter(Boolean).join(" ") : "";
  const buttons = make("span", {className: "buttons"}, button("dismiss", clearProblem));
  if (retry) buttons.prepend(button("tryAgain", retry));
  $("problem").replaceChildren(make("div", {}, make("p", {}, problem.message), make("p", {}, advice)), buttons);
  if (problem.status === 401) askForKey();
}

function clearProblem() {
  $("problem").replaceChildren();
}

function askForKey() {
  $("key-row").hidden = false;
  $("key").focus();
}

// --- the start ---

async function connect() {
  try {
    const [model] = (await (await ask("v1/models")).json()).data;
    showModel(model.id);
    contextLength = model.max_model_len;
    showFigures();
    defaults = (await (await ask("props")).json()).default_generation_settings.params;
    showDefaults(defaults);
  } catch (problem) {
    if (!contextLength) showModel(problem.status === 401 ? say("keyWanted") : problem.message);
    if (problem.status === 401) askForKey();
  }
}

function showModel(text) {
  delete $("model").dataset.text;
  $("model").textContent = text;
}

async function start() {
  const isKept = await openStore();
  drawSettings();
  translate();
  $("language").value = language();
  $("language").addEventListener("change", () => {
    chooseLanguage($("language").value);
    showDefaults(defaults);
    drawFiles();
    draw();
    listChats();
  });
  drawComposer({send, report});
  drawChats({open, removed: id => { if (id === chat.id) startNew(); }, report, current: () => chat});
  drawKeys({newChat: startNew, stop});
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", startNew);
  $("key").addEventListener("change", () => { setKey($("key").value); clearProblem(); connect(); });
  $("system").addEventListener("change", () => { chat.system = $("system").value; keep(chat); });
  draw();
  if (!isKept) report(new Problem(say("notKept")));
  await Promise.all([listChats(), connect()]);
}

start();
