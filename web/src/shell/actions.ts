/** What buttons and keys do. */

import { batch } from "@preact/signals";
import { curl, finishing, order, python, type Order } from "../core/snippets";
import { Drawing, type Stroke } from "../core/canvas/drawing";
import { type Action } from "../core/keys";
import { toHash } from "../core/form";
import type { Kept } from "../core/shelf";
import * as server from "../core/server";
import { change, choose, inputPicture, maskPicture, output, reseed, setPaused, snapshot } from "./live";
import type { Stage } from "./stage";
import * as page from "./state";

export const stage: { current: Stage | null } = { current: null };

/** Run something that may fail, and say so if it does. */
export function trying(run: () => Promise<unknown>): void {
  run().catch((error: Error) => page.say(error.message, true));
}

export function act(action: Action): void {
  const drawing = page.drawing.value;
  switch (action.do) {
    case "tool": return void (page.tool.value = action.tool);
    case "steps": return change({ steps: action.steps });
    case "undo": return drawing?.back();
    case "redo": return drawing?.forth();
    case "swap": return void (page.colours.value = [page.colours.value[1], page.colours.value[0]]);
    case "snapshot": return trying(keep);
    case "reseed": return reseed(true);
    case "lock": return void (page.locked.value = !page.locked.value);
    case "pause": return setPaused(!page.paused.value);
    case "smaller": return resizeBrush(1 / 1.25);
    case "larger": return resizeBrush(1.25);
    case "compare": return void (page.comparing.value = true);
    case "fit": return stage.current?.refit();
    case "mask": return void (page.onMask.value = !page.onMask.value);
    case "hints": return void (page.hint.value = !page.hint.value);
  }
}

function resizeBrush(factor: number): void {
  const now = page.brushSize.value;
  const next = factor > 1 ? Math.max(now + 1, now * factor) : Math.min(now - 1, now * factor);
  page.brushSize.value = Math.min(200, Math.max(1, Math.round(next)));
}

// ---------------------------------------------------------------- keeping

export async function keep(): Promise<Kept> {
  const item = page.shelf.put({ ...(await snapshot()), values: { ...page.values.value }, note: "" });
  page.kept.value = page.shelf.items;
  page.say("Kept below.");
  return item;
}

export function forget(item: Kept): void {
  page.shelf.remove(item.id);
  batch(() => {
    page.kept.value = page.shelf.items;
    if (page.opened.value === item) page.opened.value = null;
    if (page.pinned.value === item) page.pinned.value = null;
  });
}

export function useSettings(item: Kept): void {
  change(item.values);
  page.opened.value = null;
  page.say("Settings taken over.");
}

/** Paint it once more, better: more steps, and a second pass at twice the size. */
export async function finish(): Promise<void> {
  page.finishing.value = true;
  try {
    const asked = await currentOrder();
    const more = finishing(asked);
    // A low strength has no room for more steps: then as many as before.
    const done = await server.painted(more).catch(() => server.painted({ ...more, body: { ...more.body, steps: asked.body.steps } }));
    const item = page.shelf.put({ ...done, values: { ...page.values.value }, note: "finished" });
    batch(() => {
      page.kept.value = page.shelf.items;
      page.opened.value = item;
    });
  } finally {
    page.finishing.value = false;
  }
}

async function currentOrder(): Promise<Order> {
  const [image, mask] = [await inputPicture(), await maskPicture()];
  return order(page.values.value, image && (await server.base64Of(image)), image && mask && (await server.base64Of(mask)));
}

// ---------------------------------------------------------------- pictures in

export async function pictureIn(blob: Blob, name = "Picture"): Promise<void> {
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw new Error("This file is no picture that this browser can read. Choose a PNG, JPEG or WebP.");
  });
  if (page.input.value !== "draw") await choose("draw");
  page.hint.value = false;
  page.drawing.value?.put(bitmap, name);
  bitmap.close();
}

export async function outputToInput(): Promise<void> {
  const blob = await new Promise<Blob | null>((resolve) => (output ? output.toBlob(resolve, "image/png") : resolve(null)));
  if (!blob || !page.hasPicture.value) throw new Error("There is no picture yet.");
  await pictureIn(blob, "Output");
}

/** Files that were dropped, pasted or chosen: pictures become layers, films an input, strokes are drawn again. */
export function filesIn(files: FileList | File[] | null | undefined): boolean {
  const file = [...(files ?? [])][0];
  if (!file) return false;
  if (file.type.startsWith("video/")) trying(() => choose("video", file));
  else if (file.name.endsWith(".json")) trying(async () => play(JSON.parse(await file.text())));
  else trying(() => pictureIn(file, file.name.replace(/\.\w+$/, "") || "Picture"));
  return true;
}

export interface Recorded {
  width: number;
  height: number;
  strokes: Stroke[];
}

/** Draw recorded strokes on this paper, whatever size they were drawn at. */
export function play({ width, height, strokes }: Recorded): void {
  const drawing = page.drawing.value;
  if (!drawing || !Array.isArray(strokes)) throw new Error("This file holds no strokes. Choose one that this page saved.");
  const [across, down] = [drawing.width / width, drawing.height / height];
  drawing.play(strokes.map((stroke) => ({ ...stroke, size: stroke.size * across, points: stroke.points.map((point) => ({ ...point, x: point.x * across, y: point.y * down })) })));
}

// ---------------------------------------------------------------- out of the page

export function download(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export async function copy(text: string, what: string): Promise<void> {
  if (!navigator.clipboard) throw new Error("The clipboard is given only to pages at localhost or over https.");
  await navigator.clipboard.writeText(text);
  page.say(`Copied: ${what}.`);
}

export const copies = {
  infotext: async () => copy((await snapshot()).infotext, "settings as infotext"),
  curl: async () => copy(curl(await currentOrder(), location.origin), "a curl command"),
  python: async () => copy(python(page.values.value, (await inputPicture()) !== null, (await maskPicture()) !== null), "a Python program"),
  link: async () => copy(`${location.origin}${location.pathname}#${toHash(page.values.value)}`, "an address with these settings"),
};

export const saves = {
  picture: async () => download((await snapshot()).picture, `fewstep-${Date.now()}.png`),
  input: async () => {
    const picture = await inputPicture();
    if (!picture) throw new Error("There is no input to save: nothing was drawn.");
    download(picture, "input.png");
  },
  mask: async () => {
    const picture = await maskPicture();
    if (!picture) throw new Error("There is no mask to save: nothing is masked.");
    download(picture, "mask.png");
  },
  strokes: async () => {
    const { width, height, log } = page.drawing.value as Drawing;
    download(new Blob([JSON.stringify({ width, height, strokes: log })], { type: "application/json" }), "strokes.json");
  },
};

let recorder: MediaRecorder | null = null;

/** Begin or end a film of the output. */
export function record(): void {
  if (recorder) return recorder.stop();
  if (!output || !("MediaRecorder" in window)) return page.say("This browser cannot record.", true);
  const parts: Blob[] = [];
  recorder = new MediaRecorder(output.captureStream(30), { videoBitsPerSecond: 6_000_000 });
  recorder.ondataavailable = ({ data }) => data.size && parts.push(data);
  recorder.onstop = () => {
    const type = recorder?.mimeType ?? "video/webm";
    recorder = null;
    page.recording.value = false;
    download(new Blob(parts, { type }), `fewstep-${Date.now()}.${type.includes("mp4") ? "mp4" : "webm"}`);
  };
  recorder.start(1000);
  page.recording.value = true;
}
