// A chat is a tree of turns: the versions of a turn have one parent, and `chosen` says which of them is shown.
//
//   chat: {id, title, system, created, changed, count, turns: {id: turn}, chosen: {parent: id}}
//   turn: {id, parent, role, text, ...}, of a role:
//     user: files [{name, text, tokens}]
//     assistant: thinking, calls, reason, error, tokens, figures
//     tool: results [{id, name, text}]
const ROOT = 0;
const FORMAT = "longcat-chats";
const ROLES = ["user", "assistant", "tool"];
const TITLE_CHARS = 60;

export function newChat(system = "") {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  const id = Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
  return {id, title: "", system, created: Date.now(), changed: Date.now(), count: 0, turns: {}, chosen: {}};
}

const parentOf = turn => turn?.id ?? ROOT;

// Adds a version below `parent` (null: a first turn) and chooses it.
export function addTurn(chat, parent, fields) {
  const turn = {id: ++chat.count, parent: parentOf(parent), text: "", ...fields};
  chat.turns[turn.id] = turn;
  choose(chat, turn);
  return turn;
}

export function removeTurn(chat, turn) {
  for (const child of childrenOf(chat, turn.id)) removeTurn(chat, child);
  delete chat.turns[turn.id];
  delete chat.chosen[turn.id];
  if (chat.chosen[turn.parent] === turn.id) delete chat.chosen[turn.parent];
}

export function choose(chat, turn) {
  chat.chosen[turn.parent] = turn.id;
  chat.changed = Date.now();
}

const childrenOf = (chat, id) => Object.values(chat.turns).filter(turn => turn.parent === id).sort((a, b) => a.id - b.id);

export const versions = (chat, turn) => childrenOf(chat, turn.parent);
export const parent = (chat, turn) => chat.turns[turn.parent] ?? null;

// The turns that are shown, from the first to the last.
export function path(chat) {
  const found = [];
  for (let id = ROOT; ;) {
    const turn = chat.turns[chat.chosen[id]] ?? childrenOf(chat, id).at(-1);
    if (!turn) return found;
    found.push(turn);
    id = turn.id;
  }
}

// The turns before and with `turn`.
function pathTo(chat, turn) {
  const found = [];
  for (let at = turn; at; at = parent(chat, at)) found.unshift(at);
  return found;
}

// The messages of the API, up to a turn.
export function messages(chat, last) {
  const found = chat.system.trim() ? [{role: "system", content: chat.system.trim()}] : [];
  for (const turn of pathTo(chat, last)) {
    if (turn.role === "tool") {
      found.push(...turn.results.map(one => ({role: "tool", tool_call_id: one.id, content: one.text})));
    } else {
      const calls = turn.reason === "tool_calls" && turn.calls.length ? {tool_calls: turn.calls} : {};
      found.push({role: turn.role, content: withFiles(turn), ...calls});
    }
  }
  return found;
}

const withFiles = turn => [...(turn.files ?? []).map(file => `${file.name}:\n\`\`\`\n${file.text}\n\`\`\``), turn.text].filter(Boolean).join("\n\n");

export function title(chat) {
  if (chat.title) return chat.title;
  const [first] = path(chat);
  const text = first?.text.trim() || first?.files?.[0]?.name || "";
  return text.length > TITLE_CHARS ? text.slice(0, TITLE_CHARS) + "…" : text;
}

export function hasWords(chat, words) {
  const wanted = words.toLowerCase().split(/\s+/);
  const text = [title(chat), ...Object.values(chat.turns).map(turn => turn.text)].join("\n").toLowerCase();
  return wanted.every(word => text.includes(word));
}

export const exported = chats => JSON.stringify({format: FORMAT, version: 1, chats}, null, 1);

// The chats of a file, with new ids. Throws when it is another file: a user may choose any.
export function imported(text) {
  const {format, chats} = JSON.parse(text);
  if (format !== FORMAT) throw new TypeError("no file of chats");
  return chats.map(chat => {
    const fresh = newChat(String(chat.system));
    Object.assign(fresh, {title: String(chat.title), created: Number(chat.created) || 0, changed: Number(chat.changed) || 0});
    for (const turn of Object.values(chat.turns)) takeTurn(fresh, turn);
    for (const [id, child] of Object.entries(chat.chosen)) {
      if (fresh.turns[child]?.parent === Number(id)) fresh.chosen[id] = child;
    }
    return fresh;
  });
}

function takeTurn(chat, {id, parent, role, text, files, results, calls, ...more}) {
  const isAbove = role === "tool" ? chat.turns[parent]?.role === "assistant" : parent === ROOT || parent in chat.turns;
  if (!Number.isInteger(id) || id <= Number(parent) || !isAbove || !ROLES.includes(role)) throw new TypeError("no turn");
  const turn = {id, parent, role, text: String(text)};
  if (role === "user") turn.files = (files ?? []).map(one => ({name: String(one.name), text: String(one.text), tokens: Number(one.tokens)}));
  if (role === "tool") turn.results = results.map(one => ({id: String(one.id), name: String(one.name), text: String(one.text)}));
  if (role === "assistant") {
    turn.thinking = String(more.thinking ?? "");
    turn.reason = String(more.reason ?? "");
    turn.calls = (calls ?? []).map(one => ({
      id: String(one.id), type: "function",
      function: {name: String(one.function.name), arguments: String(one.function.arguments)},
    }));
  }
  chat.turns[id] = turn;
  chat.count = Math.max(chat.count, id);
}
