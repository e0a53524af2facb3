// The chats in this browser's IndexedDB; in memory where the browser keeps nothing.
const NAME = "longcat", TABLE = "chats";

let database = null;
const memory = new Map();

const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

// Returns whether chats outlive the page.
export async function openStore() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, {keyPath: "id"});
    database = await done(request);
  } catch { /* a private window */ }
  return database !== null;
}

const table = mode => database.transaction(TABLE, mode).objectStore(TABLE);

// All chats, the newest first.
export async function allChats() {
  const chats = database ? await done(table("readonly").getAll()) : [...memory.values()];
  return chats.sort((a, b) => b.changed - a.changed);
}

export async function saveChat(chat) {
  if (database) await done(table("readwrite").put(chat));
  else memory.set(chat.id, structuredClone(chat));
}

export async function deleteChat(id) {
  if (database) await done(table("readwrite").delete(id));
  else memory.delete(id);
}
