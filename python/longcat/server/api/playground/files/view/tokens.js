// The tokens of an answer, coloured by their probabilities; the one under the pointer or the cursor has a table.
import {say} from "../words/words.js";
import {make} from "./dom.js";

const percent = logprob => {
  const value = 100 * Math.exp(logprob);
  return value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
};
const visible = text => text.replaceAll("\n", "↵\n") || "∅";
const level = logprob => Math.min(4, Math.floor(-logprob * 1.5));  // 0: nearly certain

export function tokenView(tokens) {
  const list = make("div", {className: "token-list", tabIndex: 0, role: "group", "aria-label": say("tokenList")});
  const spans = tokens.map(token => make("span", {className: `token level-${level(token.logprob)}`}, visible(token.text)));
  const table = make("div", {className: "token-table", role: "status"});
  let at = -1;

  function show(index) {
    if (index < 0 || index >= spans.length || index === at) return;
    spans[at]?.classList.remove("current");
    at = index;
    spans[at].classList.add("current");
    table.replaceChildren(tableOf(tokens[at]));
    const top = spans[at].offsetTop + spans[at].offsetHeight + 4;
    table.style.top = `${top}px`;
    table.style.left = `${Math.max(0, Math.min(spans[at].offsetLeft, list.clientWidth - table.offsetWidth))}px`;
  }

  function hide() {
    spans[at]?.classList.remove("current");
    at = -1;
    table.replaceChildren();
  }

  list.append(...spans, table);
  list.addEventListener("pointerover", event => show(spans.indexOf(event.target)));
  list.addEventListener("pointerleave", hide);
  list.addEventListener("focusout", hide);
  list.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.max(0, at + step));
  });
  return list;
}

function tableOf(token) {
  const rows = token.top.some(([text]) => text === token.text) ? token.top : [[token.text, token.logprob], ...token.top];
  return make("table", {}, make("tbody", {}, ...rows.map(([text, logprob]) => make("tr", {className: text === token.text ? "chosen" : ""},
    make("td", {}, make("code", {}, visible(text))),
    make("td", {}, percent(logprob)),
    make("td", {}, text === token.text ? say("chosen") : "")))));
}
