// Keyboard shortcuts, their list, and the panels that small screens hide.
import {say} from "../words/words.js";
import {$, make} from "./dom.js";

const PANELS = ["chats", "settings"];
const FIXED = [["Enter", "keySend"], ["Shift+Enter", "keyLine"], ["↑", "keyLast"], ["Esc", "keyStop"]];

// With Alt, by the key's place, as some keyboards write another sign with Alt.
const WITH_ALT = [
  ["N", "newChat", actions => actions.newChat()],
  ["K", "search", () => { openPanel("chats", true); $("search").focus(); }],
  ["R", "again", () => pressLast("again")],
  ["C", "goOn", () => pressLast("goOn")],
  ["T", "tokens", () => pressLast("tokens")],
  ["A", "keyFiles", () => $("attach").click()],
  ["S", "keySettings", () => openPanel("settings", true)],
  ["M", "keyBox", () => $("text").focus()],
];

export function drawKeys(actions) {
  for (const name of PANELS) $(`show-${name}`).addEventListener("click", () => openPanel(name, !isOpen(name)));
  $("show-help").addEventListener("click", showHelp);
  $("close-help").addEventListener("click", () => $("help").close());
  document.addEventListener("keydown", event => {
    if (event.isComposing) return;
    const isTyping = event.target.matches("input, textarea, select");
    if (event.key === "Escape" && !$("help").open) {
      if (!actions.stop()) PANELS.filter(isOpen).forEach(name => openPanel(name, false));
    } else if (event.key === "?" && !isTyping) {
      showHelp();
    } else if (event.key === "ArrowUp" && event.target === $("text") && !$("text").value) {
      event.preventDefault();
      pressLast("edit");
    } else if (event.altKey && !event.ctrlKey && !event.metaKey) {
      const found = WITH_ALT.find(([key]) => event.code === `Key${key}`);
      if (!found) return;
      event.preventDefault();
      found[2](actions);
    }
  });
}

// The newest button of a kind.
function pressLast(action) {
  [...document.querySelectorAll(`[data-action="${action}"]`)].at(-1)?.click();
}

const isOpen = name => $(name).classList.contains("open");

export function openPanel(name, open) {
  for (const one of PANELS) $(one).classList.toggle("open", open && one === name);
  for (const one of PANELS) $(`show-${one}`).setAttribute("aria-expanded", String(isOpen(one)));
  if (open) $(name).querySelector("input, textarea, button").focus();
  else $(`show-${name}`).focus();
}

function showHelp() {
  const rows = [...FIXED, ...WITH_ALT.map(([key, word]) => [`Alt+${key}`, word]), ["?", "shortcuts"]];
  $("shortcut-list").replaceChildren(...rows.map(([keys, word]) =>
    make("tr", {}, make("td", {}, ...keys.split("+").map(key => make("kbd", {}, key))), make("td", {}, say(word)))));
  $("help").showModal();
}
