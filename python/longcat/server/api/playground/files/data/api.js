// Requests to this server: the key, errors with advice, and streams of events.
import {say} from "../words/words.js";

let key = sessionStorage.getItem("longcat.key") ?? "";

export function setKey(text) {
  key = text.trim();
  sessionStorage.setItem("longcat.key", key);
}

// What went wrong, and what the user can do about it.
export class Problem extends Error {
  constructor(message, advice = "", status = 0) {
    super(message);
    this.advice = advice;
    this.status = status;
  }
}

const offline = () => new Problem(say("offline"), say("adviceOffline"));

// Answers a GET, or with a body a POST. Throws a Problem, or an AbortError.
export async function ask(path, body, signal) {
  const headers = {"Content-Type": "application/json", ...(key && {Authorization: `Bearer ${key}`})};
  let response;
  try {
    response = await fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body), signal} : {headers, signal});
  } catch (error) {
    throw error.name === "AbortError" ? error : offline();
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* a proxy's page */ }
  const {status} = response;
  let advice = say("adviceOther");
  if (status === 401) advice = say("adviceKey");
  else if (status === 429 || status >= 500) advice = say("adviceBusy", response.headers.get("Retry-After") ?? 5);
  else if (status === 413) advice = say("adviceLarge");
  else if (error.code === "context_length_exceeded") advice = say("adviceContext");
  return new Problem(error.message ?? say("status", status), advice, status);
}

// The objects of a stream of server-sent events.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : offline();
    }
    if (piece.done) return;
    const parts = (rest + piece.value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}
