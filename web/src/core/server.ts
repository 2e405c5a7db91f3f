/** The server's HTTP side, as far as the page needs it. */

import { Locked } from "./connection";
import type { Schema, Values } from "./protocol";
import type { Order } from "./snippets";

export interface Offer {
  schema: Schema;
  defaults: Values;
  model: string;
  size_px: number;
}

async function asked(path: string, body?: unknown): Promise<Response> {
  const post = { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  const answer = await fetch(path, { ...(body === undefined ? {} : post), cache: "no-store" });
  if (answer.ok) return answer;
  const said = await answer.json().then((json) => String(json.detail ?? ""), () => "");
  if (answer.status === 401) throw new Locked(said || "This server wants its key.");
  throw new Error(said || `The server answered ${answer.status} to ${path}.`);
}

export async function offer(): Promise<Offer> {
  return (await asked("/api/v1/live/schema")).json();
}

export async function ticket(): Promise<string> {
  return (await (await asked("/api/v1/live/tickets", {})).json()).ticket;
}

export async function login(key: string): Promise<void> {
  await asked("/api/v1/login", { key });
}

/** The page's address for another device: its QR code as SVG, and for how long it lets somebody in; null: always. */
export interface Shared {
  address: string;
  qr: string;
  seconds: number | null;
}

export async function share(): Promise<Shared> {
  return (await asked("/api/v1/share", {})).json();
}

/** Names of a list under /sdapi/v1; none where the server has no such list. */
export async function names(list: "loras" | "samplers" | "schedulers"): Promise<string[]> {
  try {
    const found: { name: string }[] = await (await asked(`/sdapi/v1/${list}`)).json();
    return [...new Set(found.map(({ name }) => name))];
  } catch {
    return [];
  }
}

/** Paint an order: the picture with its settings. */
export async function painted({ path, body }: Order): Promise<{ picture: Blob; infotext: string }> {
  const answer = await (await asked(path, body)).json();
  const infotext = String(JSON.parse(answer.info ?? "{}").infotexts?.[0] ?? "");
  return { picture: pngOf(answer.images[0]), infotext };
}

/** Base64 as a PNG. */
export function pngOf(base64: string): Blob {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

export async function base64Of(blob: Blob): Promise<string> {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}
