/** Pictures that are kept: in the browser's own store, or in memory where it gives none. */

import type { Values } from "./protocol";

export interface Kept {
  id: number;
  at: number;
  picture: Blob;
  infotext: string;
  values: Values;
  /** What made it more than a snapshot, such as "finished". */
  note: string;
}

export const SHELF_LIMIT = 60;

export class Shelf {
  items: Kept[] = [];
  private base: IDBDatabase | null = null;

  constructor(private limit = SHELF_LIMIT) {}

  /** Read what was kept earlier; without a store the shelf is empty and lasts as long as the page. */
  async open(): Promise<void> {
    try {
      this.base = await opened();
      const found = await answer<Kept[]>(this.base.transaction("kept").objectStore("kept").getAll());
      this.items = [...found.sort((a, b) => b.at - a.at), ...this.items];
    } catch {
      this.base = null; // private windows: memory is all there is
    }
  }

  put(kept: Omit<Kept, "id" | "at">, now = Date.now()): Kept {
    const id = Math.max(now, (this.items[0]?.id ?? 0) + 1);
    const item = { ...kept, id, at: now };
    const rest = [item, ...this.items];
    this.items = rest.slice(0, this.limit);
    this.store()?.put(item);
    rest.slice(this.limit).forEach((old) => this.store()?.delete(old.id));
    return item;
  }

  remove(id: number): void {
    this.items = this.items.filter((item) => item.id !== id);
    this.store()?.delete(id);
  }

  private store(): IDBObjectStore | undefined {
    return this.base?.transaction("kept", "readwrite").objectStore("kept");
  }
}

function opened(): Promise<IDBDatabase> {
  const asked = indexedDB.open("fewstep", 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore("kept", { keyPath: "id" });
  return answer(asked);
}

function answer<T>(asked: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}
