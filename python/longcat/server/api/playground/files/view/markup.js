// Shows markdown. The server renders it, and the page takes over the elements and attributes of a list, one by one.
import {ask} from "../data/api.js";
import {button, copy, make} from "./dom.js";

const HTML = "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul";
const MATH = "math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover";
const MATH_ATTRIBUTES = "accent columnalign columnspacing display displaystyle fence form largeop linethickness lspace mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel separator stretchy symmetric width";
const MATH_SPACE = "http://www.w3.org/1998/Math/MathML";
const ALLOWED = {a: ["href"], code: ["class"], ol: ["start"], span: ["class"], td: ["class"], th: ["class"]};
const VALUES = {href: /^(https?:\/\/|mailto:)/i, class: /^[\w+#.-]{1,40}$/, start: /^\d{1,9}$/};
const MATH_VALUE = /^[\w .:/%+-]{0,64}$/;
const SHORTEST_WAIT = 100;  // between two renderings of a text that grows [ms]
const MOST_KEPT = 300;

const html = new Set(HTML.split(" ")), math = new Set(MATH.split(" ")), mathAttributes = new Set(MATH_ATTRIBUTES.split(" "));
const parser = new DOMParser();
const policy = globalThis.trustedTypes?.createPolicy("markup", {createHTML: text => text});
const kept = new Map();  // whole text -> HTML
let line = Promise.resolve();  // one rendering at a time

// The nodes of HTML that the lists allow. The parsed document is inert: it runs and fetches nothing.
export function safeNodes(text) {
  const parsed = parser.parseFromString(policy ? policy.createHTML(text) : text, "text/html");
  return safeChildren(parsed.body);
}

const safeChildren = node => [...node.childNodes].flatMap(safeNode);

function safeNode(node) {
  if (node.nodeType === Node.TEXT_NODE) return [document.createTextNode(node.data)];
  if (node.nodeType !== Node.ELEMENT_NODE) return [];
  const tag = node.localName, isMath = node.namespaceURI === MATH_SPACE;
  if (!(isMath ? math : html).has(tag)) return [document.createTextNode(node.textContent)];
  const made = isMath ? document.createElementNS(MATH_SPACE, tag) : document.createElement(tag);
  for (const {name, value} of node.attributes) {
    const isAllowed = isMath ? mathAttributes.has(name) && MATH_VALUE.test(value) : ALLOWED[tag]?.includes(name) && VALUES[name].test(value);
    if (isAllowed) made.setAttribute(name, value);
  }
  made.append(...safeChildren(node));
  if (tag === "a") Object.assign(made, {target: "_blank", rel: "noopener noreferrer"});
  if (tag === "table") return [make("div", {className: "wide", tabIndex: 0}, made)];
  return [tag === "pre" ? codeBlock(made) : made];
}

function codeBlock(pre) {
  const language = pre.firstElementChild?.className.replace("language-", "") ?? "";
  const copier = button("copy", () => copy(pre.textContent, copier));
  pre.tabIndex = 0;
  return make("div", {className: "code-block"}, make("div", {className: "bar"}, make("span", {}, language), copier), pre);
}

async function rendered(text, isWhole) {
  if (kept.has(text)) return kept.get(text);
  const {html} = await (await ask("render", {text})).json();
  if (isWhole) kept.set(text, html);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return html;
}

// An element that shows a text which may grow: rendered as far as the server has come, and plain from there on.
export class Markup {
  constructor() {
    this.element = make("div", {className: "markup"});
    this.tail = make("span", {className: "tail"});
    this.element.append(this.tail);
    this.text = "";
    this.shown = "";
    this.isBusy = false;
  }

  show(text, isWhole) {
    this.text = text;
    this.isWhole = isWhole;
    if (kept.has(text)) this.put(text, kept.get(text));
    this.tail.textContent = text.startsWith(this.shown) ? text.slice(this.shown.length) : text;
    if (!this.isBusy && this.shown !== text) this.render();
  }

  async render() {
    this.isBusy = true;
    while (this.text && this.shown !== this.text) {
      const text = this.text, start = performance.now();
      try {
        const html = await (line = line.catch(() => {}).then(() => rendered(text, this.isWhole && text === this.text)));
        this.put(text, html);
      } catch {
        break;  // the text stays as it is, plain
      }
      this.tail.textContent = this.text.slice(this.shown.length);
      await new Promise(wake => setTimeout(wake, Math.max(SHORTEST_WAIT, performance.now() - start)));
    }
    this.isBusy = false;
  }

  // Keeps the first elements that stay the same, so that selections in them stay, too.
  put(text, html) {
    const nodes = safeNodes(html).filter(node => node.nodeType !== Node.TEXT_NODE || node.data.trim());
    const old = [...this.element.childNodes].slice(0, -1);
    let same = 0;
    while (same < Math.min(nodes.length, old.length) && nodes[same].isEqualNode(old[same])) same++;
    for (const node of old.slice(same)) node.remove();
    this.tail.before(...nodes.slice(same));
    this.shown = text;
  }
}
