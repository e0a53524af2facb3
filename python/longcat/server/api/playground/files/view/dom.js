// Small helpers that make elements.
import {say} from "../words/words.js";

export const $ = id => document.getElementById(id);

// An element with properties, and children that are elements or text.
export function make(tag, properties = {}, ...children) {
  const {className, ...others} = properties;
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(others)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export function button(word, action, properties = {}) {
  const made = make("button", {type: "button", ...properties}, say(word));
  made.addEventListener("click", action);
  return made;
}

// A button with a sign in place of words.
export function signButton(sign, label, action) {
  const made = make("button", {type: "button", className: "sign", title: label, "aria-label": label}, sign);
  made.addEventListener("click", action);
  return made;
}

export async function copy(text, pressed) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyOverHttp(text);
  pressed.textContent = say("copied");
  setTimeout(() => { pressed.textContent = say("copy"); }, 1500);
}

// Browsers have a clipboard for pages over HTTPS and of this machine alone.
function copyOverHttp(text) {
  const box = make("textarea", {value: text, className: "hidden"});
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}

// Fits the height of a box to its text.
export function grow(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}
