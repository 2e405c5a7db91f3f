/** What the page knows, as signals. */

import { effect, signal } from "@preact/signals";
import { Drawing } from "../core/canvas/drawing";
import type { Manifest } from "../model/manifest";
import type { Order } from "../model/painter";
import type { EngineKind } from "./messages";

export type Words = Omit<Order, "image">;
export type Theme = "system" | "light" | "dark";

/** Side of the drawing: small models still get room for a fine hand. */
export const PAPER_PX = 512;

export const model = signal<Manifest | null>(null);
export const words = signal<Words>({ prompt: "", negative: "", steps: 4, guidance: 1, strength: 0.5, seed: 7 });
export const loading = signal<{ what: string; share: number } | null>({ what: "Starting", share: 0 });
export const engine = signal<{ kind: EngineKind; threads: number } | null>(null);
/** The one asked for. */
export const wanted = signal<EngineKind>(stored("engine", "wasm" as EngineKind));
export const busy = signal(false);
/** Of the picture that is shown. */
export const shown = signal<{ ms: number; words: Words; steps: number; drawn: boolean } | null>(null);
export const notice = signal("");

export const tool = signal<"brush" | "eraser">("brush");
export const colour = signal("#d62828");
export const brushSize = signal(44);
/** Counts up with every change of the drawing. */
export const drawn = signal(0);
export const drawing = new Drawing(PAPER_PX, PAPER_PX, () => (drawn.value += 1));

export const theme = signal<Theme>(stored("theme", "system" as Theme));

effect(() => store("engine", wanted.value));
effect(() => {
  store("theme", theme.value);
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
});

export function stored<T>(name: string, otherwise: T): T {
  try {
    const text = localStorage.getItem(`fewstep.${name}`);
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise;
  }
}

function store(name: string, value: unknown): void {
  try {
    localStorage.setItem(`fewstep.${name}`, JSON.stringify(value));
  } catch {
    // private windows keep nothing
  }
}
