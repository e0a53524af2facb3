// The box for messages: what is typed and which files are attached. Both outlive a reload.
import {ask, Problem} from "../data/api.js";
import {say} from "../words/words.js";
import {$, grow, make, signButton} from "./dom.js";

const MOST_BYTES = 1 << 20;  // of a file, as /tokenize takes it
const DRAFT = "longcat.draft";

let files = [];  // {name, text, tokens: null while they are counted}

export function drawComposer({send, report}) {
  const box = $("text");
  box.value = sessionStorage.getItem(DRAFT) ?? "";
  box.addEventListener("input", keepDraft);
  box.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  $("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
  $("attach").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { attach([...$("file").files], report); $("file").value = ""; });
  box.addEventListener("paste", event => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    attach([...event.clipboardData.files], report);
  });
  addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("drop"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("drop"); });
  addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("drop");
    attach([...event.dataTransfer.files], report);
  });
  drawFiles();
  grow(box);
}

function keepDraft() {
  sessionStorage.setItem(DRAFT, $("text").value);
  grow($("text"));
}

// Takes what is in the box out of it; null when it is empty.
export function take() {
  const taken = {text: $("text").value.trim(), files};
  if (!taken.text && !files.length) return null;
  fill("", []);
  return taken;
}

// Puts a message back, before what was typed meanwhile.
export function giveBack(message) {
  fill([message.text, $("text").value].filter(Boolean).join("\n"), [...message.files, ...files]);
}

function fill(text, attached) {
  $("text").value = text;
  files = attached;
  keepDraft();
  drawFiles();
}

async function attach(chosen, report) {
  for (const one of chosen) {
    try {
      const file = {name: one.name, text: await readText(one), tokens: null};
      files = [...files, file];
      drawFiles();
      file.tokens = (await (await ask("tokenize", {prompt: file.text})).json()).count;
      drawFiles();
    } catch (problem) {
      report(problem);
    }
  }
  $("text").focus();
}

async function readText(file) {
  if (file.size > MOST_BYTES) throw new Problem(say("tooLarge", file.name));
  try {
    const text = new TextDecoder("utf-8", {fatal: true}).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return text;
  } catch { /* as below */ }
  throw new Problem(say("notText", file.name));
}

export function drawFiles() {
  $("files").hidden = !files.length;
  $("files").replaceChildren(...files.map(file => make("li", {},
    make("span", {}, file.name),
    make("small", {}, file.tokens === null ? say("counting") : say("numTokens", file.tokens)),
    signButton("×", say("removeFile", file.name), () => { files = files.filter(one => one !== file); drawFiles(); }))));
}
