/** What the buttons and keys do. */

import { actionOf } from "../core/keys";
import { infotext, withText } from "../model/infotext";
import { Engine } from "./engine";
import * as page from "./state";

const SEEDS = 2 ** 32;

export const output = { canvas: null as HTMLCanvasElement | null };

export const engine = new Engine({
  input() {
    const { drawing } = page;
    const size = page.model.value?.size_px;
    if (!size || drawing.blank) return null;
    const context = new OffscreenCanvas(size, size).getContext("2d", { willReadFrequently: true });
    if (!context) return null;
    context.imageSmoothingQuality = "high";
    context.drawImage(drawing.composite().canvas, 0, 0, size, size);
    return context.getImageData(0, 0, size, size).data;
  },
  output(pixels) {
    const size = page.model.value?.size_px ?? 0;
    output.canvas?.getContext("2d")?.putImageData(new ImageData(pixels, size, size), 0, 0);
  },
});

/** Other words or numbers: the picture follows. */
export function change(some: Partial<page.Words>): void {
  page.words.value = { ...page.words.value, ...some };
  engine.ask();
}

export function reseed(): void {
  change({ seed: Math.floor(Math.random() * SEEDS) });
}

/** The picture as a PNG that carries its settings. */
export async function save(): Promise<void> {
  const [shown, model, canvas] = [page.shown.value, page.model.value, output.canvas];
  if (!shown || !model || !canvas) return;
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) return;
  const text = infotext(shown.words.prompt, shown.words.negative, settings());
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([withText(new Uint8Array(await blob.arrayBuffer()), text) as BlobPart], { type: "image/png" }));
  link.download = `${slug(shown.words.prompt)}-${shown.words.seed}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Those of the picture that is shown, in the order of the manifest. */
export function settings(): [string, string][] {
  const [shown, model] = [page.shown.value, page.model.value];
  if (!shown || !model) return [];
  const { words, steps, drawn } = shown;
  const own: Record<string, string> = { Steps: String(steps), "CFG scale": String(words.guidance), Seed: String(words.seed), Device: page.engine.value?.kind === "webgpu" ? "webgpu" : "cpu" };
  if (drawn) Object.assign(own, { "Denoising strength": String(words.strength), "VAE Encoder": "TAESD" });
  return model.settings.flatMap(([key, value]) => {
    const text = value ?? own[key];
    return text === undefined ? [] : [[key, text]];
  });
}

function slug(prompt: string): string {
  return (prompt.toLowerCase().match(/[a-z0-9]+/g) ?? ["picture"]).join("-").slice(0, 40);
}

/** One key, one deed; nothing while somebody types. */
export function pressed(event: KeyboardEvent): void {
  const { target } = event;
  const typing = target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || (target instanceof HTMLInputElement && target.type !== "range");
  const action = actionOf(event, typing);
  if (!action) return;
  if (action.do === "tool" && (action.tool === "brush" || action.tool === "eraser")) page.tool.value = action.tool;
  else if (action.do === "steps") change({ steps: action.steps });
  else if (action.do in DEEDS) DEEDS[action.do]?.();
  else return;
  event.preventDefault();
}

const DEEDS: Record<string, () => void> = {
  undo: () => page.drawing.back(),
  redo: () => page.drawing.forth(),
  reseed,
  snapshot: () => void save(),
  smaller: () => (page.brushSize.value = Math.max(2, page.brushSize.value * 0.8)),
  larger: () => (page.brushSize.value = Math.min(200, page.brushSize.value * 1.25)),
};
