// The words of the page in one language: the user's choice, or the first that the browser asks for.
import english from "./en.js";
import chinese from "./zh.js";

const LANGUAGES = {en: english, zh: chinese};
let current = "en";

function asked() {
  const wanted = [localStorage.getItem("longcat.language"), ...navigator.languages].filter(Boolean);
  return wanted.map(name => name.slice(0, 2)).find(name => name in LANGUAGES) ?? "en";
}

export const language = () => current;

// A sentence by its name; {0} and {1} stand for values.
export function say(name, ...values) {
  return LANGUAGES[current][name].replace(/\{(\d)\}/g, (_, index) => values[index]);
}

// Writes the words of all elements that name one.
export function translate() {
  current = asked();
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = say(one.dataset.text);
  for (const one of document.querySelectorAll("[data-label]")) {
    one.setAttribute("aria-label", say(one.dataset.label));
    if (one.matches("button")) one.title = say(one.dataset.label);
  }
  for (const one of document.querySelectorAll("[data-hint]")) one.placeholder = say(one.dataset.hint);
}

export function choose(name) {
  localStorage.setItem("longcat.language", name);
  translate();
}
