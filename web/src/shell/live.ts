/** The heart of the page: what changed goes out when policy and credit allow, what comes back is shown and acknowledged. */

import { batch, effect } from "@preact/signals";
import { Drawing } from "../core/canvas/drawing";
import { drawingSize } from "../core/canvas/view";
import { camera, cameras, cut, Encoder, film, pattern, screen, type Source, WHOLE } from "../core/capture";
import { Connection, Locked, type Wire } from "../core/connection";
import { anySeed, fieldsOf, fromHash, startValues } from "../core/form";
import { due } from "../core/policy";
import { Codec, Flag, Kind, mediaType, type Picture, type ServerMessage, type Values } from "../core/protocol";
import * as server from "../core/server";
import { Delay, Median, Rate, settling } from "../core/stats";
import * as page from "./state";

const SMALL_PX = 256;
const ALL_KEPT = 4096;
const FPS = 30;
/** Timers and screens are not exact: a frame may come this much early. */
const SLACK_MS = 4;

const encoder = new Encoder();
const [sending, showing] = [new Rate(), new Rate()];
let [delay, pictureTime] = [new Delay(), new Median(5)];
let source: Source | null = null;
let [sentVersion, sentTick, sentMask, lastSeq, sentSize] = [-1, -1, -1, 0, ""];
let since: number | null = null;
let lastChange = 0;
let newest: Picture | null = null;
let shown: Picture | null = null;
let [showBusy, sendBusy] = [false, false];
let sentAt = 0;
let blankStrength = false;
let maskSent = false;
/** The values that the server took last: where a refused one goes back to. */
let taken: Values = {};
export let output: HTMLCanvasElement | null = null;
let snapshotWanted: ((kept: { picture: Blob; infotext: string }) => void)[] = [];

export const connection = new Connection(
  {
    ticket: server.ticket,
    open: (ticket, protocol) => {
      const address = new URL(`/api/v1/live?ticket=${encodeURIComponent(ticket)}`, location.href);
      address.protocol = address.protocol.replace("http", "ws");
      return new WebSocket(address, protocol) as unknown as Wire;
    },
    hello: () => ({ mode: page.MODES[page.input.value], w: page.size.value.width, h: page.size.value.height, fps: FPS }),
    values: asked,
    later: (run, ms) => {
      const timer = setTimeout(run, ms);
      return () => clearTimeout(timer);
    },
  },
  {
    state: (state, why) => {
      page.connection.value = { state, why };
      if (state === "live") anew();
    },
    message: heard,
    refused: (names) => {
      const back = Object.fromEntries(names.filter((name) => name in taken).map((name) => [name, taken[name]]));
      page.values.value = { ...page.values.value, ...back };
    },
    picture: (picture) => {
      if (picture.kind !== Kind.output) return;
      if (newest) connection.shown(newest.seq);
      newest = picture;
      void show();
    },
  },
);

/** The values that are asked for: on blank paper the words alone decide. */
function asked(): Values {
  blankStrength = blank();
  return { ...page.values.value, ...(blankStrength ? { strength: 1 } : {}) };
}

function blank(): boolean {
  return page.input.value === "draw" && (page.drawing.value?.blank ?? true);
}

/** A new session knows nothing: everything is sent again. */
function anew(): void {
  [sentVersion, sentTick, sentMask, lastSeq] = [-1, -1, -1, 0];
  maskSent = false;
  connection.shown(0);
  if (page.paused.value || document.hidden) connection.pause(true);
}

/** Fetch what can be asked, then begin. */
export async function begin(): Promise<void> {
  await comeIn();
  try {
    const [offer, samplers, schedulers, loras] = await Promise.all([server.offer(), server.names("samplers"), server.names("schedulers"), server.names("loras")]);
    const told = { prompt: page.DEFAULT_PROMPT, ...page.stored<Values>(`values ${offer.model}`, {}), ...fromHash(location.hash, offer.schema) };
    batch(() => {
      page.model.value = offer.model;
      page.modelSize.value = offer.size_px;
      page.choices.value = { sampler: samplers, schedule: schedulers };
      page.fields.value = fieldsOf(offer.schema, page.choices.value);
      page.loras.value = loras;
      page.values.value = completed(startValues(offer.schema, offer.defaults, told), offer.size_px);
    });
    connection.start();
  } catch (error) {
    const state = error instanceof Locked ? "locked" : "waiting";
    page.connection.value = { state, why: String((error as Error).message) };
    if (state === "waiting") setTimeout(() => void begin(), 2000);
  }
}

/** An address with #key=... lets this device in; the key does not stay there. */
async function comeIn(): Promise<void> {
  const asked = new URLSearchParams(location.hash.slice(1));
  const key = asked.get("key");
  if (key === null) return;
  asked.delete("key");
  history.replaceState(null, "", `${location.pathname}#${asked}`);
  await server.login(key).catch(() => undefined); // a wrong one: the page asks for the right one
}

function completed(values: Values, size: number): Values {
  return { ...values, seed: values.seed ?? anySeed(), width: values.width ?? size, height: values.height ?? size };
}

/** Change parameters: here, and at the server. */
export function change(patch: Values): void {
  page.values.value = { ...page.values.value, ...patch };
  page.store(`values ${page.model.value}`, remembered(page.values.value));
  const heldBack = blankStrength && "strength" in patch ? { ...patch, strength: 1 } : patch;
  delay.changed(connection.change(heldBack), performance.now());
}

function remembered({ seed, width, height, ...rest }: Values): Values {
  return { ...rest, ...(page.locked.value ? { seed } : {}), ...(width === page.modelSize.value && height === width ? {} : { width, height }) };
}

/** A new seed where it is not locked: with every stroke and every other prompt. */
export function reseed(always = false): void {
  if (always || !page.locked.value) change({ seed: anySeed() });
}

/** Draw something again that the server has forgotten or the user wants repeated. */
export function setPaused(on: boolean): void {
  page.paused.value = on;
  connection.pause(on || document.hidden);
}

function heard(message: ServerMessage): void {
  if (message.type === "stats") page.stats.value = message;
  if (message.type === "queue") page.queue.value = message.pos > 0 ? message : null;
  if (message.type === "params_ack") {
    page.effective.value = message.effective;
    if (message.rev === connection.expected) taken = page.values.value;
  }
  if (message.type === "params_ack") message.warnings.forEach((warning) => page.say(warning));
  if (message.type === "skip" && message.seq >= lastSeq) lastSeq = 0;
  if (message.type === "stats" && message.unchanged > 0 && message.fps_out === 0) lastSeq = 0;
  if (message.type === "error" && message.code !== "busy" && !onlyRefining(message)) page.say(message.message, true);
  if (message.type === "snapshot") {
    const kept = { picture: server.pngOf(message.png), infotext: message.infotext };
    snapshotWanted.splice(0).forEach((give) => give(kept));
  }
}

/** Whether it says that a picture which stands already could not be made better: nobody asked for that. */
function onlyRefining(message: { code: string; rev?: number; seq?: number }): boolean {
  const stands = shown !== null && (shown.flags & Flag.final) !== 0;
  return message.code === "painting" && stands && message.seq === shown?.sourceSeq && message.rev === shown?.revision;
}

/** The last picture as the server has it, with its settings. */
export function snapshot(): Promise<{ picture: Blob; infotext: string }> {
  return new Promise((resolve, reject) => {
    if (page.connection.value.state !== "live" || !shown) return reject(new Error("There is no picture yet."));
    snapshotWanted.push(resolve);
    connection.snapshot();
    setTimeout(() => reject(new Error("The server gave no snapshot within 10 seconds.")), 10_000);
  });
}

// ---------------------------------------------------------------- what comes back

export function setOutput(canvas: HTMLCanvasElement | null): void {
  output = canvas;
}

async function show(): Promise<void> {
  if (showBusy || !newest) return;
  showBusy = true;
  const picture = newest;
  newest = null;
  try {
    const bitmap = await createImageBitmap(new Blob([picture.payload], { type: mediaType(picture.codec) }));
    if (output) paintOutput(output, bitmap);
    bitmap.close();
    measure(picture, shown === null);
    shown = picture;
  } catch {
    page.say("A picture from the server could not be read.", true);
  }
  connection.shown(picture.seq);
  showBusy = false;
  void show();
}

function paintOutput(canvas: HTMLCanvasElement, bitmap: ImageBitmap): void {
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
}

/** The first picture of a page is not timed: the model may have had to wake up. */
function measure(picture: Picture, first: boolean): void {
  const now = performance.now();
  delay.shown(picture, now);
  if (!(picture.flags & Flag.refined)) {
    showing.mark(now);
    if (!first) pictureTime.add(picture.serverMs);
  }
  batch(() => {
    page.hasPicture.value = true;
    page.refined.value = (picture.flags & Flag.refined) !== 0;
  });
}

// ---------------------------------------------------------------- what goes out

/** Once per frame of the screen: send if something is to be sent and may be. */
function tick(): void {
  requestAnimationFrame(tick);
  const now = performance.now();
  const waiting = wanted(now);
  const rested = now - sentAt >= 1000 / FPS - SLACK_MS;
  if (waiting && rested && connection.free && encoder.idle && !sendBusy && !page.paused.value && !document.hidden) void send();
  figure(now, waiting);
}

let figured = 0;

function figure(now: number, waiting: boolean): void {
  page.settling.value = !page.paused.value && page.connection.value.state === "live" && settling(shown, connection.expected, lastSeq, waiting || since !== null || connection.gathering);
  if (now - figured < 300) return;
  figured = now;
  page.figures.value = { fpsIn: sending.per_s(now), fpsOut: showing.per_s(now), delayMs: delay.median.value, pictureMs: pictureTime.value };
}

/** Whether something is to be sent now. */
function wanted(now: number): boolean {
  const drawing = page.drawing.value;
  if (page.input.value === "prompt") return false;
  if (page.input.value !== "draw") return source !== null && (source.ticks !== sentTick || sizeKey() !== sentSize);
  if (!drawing || (drawing.version === sentVersion && sizeKey() === sentSize)) return false;
  if (sentVersion === -1) return true;
  since ??= now;
  return due(page.policy.value, { since, last: lastChange, drawing: drawing.drawing }, now, pictureTime.value ?? 0);
}

function sizeKey(): string {
  return `${page.size.value.width}x${page.size.value.height}`;
}

async function send(): Promise<void> {
  const target = page.size.value;
  const senderMs = (since ?? performance.now()) >>> 0;
  const codec = page.input.value === "draw" && Math.max(target.width, target.height) <= SMALL_PX ? Codec.png : Codec.jpeg;
  sentSize = sizeKey();
  sentTick = source?.ticks ?? -1;
  sentVersion = page.drawing.value?.version ?? -1;
  since = null;
  sendBusy = true;
  sentAt = performance.now();
  try {
    leaveBlank();
    if (page.input.value === "draw") await sendMask(target);
    const bytes = await encoder.encode(await grabbed(target), target, codec);
    const seq = connection.frame(codec, bytes, senderMs);
    if (seq) sending.mark(performance.now());
    lastSeq = seq || lastSeq;
  } catch (error) {
    page.say(`This picture could not be sent: ${(error as Error).message}`, true);
  }
  sendBusy = false;
}

/** The frame of now. */
async function grabbed(target: { width: number; height: number }): Promise<ImageBitmap> {
  const drawing = page.drawing.value;
  if (page.input.value === "draw" && drawing) return createImageBitmap(drawing.composite().canvas);
  if (!source) throw new Error("nothing is shared any more. Choose the input again.");
  const { x, y, width, height } = cut(source.size, page.part.value, target);
  const copy = new OffscreenCanvas(target.width, target.height);
  const context = copy.getContext("2d");
  if (page.input.value === "camera" && page.mirrored.value) context?.setTransform(-1, 0, 0, 1, target.width, 0);
  context?.drawImage(source.picture, x, y, width, height, 0, 0, target.width, target.height);
  return copy.transferToImageBitmap();
}

/** With the first stroke the chosen strength holds; on blank paper the words alone. */
function leaveBlank(): void {
  const now = blank();
  if (now === blankStrength) return;
  blankStrength = now;
  connection.change({ strength: now ? 1 : page.values.value.strength });
}

async function sendMask(target: { width: number; height: number }): Promise<void> {
  const drawing = page.drawing.value;
  if (!drawing || drawing.maskVersion === sentMask) return;
  const version = drawing.maskVersion;
  if (!drawing.masked && !maskSent) return;
  const bytes = await encoder.encode(await createImageBitmap(drawing.maskPicture()), target, Codec.png);
  if (connection.mask(Codec.png, bytes)) [sentMask, maskSent] = [version, drawing.masked];
}

/** The frame that would be sent, as a PNG. */
export async function inputPicture(): Promise<Blob | null> {
  if (page.input.value === "prompt" || (page.input.value !== "draw" && !source) || blank()) return null;
  const bytes = await encoder.encode(await grabbed(page.size.value), page.size.value, Codec.png);
  return new Blob([bytes], { type: "image/png" });
}

export async function maskPicture(): Promise<Blob | null> {
  const drawing = page.drawing.value;
  if (page.input.value !== "draw" || !drawing?.masked) return null;
  return new Blob([await encoder.encode(await createImageBitmap(drawing.maskPicture()), page.size.value, Codec.png)], { type: "image/png" });
}

// ---------------------------------------------------------------- inputs

export function currentSource(): Source | null {
  return source;
}

let choosing = 0;

/** Another input: the old one is let go, and the session begins anew in its mode. */
export async function choose(next: page.Input, file?: Blob): Promise<void> {
  const turn = ++choosing;
  source?.stop();
  source = null;
  batch(() => {
    page.input.value = next;
    page.part.value = WHOLE;
    page.sourceWhy.value = "";
  });
  delay = new Delay();
  if (page.connection.value.state === "live") connection.stop();
  if (page.fields.value.length) connection.start();
  try {
    const made = await opened(next, file);
    if (turn !== choosing) made?.stop();
    else source = made;
    if (next === "camera") page.devices.value = await cameras();
  } catch (error) {
    if (turn === choosing) page.sourceWhy.value = why(next, error as Error);
  }
}

function opened(next: page.Input, file?: Blob): Promise<Source | null> {
  if (next === "camera") return camera(page.device.value);
  if (next === "screen") return screen();
  if (next === "video" && file) return film(file);
  return Promise.resolve(next === "pattern" ? pattern() : null);
}

function why(next: page.Input, error: Error): string {
  if (!navigator.mediaDevices && next !== "video") return "Cameras and screens are given only to pages at localhost or over https. Open this page there.";
  if (error.name === "NotAllowedError") return `The browser was not allowed to use the ${next}. Allow it beside the address, then choose it again.`;
  if (error.name === "NotFoundError") return "There is no camera here. The test pattern needs none.";
  return next === "video" ? "This file cannot be played here. Choose an MP4 or WebM." : `The ${next} cannot be used: ${error.message}`;
}

/** Paper of the right size; what was drawn is taken along. */
function newPaper(): void {
  const { width, height } = drawingSize(page.size.value);
  const old = page.drawing.peek();
  if (old?.width === width && old.height === height) return;
  const made = new Drawing(Math.min(width, ALL_KEPT), Math.min(height, ALL_KEPT), () => {
    lastChange = performance.now();
    if (!page.drawing.peek()?.drawing) page.drawn.value = page.drawn.peek() + 1;
  });
  if (old) made.take(old);
  page.drawing.value = made;
}

export function run(): void {
  effect(() => {
    page.size.value;
    newPaper();
  });
  document.addEventListener("visibilitychange", () => connection.pause(document.hidden || page.paused.value));
  window.addEventListener("pagehide", () => connection.stop());
  window.addEventListener("pageshow", (event) => event.persisted && connection.start());
  void page.shelf.open().then(() => (page.kept.value = page.shelf.items));
  void begin();
  requestAnimationFrame(tick);
}
