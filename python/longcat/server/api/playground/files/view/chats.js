// The list of chats: open, search, rename, delete, export and import.
import {exported, hasWords, imported, title} from "../data/conversation.js";
import {allChats, deleteChat, saveChat} from "../data/store.js";
import {say} from "../words/words.js";
import {$, make, signButton} from "./dom.js";

const IMPORT_TIME = 5000;  // that a note stays [ms]

let actions;  // open(chat), removed(id), report(problem), current()

export function drawChats(given) {
  actions = given;
  $("search").addEventListener("input", listChats);
  $("export").addEventListener("click", async () => download("longcat-chats", await allChats()));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async () => {
    for (const file of $("import-file").files) await importFile(file);
    $("import-file").value = "";
  });
}

export async function listChats() {
  if ($("chat-list").querySelector("input")) return;  // a name is being typed; its end lists them
  const words = $("search").value.trim();
  const chats = (await allChats()).filter(chat => !words || hasWords(chat, words));
  $("chat-list").replaceChildren(...chats.map(row));
  $("chat-note").textContent = chats.length ? "" : say(words ? "noneFound" : "noChats");
}

function row(chat) {
  const name = title(chat) || say("untitled");
  const open = make("button", {type: "button", className: "open", title: name}, name);
  if (chat.id === actions.current().id) open.setAttribute("aria-current", "true");
  open.addEventListener("click", () => actions.open(chat.id === actions.current().id ? actions.current() : chat));
  const item = make("li", {}, open,
    signButton("✎", say("rename"), () => rename(item, chat, name)),
    signButton("⤓", say("exportOne"), () => download("longcat-chat", [chat])),
    signButton("×", say("remove"), () => remove(chat, name)));
  return item;
}

function rename(item, chat, name) {
  const box = make("input", {value: name, "aria-label": say("rename")});
  let isOver = false;
  const end = async isKept => {
    if (isOver) return;
    isOver = true;
    box.remove();
    if (isKept) {
      const own = chat.id === actions.current().id ? actions.current() : chat;
      own.title = box.value.trim();
      await saveChat(own);
    }
    listChats();
  };
  box.addEventListener("keydown", event => {
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") { event.stopPropagation(); end(false); }
  });
  box.addEventListener("blur", () => end(true));
  item.replaceChildren(box);
  box.focus();
  box.select();
}

async function remove(chat, name) {
  if (!confirm(say("removeAsk", name))) return;
  await deleteChat(chat.id);
  actions.removed(chat.id);
  listChats();
}

function download(name, chats) {
  const url = URL.createObjectURL(new Blob([exported(chats)], {type: "application/json"}));
  make("a", {href: url, download: `${name}.json`}).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function importFile(file) {
  let chats;
  try {
    chats = imported(await file.text());
  } catch {
    actions.report(new Error(say("noImport", file.name)));
    return;
  }
  for (const chat of chats) await saveChat(chat);
  await listChats();
  $("chat-note").textContent = say("imported", chats.length);
  setTimeout(listChats, IMPORT_TIME);
}
