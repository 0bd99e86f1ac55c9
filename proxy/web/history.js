// Earlier pictures, in this browser's IndexedDB. Where it has none (a private window), none are kept.

const STORE = "pictures";
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

/** Keeps {blob, seed, nsfw, task, fields}. The oldest go once there are KEPT. */
export async function keep(picture) {
  await transact("readwrite", (store) => store.add(picture));
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
