// Earlier images, in this browser's IndexedDB. Without one (in a private window), nothing is kept.

const STORE = "pictures"; // as it was named first: another name would lose what browsers have stored
const KEPT = 200;

const opening = new Promise((resolve) => {
  let request;
  try {
    request = indexedDB.open("stable-diffusion", 1);
  } catch {
    return resolve(null);
  }
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => resolve(null);
});

async function transact(mode, work) {
  const database = await opening;
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** Keeps {blob, seed, nsfw, warnings, task, fields}. Beyond KEPT, the oldest are deleted. */
export async function keep(image) {
  await transact("readwrite", (store) => store.add(image));
  const ids = (await transact("readonly", (store) => store.getAllKeys())) ?? [];
  const old = ids.slice(0, -KEPT);
  if (old.length) await transact("readwrite", (store) => store.delete(IDBKeyRange.bound(old[0], old.at(-1))));
}

/** All of them, the newest first. */
export async function kept() {
  return ((await transact("readonly", (store) => store.getAll())) ?? []).reverse();
}

export function forget() {
  return transact("readwrite", (store) => store.clear());
}
