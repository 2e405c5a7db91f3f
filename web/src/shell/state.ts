/** What the page knows, as signals; everything that is shown is made from these. */

import { computed, effect, signal } from "@preact/signals";
import type { Drawing, Tool } from "../core/canvas/drawing";
import type { Part } from "../core/capture";
import { WHOLE } from "../core/capture";
import type { State } from "../core/connection";
import type { Field } from "../core/form";
import type { Mode, ServerStats, Values } from "../core/protocol";
import type { Policy } from "../core/policy";
import { type Kept, Shelf } from "../core/shelf";

export type Input = "draw" | "camera" | "screen" | "video" | "pattern" | "prompt";

/** The protocol's word for each input. */
export const MODES: Record<Input, Mode> = { draw: "canvas", camera: "camera", screen: "screen", video: "video", pattern: "video", prompt: "prompt" };

export const input = signal<Input>("draw");
export const connection = signal<{ state: State; why: string }>({ state: "connecting", why: "" });
export const model = signal("");
export const modelSize = signal(512);
export const fields = signal<Field[]>([]);
export const choices = signal<Record<string, string[]>>({});
export const values = signal<Values>({});
/** What the values that are left to the model come to. */
export const effective = signal<Values>({});
export const loras = signal<string[]>([]);
export const locked = signal(stored("locked", true));
export const paused = signal(false);
export const policy = signal<Policy>(stored("policy", "auto" as Policy));

export const tool = signal<Tool | "picker">("brush");
export const onMask = signal(false);
export const colours = signal<[string, string]>(["#d62828", "#1d1d1f"]);
export const brushSize = signal(28);
export const filled = signal(false);
export const drawing = signal<Drawing | null>(null);
/** Counts up with every change of the drawing but those within a stroke, so that layers and undo are shown anew. */
export const drawn = signal(0);

export const part = signal<Part>(WHOLE);
export const mirrored = signal(true);
export const device = signal("");
export const devices = signal<{ id: string; label: string }[]>([]);
export const sourceWhy = signal("");

export const figures = signal({ fpsIn: 0, fpsOut: 0, delayMs: null as number | null, pictureMs: null as number | null });
export const stats = signal<ServerStats | null>(null);
export const queue = signal<{ pos: number; eta_s: number } | null>(null);
export const settling = signal(false);
export const refined = signal(false);
export const hasPicture = signal(false);
export const finishing = signal(false);
export const recording = signal(false);
export const comparing = signal(false);
/** The kept picture that is compared with; null: the input. */
export const pinned = signal<Kept | null>(null);

export const shelf = new Shelf();
export const kept = signal<Kept[]>([]);
export const opened = signal<Kept | null>(null);

export const notice = signal<{ text: string; bad: boolean } | null>(null);
export const hint = signal(stored("hint", true));
export const theme = signal(stored("theme", "system" as "system" | "light" | "dark"));

/** The size of the pictures that are asked for. */
export const size = computed(() => ({ width: Number(values.value.width) || modelSize.value, height: Number(values.value.height) || modelSize.value }));

export const DEFAULT_PROMPT = "a red apple, 3d";

effect(() => store("policy", policy.value));
effect(() => store("locked", locked.value));
effect(() => store("hint", hint.value));
effect(() => {
  store("theme", theme.value);
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
});

let clearing = 0;

/** Say something for a few seconds. */
export function say(text: string, bad = false): void {
  notice.value = { text, bad };
  clearTimeout(clearing);
  clearing = window.setTimeout(() => (notice.value = null), bad ? 7000 : 2600);
}

export function stored<T>(name: string, otherwise: T): T {
  try {
    const text = localStorage.getItem(`fewstep.${name}`);
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise;
  }
}

export function store(name: string, value: unknown): void {
  try {
    localStorage.setItem(`fewstep.${name}`, JSON.stringify(value));
  } catch {
    // private windows keep nothing
  }
}
